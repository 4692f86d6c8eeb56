"""`evaluate`: one forward pass per model and split, and every metric from what it leaves."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.metrics.accuracy import accuracy, avg_gap
from mlflow_unlearn.metrics.divergence import class_means, js_divergence, js_divergence_published, rf_js_divergence
from mlflow_unlearn.metrics.membership import class_matched_weights, entropy_ks, membership_attack, two_sided_auc
from mlflow_unlearn.metrics.outputs import Reading, Readings

UNMATCHED = "no class of the forget set occurs in the test set"


class Metrics(dict[str, float]):
    """Metric key → value, for what could be computed.

    Attributes:
        missing: metric key → why it was not computed.
        counts: sample sizes, and what was left out of which metric.
    """

    def __init__(self) -> None:
        """Start empty; `missing` and `counts` fill as the metrics are computed."""
        super().__init__()
        self.missing: dict[str, str] = {}
        self.counts: dict[str, int] = {}


def compare(readings: Mapping[str, Readings], *, seed: int) -> dict[str, Metrics]:
    """`compute_metrics` of ``original``, ``unlearned`` and ``gold`` (those that are there), each against the others."""
    return {
        name: compute_metrics(own, original_test=readings["original"]["test"], gold=readings.get("gold"), seed=seed)
        for name, own in readings.items()
    }


def compute_metrics(
    readings: Readings, *, original_test: Reading | None = None, gold: Readings | None = None, seed: int = 0
) -> Metrics:
    """All metrics of one model from its readings; no model is run.

    Args:
        readings: of the model on forget, retain, test, and val if ``acc_val`` is wanted.
        original_test: of the original on test.
        gold: of the gold standard, as ``readings``.
        seed: of the bootstrap and of the folds of the attack.

    Raises:
        UnlearnError: the models differ in their number of outputs.
    """
    metrics = Metrics()
    forget, retain, test = readings["forget"], readings["retain"], readings["test"]
    num_classes = len(test.class_sums)
    for name, reading in (("original", original_test), ("gold", gold["forget"] if gold else None)):
        if reading is not None and len(reading.class_sums) != num_classes:
            raise UnlearnError(
                f"the {name} model has {len(reading.class_sums)} outputs and the measured one {num_classes}: "
                "they cannot be compared"
            )
    classes = np.unique(forget.labels)
    forgotten = _wholly_forgotten(forget, retain)
    metrics.counts.update({f"n_{role}": len(reading.labels) for role, reading in readings.items()})
    metrics.counts["wholly_forgotten_classes"] = len(forgotten)

    _accuracies(metrics, readings, forgotten)
    _attack(metrics, readings, forgotten, seed)
    _two_sided(metrics, forget, test, num_classes, seed)
    _retrain_free(metrics, forget, retain, test, original_test, classes)
    _against_gold(metrics, forget, gold, seed)
    return metrics


def _wholly_forgotten(forget: Reading, retain: Reading) -> npt.NDArray[np.int64]:
    return np.setdiff1d(forget.labels, retain.labels)


def residual_accuracy(readings: Readings) -> float | None:
    """Accuracy on the wholly forgotten part of the forget set; None where no class is wholly forgotten."""
    forget = readings["forget"]
    lost = ~np.isin(forget.labels, readings["retain"].labels)
    return accuracy(forget.predictions, forget.labels, lost) if lost.any() else None


def _accuracies(metrics: Metrics, readings: Readings, forgotten: npt.NDArray[np.int64]) -> None:
    for role in ("forget", "retain"):
        metrics[f"acc_{role}"] = accuracy(readings[role].predictions, readings[role].labels)
    for role in ("val", "test"):
        if role not in readings:
            metrics.missing[f"acc_{role}"] = f"the {role} set was not read"
            continue
        reading = readings[role]
        known = ~np.isin(reading.labels, forgotten)
        if known.any():
            metrics[f"acc_{role}"] = accuracy(reading.predictions, reading.labels, known)
        else:
            metrics.missing[f"acc_{role}"] = f"every class of the {role} set is wholly forgotten"
        if role == "test":
            if not len(forgotten):
                metrics.missing["acc_test_forgotten"] = "no class is wholly forgotten"
            elif known.all():
                metrics.missing["acc_test_forgotten"] = "the wholly forgotten classes do not occur in the test set"
            else:
                metrics["acc_test_forgotten"] = accuracy(reading.predictions, reading.labels, ~known)


def _attack(metrics: Metrics, readings: Readings, forgotten: npt.NDArray[np.int64], seed: int) -> None:
    forget, test = readings["forget"], readings["test"]
    nonmembers = ~np.isin(test.labels, forgotten)
    attack = membership_attack(
        readings["retain"].entropies,
        forget.entropies,
        test.entropies,
        labels_forget=forget.labels,
        labels_test=test.labels,
        num_classes=len(test.class_sums),
        nonmembers=nonmembers,
        seed=seed,
    )
    if attack is None:
        for key in ("mia", "mia_test", "mia_excess"):
            metrics.missing[key] = "every test sample belongs to a wholly forgotten class: the attack has no non-member"
        return
    metrics["mia"] = attack.mia
    if attack.mia_test is not None and attack.mia_excess is not None:
        metrics["mia_test"], metrics["mia_excess"] = attack.mia_test, attack.mia_excess
    else:
        shared = np.isin(test.labels, forget.labels).any()
        reason = "the attack has a single non-member, and at least two are needed" if shared else UNMATCHED
        metrics.missing["mia_test"] = metrics.missing["mia_excess"] = reason


def _two_sided(metrics: Metrics, forget: Reading, test: Reading, num_classes: int, seed: int) -> None:
    weights_forget, weights_test = class_matched_weights(forget.labels, test.labels, num_classes)
    matched = int((weights_forget > 0).sum())
    metrics.counts["mia_auc_forget_left_out"] = len(forget.labels) - matched
    interval = two_sided_auc(
        forget.entropies, test.entropies, forget.labels, test.labels, num_classes, seed=seed, resamples=1000
    )
    if interval is None:
        for key in ("mia_auc", "mia_auc_low", "mia_auc_high"):
            metrics.missing[key] = f"{matched} forgotten samples have a class of the test set, and 10 are needed"
    else:
        metrics.update(mia_auc=interval.auc, mia_auc_low=interval.low, mia_auc_high=interval.high)
    if matched:
        metrics["entropy_ks"] = entropy_ks(forget.entropies, test.entropies, weights_forget, weights_test)
    else:
        metrics.missing["entropy_ks"] = UNMATCHED


def _retrain_free(
    metrics: Metrics,
    forget: Reading,
    retain: Reading,
    test: Reading,
    original_test: Reading | None,
    classes: npt.NDArray[np.int64],
) -> None:
    usable = classes[np.isin(classes, test.labels) & np.isin(classes, retain.labels)]
    metrics.counts["rf_jsd_classes_left_out"] = len(classes) - len(usable)
    reason = None
    if original_test is None:
        reason = "no original model was given"
    elif not np.isin(classes, retain.labels).any():
        reason = "no unseen reference for a wholly forgotten class"
    elif not len(usable):
        reason = "no retained class of the forget set occurs in the test set"
    if original_test is None or reason is not None:
        metrics.missing["rf_jsd"] = metrics.missing["rf_jsd_published"] = reason or ""
        return
    metrics["rf_jsd"] = rf_js_divergence(forget.class_sums, original_test.class_sums, usable)
    metrics["rf_jsd_published"] = js_divergence_published(
        class_means(forget.class_sums, usable), class_means(original_test.class_sums, usable)
    )


def _against_gold(metrics: Metrics, forget: Reading, gold: Readings | None, seed: int) -> None:
    keys = ("jsd", "jsd_published", "avg_gap", "avg_gap_excess")
    if gold is None:
        metrics.missing.update(dict.fromkeys(keys, "no gold model was given"))
        return
    ours, theirs = forget.probabilities, gold["forget"].probabilities
    if ours is None or theirs is None:
        raise ValueError("jsd needs the probabilities of the forget set: read it with keep_probabilities=True")
    metrics["jsd"] = float(js_divergence(ours, theirs).mean())
    metrics["jsd_published"] = js_divergence_published(ours, theirs)
    reference = Metrics()
    forgotten = _wholly_forgotten(gold["forget"], gold["retain"])
    _accuracies(reference, gold, forgotten)
    _attack(reference, gold, forgotten, seed)
    for key, mia_key in (("avg_gap", "mia"), ("avg_gap_excess", "mia_excess")):
        needed = (mia_key, "acc_forget", "acc_retain", "acc_test")
        reason = next((m.missing[k] for m in (metrics, reference) for k in needed if k in m.missing), None)
        if reason is None:
            metrics[key] = avg_gap(metrics, reference, mia_key=mia_key)
        else:
            metrics.missing[key] = reason
