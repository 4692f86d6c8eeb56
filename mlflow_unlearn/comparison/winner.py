"""Which method of a comparison is registered, and with which seed."""

from collections.abc import Mapping, Sequence

from mlflow_unlearn.comparison.runs import Trial
from mlflow_unlearn.metrics.suite import Metrics
from mlflow_unlearn.tuning.selection import constraints

RULE = "avg_gap_advantage_val"


def best_method(trials: Mapping[str, Sequence[Trial]], before: Metrics, seeds: int) -> Trial | None:
    """The method with the lowest mean ``avg_gap_advantage_val`` among those that meet the constraints with every seed.

    A method and what tuning has made of it are two of them.

    Of that method the seed with the lowest one. A forget set that is told apart breaks a constraint, and a model whose
    weights did not move is not a candidate. The test set is not used.
    """
    eligible = [
        done
        for done in trials.values()
        if len(done) == seeds
        and all(trial.moved for trial in done)
        and all(RULE in trial.selection_metrics for trial in done)
        and all(value <= 0 for trial in done for value in constraints(trial.selection_metrics, before).values())
    ]
    if not eligible:
        return None
    best = min(eligible, key=lambda done: sum(trial.selection_metrics[RULE] for trial in done) / len(done))
    return min(best, key=lambda trial: trial.selection_metrics[RULE])
