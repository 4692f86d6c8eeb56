"""The parts of `mlflow_unlearn.tune`: search space, study, trials, workers."""
