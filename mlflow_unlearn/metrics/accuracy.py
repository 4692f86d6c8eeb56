"""Accuracy, and the gap to the gold standard that is averaged over accuracies and the membership attack."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from mlflow_unlearn.metrics import arrays
from mlflow_unlearn.metrics.advantage import SIDES, advantage_sides
from mlflow_unlearn.metrics.membership import attack_fractions
from mlflow_unlearn.metrics.outputs import Compute, Computed, MetricInputs

GAP_ACCURACIES = ("acc_forget", "acc_retain", "acc_test")


def accuracy(predictions: npt.ArrayLike, labels: npt.ArrayLike, mask: npt.ArrayLike | None = None) -> float:
    """Fraction of samples whose predicted class is the label, ``mean_i [prediction_i = label_i]``.

    Args:
        predictions: Predicted classes ``[N]``, integers.
        labels: Labels ``[N]``, integers.
        mask: The samples that count ``[N]``, bool; all of them without it. ``acc_test`` and ``acc_val`` leave wholly
            forgotten classes out this way, ``acc_test_forgotten`` takes them alone.

    Returns:
        A fraction in ``[0, 1]``.

    Raises:
        ValueError: Bad shapes or dtypes, or no sample to count.

    Source: the ACC columns of Spartalis et al., LoTUS, CVPR 2025 (arXiv 2503.18314); the mask is ours.

    Example:
        >>> accuracy([0, 1, 2, 2], [0, 1, 1, 2])
        0.75
        >>> accuracy([0, 1, 2, 2], [0, 1, 1, 2], mask=[False, False, True, True])
        0.5
    """
    predicted, actual = arrays.integers(predictions, "predictions"), arrays.integers(labels, "labels")
    if predicted.shape != actual.shape:
        raise ValueError(f"predictions and labels must have one length, got {predicted.size} and {actual.size}.")
    hits = predicted == actual
    if mask is not None:
        hits = hits[arrays.mask(mask, "mask", actual.size)]
    if hits.size == 0:
        raise ValueError("mask: no sample is left to count.")
    return float(hits.mean())


def avg_gap(unlearned: Mapping[str, float | None], gold: Mapping[str, float | None], *, mia_key: str = "mia") -> float:
    """Mean distance to the gold standard: of ``|mia_u - mia_g|`` and ``|acc_u - acc_g|`` on forget, retain and test.

    ``avg_gap`` as published takes ``mia_key="mia"``, ``avg_gap_excess`` is the same with ``mia_key="mia_excess"``. Both
    terms follow the overall confidence of the model; that of ``avg_gap_advantage`` does not.

    Args:
        unlearned: Metrics of the unlearned model: ``mia_key``, ``acc_forget``, ``acc_retain``, ``acc_test``. Others
            are not looked at.
        gold: The same metrics of the gold standard.
        mia_key: Name of the membership term.

    Returns:
        One number in the units of the terms (fractions); 0 is the optimum.

    Raises:
        ValueError: One of the four values is missing or not computed (``None``) on either side.

    Source: Avg Gap, Spartalis et al., LoTUS, CVPR 2025 (arXiv 2503.18314), Table 1; the excess variant is ours.

    Example:
        >>> unlearned = {"mia": 0.8, "acc_forget": 1.0, "acc_retain": 1.0, "acc_test": 0.75}
        >>> gold = {"mia": 0.7, "acc_forget": 0.8, "acc_retain": 1.0, "acc_test": 0.85}
        >>> round(avg_gap(unlearned, gold), 6)
        0.1
    """
    gaps = []
    for key in (mia_key, *GAP_ACCURACIES):
        ours, theirs = unlearned.get(key), gold.get(key)
        if ours is None or theirs is None:
            raise ValueError(f"{key}: missing in the metrics of the {'unlearned' if ours is None else 'gold'} model.")
        gaps.append(abs(ours - theirs))
    return sum(gaps) / len(gaps)


def accuracies(inputs: MetricInputs) -> Computed:
    """``acc_X`` of each split X that was evaluated, and ``acc_test_forgotten``; fractions.

    On val and test the wholly forgotten classes are left out: else success would read as lost utility.

    Source: the ACC columns of Spartalis et al., LoTUS, CVPR 2025 (arXiv 2503.18314); leaving classes out is ours.
    """
    found: dict[str, float | str] = {}
    for split, outputs in inputs.model.items():
        key, predictions, labels = f"acc_{split}", outputs.predictions, outputs.labels
        if split in ("forget", "retain"):
            found[key] = accuracy(predictions, labels)
            continue
        kept = ~np.isin(labels, inputs.forgotten)
        reason = f"every class of the {split} set is wholly forgotten"
        found[key] = accuracy(predictions, labels, kept) if kept.any() else reason
        if split == "test":
            if not len(inputs.forgotten):
                found["acc_test_forgotten"] = "no class is wholly forgotten"
            elif kept.all():
                found["acc_test_forgotten"] = "the wholly forgotten classes do not occur in the test set"
            else:
                found["acc_test_forgotten"] = accuracy(predictions, labels, ~kept)
    return found


def average_gaps(inputs: MetricInputs) -> Computed:
    """``avg_gap`` and ``avg_gap_excess``: :func:`avg_gap` to the gold standard; fractions.

    One that lacks a term on either side is not computed, for that term's reason.

    Source: as of :func:`avg_gap`.
    """
    ours, theirs = _terms(inputs, attack_fractions)
    found: dict[str, float | str] = {}
    for key, mia_key in (("avg_gap", "mia"), ("avg_gap_excess", "mia_excess")):
        reason = _missing(ours, theirs, (mia_key, *GAP_ACCURACIES))
        found[key] = reason or avg_gap(_numbers(ours), _numbers(theirs), mia_key=mia_key)
    return found


def average_gap_advantage(inputs: MetricInputs) -> Computed:
    """``avg_gap_advantage``: mean distance to gold of three accuracies and of the best threshold's advantage; fraction.

    The mean of ``max(|D⁺_u − D⁺_g|, |D⁻_u − D⁻_g|)`` and ``|acc_u − acc_g|`` on forget, retain and test. By side, since
    an advantage of .1 on one side is far from one of .1 on the other. One that lacks a term on either side is not
    computed, for that term's reason.

    Source: ours, after Avg Gap, Spartalis et al., LoTUS, CVPR 2025 (arXiv 2503.18314).
    """
    ours, theirs = _terms(inputs, advantage_sides)
    reason = _missing(ours, theirs, (*SIDES, *GAP_ACCURACIES))
    if reason is not None:
        return {"avg_gap_advantage": reason}
    mine, golds = _numbers(ours), _numbers(theirs)
    attack = max(abs(mine[side] - golds[side]) for side in SIDES)
    return {"avg_gap_advantage": avg_gap({**mine, "attack": attack}, {**golds, "attack": 0.0}, mia_key="attack")}


def _terms(inputs: MetricInputs, attack: Compute) -> tuple[Computed, Computed]:
    """Accuracies and what an attack gives, of the model and of gold."""
    gold = MetricInputs(inputs.gold, seed=inputs.seed)
    ours, theirs = ({**side.once(accuracies), **side.once(attack)} for side in (inputs, gold))
    return ours, theirs


def _missing(ours: Computed, theirs: Computed, keys: Sequence[str]) -> str | None:
    """The first reason why a term was not computed."""
    terms = (side[key] for side in (ours, theirs) for key in keys)
    return next((term for term in terms if isinstance(term, str)), None)


def _numbers(computed: Computed) -> dict[str, float]:
    return {key: value for key, value in computed.items() if isinstance(value, float)}
