"""The parts of `mlflow_unlearn.commands.tune`: search space, study, trials, workers."""
