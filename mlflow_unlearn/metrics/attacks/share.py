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
        golds: how many there are.
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
    quadrature, by ``1.96 s √(1 + 1/K) / (TPR − FPR)`` for what one retrained model differs by from K others as a whole,
    with s the ``shift``.

    Args:
        signal: Of ``D_f`` under the audited model ``[N]``, large for members.
        signal_original: Under the original ``[N]``.
        signal_golds: Under the gold standards ``[K, N]``.
        shift: Standard deviation, between models that were not trained on them, of the rate at which samples are called
            member; at least 0.
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
    own, before = arrays.vector(signal, "signal"), arrays.vector(signal_original, "signal_original")
    retrained = arrays.matrix(signal_golds, "signal_golds", own.size)
    if own.size != before.size or not shift >= 0.0:
        raise ValueError(
            f"expected signals of the same {own.size} samples and a shift of at least 0, got {before.size} and {shift}."
        )
    threshold = best_threshold(before, retrained)
    rates = np.stack([own >= threshold, before >= threshold, (retrained >= threshold).mean(axis=0)])
    current, true, false = map(float, rates.mean(axis=1))
    if true - false < LEAST_MEMORY:
        return NO_MEMORY
    value = (current - false) / (true - false)
    # Samples that the same models call member are alike, so that a resample is how many of each kind it has.
    kinds, counts = np.unique(rates, axis=1, return_counts=True)
    draws = np.random.default_rng(seed).multinomial(own.size, counts / own.size, size=RESAMPLES)
    drawn = _debiased(*(kinds @ draws.T / own.size))
    low, high = np.nanquantile(drawn, [0.025, 0.975])
    wide = 1.96 * shift * np.sqrt(1 + 1 / len(retrained)) / (true - false)
    return Share(
        value=value,
        low=float(value - np.hypot(value - low, wide)),
        high=float(value + np.hypot(high - value, wide)),
        threshold=threshold,
        tpr=true,
        fpr=false,
        golds=len(retrained),
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
