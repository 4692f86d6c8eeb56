"""Accuracy, and the gap to the gold standard that is averaged over accuracies and the membership attack."""

from collections.abc import Mapping

import numpy.typing as npt

from mlflow_unlearn.metrics import _arrays

GAP_ACCURACIES = ("acc_forget", "acc_retain", "acc_test")


def accuracy(predictions: npt.ArrayLike, labels: npt.ArrayLike, mask: npt.ArrayLike | None = None) -> float:
    """Share of samples whose predicted class is the label, ``mean_i [prediction_i = label_i]``.

    Args:
        predictions: Predicted classes ``[N]``, integers.
        labels: Labels ``[N]``, integers.
        mask: The samples that count ``[N]``, bool; all of them without it. ``acc_test`` and ``acc_val`` leave wholly
            forgotten classes out this way, ``acc_test_forgotten`` takes them alone.

    Returns:
        A share in ``[0, 1]``.

    Raises:
        ValueError: Bad shapes or dtypes, or no sample to count.

    Source: the ACC columns of Spartalis et al., LoTUS, CVPR 2025 (arXiv 2503.18314); the mask is ours.

    Example:
        >>> accuracy([0, 1, 2, 2], [0, 1, 1, 2])
        0.75
        >>> accuracy([0, 1, 2, 2], [0, 1, 1, 2], mask=[False, False, True, True])
        0.5
    """
    predicted = _arrays.integers(predictions, "predictions")
    actual = _arrays.integers(labels, "labels")
    if predicted.shape != actual.shape:
        raise ValueError(f"predictions and labels must have one length, got {predicted.size} and {actual.size}.")
    hits = predicted == actual
    if mask is not None:
        hits = hits[_arrays.mask(mask, "mask", actual.size)]
    if hits.size == 0:
        raise ValueError("mask: no sample is left to count.")
    return float(hits.mean())


def avg_gap(unlearned: Mapping[str, float | None], gold: Mapping[str, float | None], *, mia_key: str = "mia") -> float:
    """Mean distance to the gold standard: of ``|mia_u - mia_g|`` and ``|acc_u - acc_g|`` on forget, retain and test.

    ``avg_gap`` as published takes ``mia_key="mia"``, ``avg_gap_excess`` is the same with ``mia_key="mia_excess"``,
    which does not follow the overall confidence of the model.

    Args:
        unlearned: Metrics of the unlearned model: ``mia_key``, ``acc_forget``, ``acc_retain``, ``acc_test``. Others
            are not looked at.
        gold: The same metrics of the gold standard.
        mia_key: Name of the membership term.

    Returns:
        One number in the units of the terms (shares); 0 is the optimum.

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
        ours = unlearned.get(key)
        theirs = gold.get(key)
        if ours is None or theirs is None:
            raise ValueError(f"{key}: missing in the metrics of the {'unlearned' if ours is None else 'gold'} model.")
        gaps.append(abs(ours - theirs))
    return sum(gaps) / len(gaps)
