"""The share of a forget set that a model still treats as trained on: the headline of an audit."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mlflow_unlearn.metrics import arrays
from mlflow_unlearn.metrics.arrays import Floats

LEAST_MEMORY = 0.05
"""Of what the original calls member beyond what gold does; below it nothing is measurable."""
RESAMPLES = 1000
NO_MEMORY = "the original shows no memory of these samples to this attack"


@dataclass(frozen=True)
class Share:
    """Share remembered, with its 95 % interval: 1 where nothing was done, 0 for retraining, below 0 beyond that.

    Attributes:
        value: ``(mean m̂_u − FPR) / (TPR − FPR)``.
        low: lower end.
        high: upper end, which rules look at.
        threshold: of the signal, at and above which a sample is called member.
        tpr: fraction of ``D_f`` that is called member under the original.
        fpr: under the gold standards, in the mean.
        golds: how many there are; with one, what they differ by is taken from unseen samples.
    """

    value: float
    low: float
    high: float
    threshold: float
    tpr: float
    fpr: float
    golds: int


def share_remembered(
    signal: npt.ArrayLike,
    signal_original: npt.ArrayLike,
    signal_golds: npt.ArrayLike,
    shift: float = 0.0,
    *,
    seed: int,
) -> Share | str:
    """Debias the rate at which ``D_f`` is called member: ``p̂ = (mean m̂_u − FPR) / (TPR − FPR)``.

    ``m̂_i = [s_i ≥ t]`` for any signal s, with the threshold t that has the largest ``TPR − FPR`` between ``D_f`` under
    the original (trained on it) and under the gold standards (not), the lowest of equal ones.

    The interval: percentiles of a bootstrap over the samples, drawn jointly for all models, widened on each side, in
    quadrature, by ``1.96 s √(1 + 1/K) / (TPR − FPR)`` for what gold standards differ by among themselves: s is the
    standard deviation of the rate among them, or what the caller knows of it (``shift``) where there is one only.

    Args:
        signal: Of ``D_f`` under the audited model ``[N]``, large for members; or ``[K, N]``, calibrated as gold k is.
        signal_original: Under the original, likewise.
        signal_golds: Under the gold standards ``[K, N]``, each calibrated without itself.
        shift: Standard deviation of the rate between gold standards where ``K = 1``, at least 0.
        seed: Seed of the bootstrap.

    Returns:
        The share, or why it cannot be measured: ``TPR − FPR`` is below 0.05.

    Raises:
        ValueError: Bad shapes, values that are not finite, or a negative shift.

    Source: Tong, Ye, Zarifzadeh and Shokri, ICLR 2025 (DUCI), for the estimator; with the original and gold as its
    references, and the interval: ours.

    Example:
        >>> original, gold = np.arange(100.0) + 50, np.arange(100.0)
        >>> share_remembered(original, original, [gold], seed=0).value
        1.0
        >>> share_remembered(gold, original, [gold], seed=0).value
        0.0
        >>> share_remembered(gold, gold, [gold], seed=0)
        'the original shows no memory of these samples to this attack'
    """
    golds = np.atleast_2d(np.asarray(signal_golds, dtype=np.float64))
    own, before, retrained = (
        arrays.matrix(np.atleast_2d(values), name, golds.shape[1])
        for values, name in ((signal, "signal"), (signal_original, "signal_original"), (golds, "signal_golds"))
    )
    if not {len(own), len(before)} <= {1, len(golds)} or not shift >= 0.0:
        raise ValueError(
            f"expected signals [N] or [{len(golds)}, N] and a shift of at least 0, got {list(own.shape)}, "
            f"{list(before.shape)} and {shift}."
        )
    threshold = best_threshold(before, retrained)
    called_golds = retrained >= threshold
    rates = np.stack([(own >= threshold).mean(axis=0), (before >= threshold).mean(axis=0), called_golds.mean(axis=0)])
    current, true, false = map(float, rates.mean(axis=1))
    if true - false < LEAST_MEMORY:
        return NO_MEMORY
    value = (current - false) / (true - false)
    # Samples that the same models call member are alike, so that a resample is how many of each kind it has.
    kinds, counts = np.unique(rates, axis=1, return_counts=True)
    size = golds.shape[1]
    draws = np.random.default_rng(seed).multinomial(size, counts / size, size=RESAMPLES)
    drawn = _debiased(*(kinds @ draws.T / size))
    low, high = np.nanquantile(drawn, [0.025, 0.975])
    between = float(called_golds.mean(axis=1).std(ddof=1)) if len(golds) > 1 else shift
    wide = 1.96 * between * np.sqrt(1 + 1 / len(golds)) / (true - false)
    return Share(
        value=value,
        low=float(value - np.hypot(value - low, wide)),
        high=float(value + np.hypot(high - value, wide)),
        threshold=threshold,
        tpr=true,
        fpr=false,
        golds=len(golds),
    )


def best_threshold(member: npt.ArrayLike, others: npt.ArrayLike) -> float:
    """The threshold with the largest ``TPR − FPR``, the lowest of equal ones.

    Args:
        member: Signals of members, any shape.
        others: Signals of non-members, any shape.

    Returns:
        One of the signals; at and above it a sample is called member.

    Source: Youden, Cancer 1950.

    Example:
        >>> best_threshold([1.0, 3.0, 4.0], [0.0, 1.0, 2.0])
        3.0
    """
    positive, negative = np.sort(np.ravel(member)), np.sort(np.ravel(others))
    grid = np.union1d(positive, negative)
    true = positive.size - np.searchsorted(positive, grid)
    false = negative.size - np.searchsorted(negative, grid)
    # Of whole numbers, in which equal ones are equal.
    return float(grid[np.argmax(true * negative.size - false * positive.size)])


def _debiased(own: Floats, before: Floats, golds: Floats) -> Floats:
    """``p̂``; NaN in a resample in which the original remembers nothing."""
    memory = np.asarray(before - golds)
    share: Floats = np.divide(own - golds, memory, out=np.full_like(memory, np.nan), where=memory > 0)
    return share
