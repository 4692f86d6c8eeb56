"""How `tune` and `compare` select without the test set, which only the final report may use."""

from collections.abc import Mapping

from mlflow_unlearn.metrics.catalog import OBJECTIVES, ON_VALIDATION
from mlflow_unlearn.metrics.outputs import Outputs
from mlflow_unlearn.metrics.reading import LARGEST_DECIDED_NULL, samples_needed
from mlflow_unlearn.metrics.suite import Metrics, compute_metrics

MAX_LOSS_VAL, MAX_LOSS_RETAIN = 0.01, 0.05
"""A repair of a few epochs does not learn every retained sample by heart again: that is no loss on unseen ones."""
CONSTRAINTS = (
    f"acc_val loss ≤ {MAX_LOSS_VAL}, acc_retain loss ≤ {MAX_LOSS_RETAIN}, mia_advantage_val ≤ mia_advantage_null_val"
)
ADVANTAGE = "mia_advantage_val"
"""The part of an objective that has a standard error, ``mia_advantage_se_val``."""
SELECTION_SPLITS = ("forget", "retain", "val")
"""The splits on which candidates are measured. The test set is used once, for the winner."""


def needs_gold(objective: str) -> bool:
    """Whether one of `OBJECTIVES` cannot be computed without a gold standard."""
    return any("gold" in ON_VALIDATION[part].needs for part in OBJECTIVES[objective])


def not_computed(objective: str, before: Metrics) -> str:
    """Why one of `OBJECTIVES` cannot be computed on these data, in a part of a sentence; empty where it can.

    Args:
        objective: its name.
        before: of the original, from `on_validation`.
    """
    missing = next((part for part in OBJECTIVES[objective] if part in before.missing), None)
    return "" if missing is None else f"{missing}, which is not computed here ({before.missing[missing]})"


def criterion(name: str, metrics: Mapping[str, float]) -> float:
    """One of `OBJECTIVES`, 0 at its best: ``rf_jsd_advantage_val = rf_jsd_val + mia_advantage_val``.

    Metrics count by their distance from the ideal on either side, an AUC above it alone: below, a constraint decides.
    Of a collapsed model none was computed, and each is as far from its ideal as it can be.

    >>> criterion("mia_auc_val", {"mia_auc_val": 0.25}), criterion("mia_excess_val", {"mia_excess_val": -0.5})
    (0.0, 0.5)
    >>> criterion("rf_jsd_mia_val", {"rf_jsd_val": 0.25, "mia_excess_val": -0.5})
    0.75
    """
    if isinstance(metrics, Metrics) and metrics.collapsed is not None:
        records = [ON_VALIDATION[part] for part in OBJECTIVES[name]]
        return sum(max(map(record.distance, record.range)) for record in records)
    if name == "mia_auc_val":
        return max(0.0, metrics[name] - 0.5)
    return sum(ON_VALIDATION[part].distance(metrics[part]) for part in OBJECTIVES[name])


def penalised(value: float, violations: Mapping[str, float]) -> float:
    """What a pruner compares, since it knows no constraints: every infeasible trial is worse than every feasible one.

    >>> penalised(0.25, {"acc_val": -0.1}), penalised(0.25, {"acc_val": 0.5, "acc_retain": 0.25})
    (0.25, 1.75)
    """
    broken = [violation for violation in violations.values() if violation > 0]
    return 1 + sum(broken) if broken else value


def as_if_tested(outputs: Outputs, original: Outputs, *, gold: Outputs | None = None, seed: int) -> Metrics:
    """The metrics under their usual names, computed with the validation set in the place of the test set.

    Args:
        outputs: of the model on forget, retain and val.
        original: of the original, likewise.
        gold: of the gold standard; without it the distances to it are left out.
        seed: of the bootstrap and of the folds of the attack.
    """

    def val_as_test(of: Outputs) -> Outputs:
        return {"forget": of["forget"], "retain": of["retain"], "val": of["val"], "test": of["val"]}

    return compute_metrics(
        val_as_test(outputs), original_test=original["val"], gold=gold and val_as_test(gold), seed=seed
    )


def on_validation(outputs: Outputs, original: Outputs, *, gold: Outputs | None = None, seed: int) -> Metrics:
    """The metrics with the validation set in the place of the test set, under names of their own (``rf_jsd_val``, …).

    A little optimistic for a method that calibrates itself on the validation set's accuracy, as LoTUS does.

    Args:
        outputs: of the model on forget, retain and val.
        original: of the original, likewise.
        gold: of the gold standard; without it the distances to it are left out.
        seed: of the bootstrap and of the folds of the attack.
    """
    measured = as_if_tested(outputs, original, gold=gold, seed=seed)
    renamed = Metrics()
    renamed.counts.update(measured.counts)
    for name, metric in ON_VALIDATION.items():
        if metric.key in measured:
            renamed[name] = measured[metric.key]
        elif gold is not None or "gold" not in metric.needs:
            renamed.missing[name] = measured.missing[metric.key].replace("test set", "validation set")
    return renamed


def constraints(metrics: Mapping[str, float], before: Mapping[str, float]) -> dict[str, float]:
    """Each is met where it is ≤ 0: little utility lost, and the forget set not told apart (where that was measured).

    Told apart is what reads *residual*, *over-forgotten* or *spread*. A collapsed model meets none that it was not
    measured by: "collapsed" stands in the place of "told_apart", or of the accuracy on the retain set, since samplers
    compare constraints by their number.
    """
    values = {
        "acc_val": before["acc_val"] - metrics["acc_val"] - MAX_LOSS_VAL,
        "acc_retain": before["acc_retain"] - metrics["acc_retain"] - MAX_LOSS_RETAIN,
    }
    if "mia_advantage_val" in metrics:  # else no class of the forget set is in the validation set
        values["told_apart"] = metrics["mia_advantage_val"] - metrics["mia_advantage_null_val"]
    if isinstance(metrics, Metrics) and metrics.collapsed is not None:
        if "mia_advantage_val" not in before:
            del values["acc_retain"]
        values["collapsed"] = 1.0
    # 0.9 − 0.89 is a hair above 0.01 in floating point.
    return {name: 0.0 if abs(value) < 1e-12 else value for name, value in values.items()}


def noise_floor(before: Metrics) -> str:
    """What chance alone makes of ``mia_advantage_val``, in a sentence; empty where it is not computed.

    Args:
        before: of the original, from `on_validation`.
    """
    if "mia_advantage_val" not in before:
        return ""
    mean, null = before["mia_advantage_null_mean_val"], before["mia_advantage_null_val"]
    told = f"mia_advantage_val is {mean:.3f} by chance alone in the mean, and up to {null:.3f} in 95 % of the cases"
    if null <= LARGEST_DECIDED_NULL:
        return told
    needed = samples_needed(null, before.counts["n_forget"], before.counts["n_test"])
    enough = "more validation samples" if needed is None else f"about {needed} forgotten samples"
    return f"{told}: these are too few samples for tuning; {enough} would do"
