"""How well scores tell forgotten samples from unseen ones: one number, its interval, its tail and its chance."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from mlflow_unlearn.metrics import arrays
from mlflow_unlearn.metrics.advantage import PERMUTATIONS, permutation_test
from mlflow_unlearn.metrics.arrays import Floats
from mlflow_unlearn.metrics.membership import MIN_FORGET_SAMPLES, AucInterval, class_matched_weights

FPR = 0.01
RATES = tuple(float(f"{rate:.4g}") for rate in np.logspace(-3, 0, 31))
"""Of false alarms, at which a curve is drawn."""
MANY = 20_000
"""Samples: a fifth of the permutations decide among as many."""
FALSE_ALARMS = 10
"""A rate of false alarms is resolved by so many of them: 1 % by 1,000 unseen samples."""


class Tail(NamedTuple):
    """True positive rate at a rate of false alarms, with its 95 % interval, all in ``[0, 1]``."""

    tpr: float
    low: float
    high: float


@dataclass(frozen=True)
class Detection:
    """What an attack's scores, high for members, say of ``D_f`` and ``D_t``.

    Attributes:
        n_forget: samples of ``D_f`` that have a class of ``D_t``.
        n_unseen: samples of ``D_t``.
        auc: class-matched; 0.5 where nothing is told apart, below it where forgotten samples look less seen than unseen
            ones.
        auc_low: lower end of its 95 % interval.
        auc_high: upper end.
        advantage: of the best threshold on either side, as ``mia_advantage``; on one, where only that counts.
        p_value: chance of that advantage where both sets are drawn alike, by permutation within classes.
        tail: at 1 % false alarms; None where there are too few unseen samples to resolve them.
        curve: true positive rates at the false alarms of `RATES`.
        half_width: of the shortest interval that holds half of all these scores.
    """

    n_forget: int
    n_unseen: int
    auc: float
    auc_low: float
    auc_high: float
    advantage: float
    p_value: float
    tail: Tail | None
    curve: tuple[float, ...]
    half_width: float = 1.0


def detect(
    scores_forget: npt.ArrayLike,
    scores_unseen: npt.ArrayLike,
    labels_forget: npt.ArrayLike,
    labels_unseen: npt.ArrayLike,
    num_classes: int,
    *,
    seed: int,
    one_sided: bool = False,
) -> Detection | None:
    """Everything of :class:`Detection` from the scores of one attack.

    The chance is exact where ``D_f`` and ``D_t`` were drawn from one pool and the score treats both alike.

    Args:
        scores_forget: Scores of ``D_f`` ``[Nf]``, high for members.
        scores_unseen: Scores of ``D_t`` ``[Nt]``.
        labels_forget: Labels of ``D_f`` ``[Nf]``, integers in ``[0, num_classes)``.
        labels_unseen: Labels of ``D_t`` ``[Nt]``, likewise.
        num_classes: Number of classes K.
        seed: Seed of the permutations: 1,000, or 200 of more than 20,000 samples.
        one_sided: Only larger scores of forgotten samples count.

    Returns:
        The values, or ``None`` if fewer than 10 samples of ``D_f`` have a class that occurs in ``D_t``.

    Raises:
        ValueError: Bad shapes, values that are not finite, or labels out of range.

    Source: as of :func:`auc_interval`, :func:`mlflow_unlearn.metrics.advantage.sides` and :func:`tail`.

    Example:
        >>> scores = np.arange(100.0)
        >>> found = detect(scores, scores, [0] * 100, [0] * 100, 1, seed=0)
        >>> round(found.auc, 9), found.advantage, found.p_value, found.tail
        (0.5, 0.0, 1.0, None)
    """
    forget, unseen = arrays.vector(scores_forget, "scores_forget"), arrays.vector(scores_unseen, "scores_unseen")
    matched, weights = class_matched_weights(labels_forget, labels_unseen, num_classes)
    if matched.size != forget.size or weights.size != unseen.size:
        raise ValueError(f"expected a label for each score, got {matched.size} and {weights.size}.")
    if matched.sum() < MIN_FORGET_SAMPLES:
        return None
    interval = auc_interval(forget[matched > 0], unseen, weights)
    permutations = PERMUTATIONS if forget.size + unseen.size <= MANY else PERMUTATIONS // 5
    advantage, p_value = permutation_test(
        forget,
        unseen,
        labels_forget,
        labels_unseen,
        num_classes,
        seed=seed,
        permutations=permutations,
        one_sided=one_sided,
    )
    return Detection(
        n_forget=int(matched.sum()),
        n_unseen=int((weights > 0).sum()),
        auc=interval.auc,
        auc_low=interval.low,
        auc_high=interval.high,
        advantage=advantage,
        p_value=p_value,
        tail=tail(forget[matched > 0], unseen, weights),
        curve=tuple(_above(forget[matched > 0], threshold) for threshold in thresholds(unseen, weights, RATES)),
        half_width=_shortest_half(np.concatenate([forget[matched > 0], unseen[weights > 0]])),
    )


def _shortest_half(scores: Floats) -> float:
    """Its length: a scale that neither tails nor a second cluster of wrong answers widen."""
    ordered, count = np.sort(scores), -(-scores.size // 2)
    return float((ordered[count - 1 :] - ordered[: ordered.size - count + 1]).min())


def auc_interval(scores_forget: npt.ArrayLike, scores_unseen: npt.ArrayLike, weights: npt.ArrayLike) -> AucInterval:
    """Chance that a forgotten sample has a larger score than an unseen one, with a 95 % interval.

    With ``V_i`` the weighted fraction of ``D_t`` below the score of forgotten sample i, equal ones by half, and ``U_j``
    the fraction of ``D_f`` above that of unseen sample j: ``AUC = mean_i V_i``, ``Var = var(V) / Nf + Σ_j w_j² (U_j −
    AUC)² / (Σ_j w_j)²``, and the interval ``AUC ± 1.96 √Var``, cut at 0 and 1.

    Args:
        scores_forget: Scores of ``D_f`` ``[Nf]``, Nf at least 2, high for members.
        scores_unseen: Scores of ``D_t`` ``[Nt]``.
        weights: Of the unseen samples ``[Nt]``, not negative, not all 0.

    Returns:
        The area and the ends of its interval.

    Source: DeLong, DeLong and Clarke-Pearson, Biometrics 1988; the weights: ours.

    Example:
        >>> [round(value, 3) for value in auc_interval([1.0, 3.0, 5.0], [0.0, 2.0, 4.0], [1.0, 1.0, 1.0])]
        [0.667, 0.18, 1.0]
    """
    forget, unseen = arrays.vector(scores_forget, "scores_forget"), arrays.vector(scores_unseen, "scores_unseen")
    counted = arrays.vector(weights, "weights")
    above_unseen = _below(forget, unseen, counted / counted.sum())
    above_forget = 1 - _below(unseen, forget, np.full(forget.size, 1 / forget.size))
    auc = float(above_unseen.mean())
    variance = above_unseen.var(ddof=1) / forget.size
    variance += float((counted**2 * (above_forget - auc) ** 2).sum() / counted.sum() ** 2)
    half = 1.96 * float(np.sqrt(variance))
    return AucInterval(auc, max(0.0, auc - half), min(1.0, auc + half))


def _below(scores: Floats, others: Floats, weights: Floats) -> Floats:
    """For each score the weight of the others below it, and half of that of equal ones."""
    order = np.argsort(others, kind="stable")
    cumulative = np.concatenate([[0.0], np.cumsum(weights[order])])
    ends = [np.searchsorted(others[order], scores, side=side) for side in ("left", "right")]
    found: Floats = (cumulative[ends[0]] + cumulative[ends[1]]) / 2
    return found


def tail(
    scores_forget: npt.ArrayLike, scores_unseen: npt.ArrayLike, weights: npt.ArrayLike, fpr: float = FPR
) -> Tail | None:
    """True positive rate at the threshold above which ``fpr`` of the unseen samples lie.

    The threshold is the lowest score ``t`` at which the weighted fraction of ``D_t`` with a score above ``t`` is at
    most ``fpr``; the rate is the fraction of ``D_f`` above it. The interval is that of Clopper and Pearson, which
    takes the threshold as known.

    Args:
        scores_forget: Scores of ``D_f`` ``[Nf]``, high for members.
        scores_unseen: Scores of ``D_t`` ``[Nt]``.
        weights: Of the unseen samples ``[Nt]``, not negative.
        fpr: Rate of false alarms, in ``(0, 1)``.

    Returns:
        The rate and its interval; ``None`` where fewer than ``10 / fpr`` unseen samples have weight: not resolvable.

    Raises:
        ValueError: Bad shapes, values that are not finite, or ``fpr`` out of range.

    Source: Carlini et al., S&P 2022 (arXiv 2112.03570); Clopper and Pearson, Biometrika 1934.

    Example:
        >>> found = tail([2000.0, 5.0], np.arange(1000.0), np.ones(1000))
        >>> found.tpr, round(found.low, 4), round(found.high, 4)
        (0.5, 0.0126, 0.9874)
    """
    from scipy.stats import binomtest  # a second to import, and only audits need it

    forget, unseen = arrays.vector(scores_forget, "scores_forget"), arrays.vector(scores_unseen, "scores_unseen")
    counted = arrays.vector(weights, "weights")
    if not 0.0 < fpr < 1.0 or counted.size != unseen.size:
        raise ValueError(f"expected fpr in (0, 1) and a weight for each unseen sample, got {fpr} and {counted.size}.")
    if (counted > 0).sum() < math.ceil(FALSE_ALARMS / fpr):
        return None
    [threshold] = thresholds(unseen, counted, [fpr])
    found = int((forget > threshold).sum())
    interval = binomtest(found, forget.size).proportion_ci(0.95, method="exact")
    return Tail(found / forget.size, float(interval.low), float(interval.high))


def thresholds(scores_unseen: npt.ArrayLike, weights: npt.ArrayLike, rates: Sequence[float]) -> list[float]:
    """For each rate the lowest score above which at most that fraction of the unseen samples lies.

    Args:
        scores_unseen: Scores of ``D_t`` ``[Nt]``, high for members.
        weights: Of the unseen samples ``[Nt]``, not negative, not all 0.
        rates: Of false alarms, in ``(0, 1]``; at 1 every score is above.

    Returns:
        A threshold a rate.

    Source: Carlini et al., S&P 2022 (arXiv 2112.03570).

    Example:
        >>> thresholds([1.0, 2.0, 3.0, 4.0], [1.0, 1.0, 1.0, 1.0], [0.25, 0.5, 1.0])
        [3.0, 2.0, -inf]
    """
    values, inverse = np.unique(np.asarray(scores_unseen, dtype=np.float64), return_inverse=True)
    counts = np.bincount(inverse, np.asarray(weights, dtype=np.float64))
    values, above = np.concatenate([[-np.inf], values]), counts.sum() - np.cumsum(np.concatenate([[0.0], counts]))
    # What rounding leaves of a sum of weights is not a false alarm.
    return [float(values[np.argmax(above <= (rate + 1e-12) * counts.sum())]) for rate in rates]


def _above(scores: Floats, threshold: float) -> float:
    return float((scores > threshold).mean())


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for their number, so that the chance of any false alarm among them is at most the level.

    In ascending order ``p_(i)`` becomes ``max_{j≤i} min(1, (n − j + 1) p_(j))``.

    Args:
        p_values: Of the tests of one audit, each in ``[0, 1]``.

    Returns:
        The corrected values, in the order given.

    Raises:
        ValueError: A value outside ``[0, 1]``.

    Source: Holm, Scandinavian Journal of Statistics 1979.

    Example:
        >>> holm([0.03, 0.01, 0.5])
        [0.06, 0.03, 0.5]
    """
    if not all(0.0 <= p <= 1.0 for p in p_values):
        raise ValueError(f"expected p-values in [0, 1], got {list(p_values)}.")
    values: Floats = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(values, kind="stable")
    stepped = np.minimum(1.0, values[order] * np.arange(values.size, 0, -1))
    corrected = np.empty_like(values)
    corrected[order] = np.maximum.accumulate(stepped)
    return [float(value) for value in corrected]
