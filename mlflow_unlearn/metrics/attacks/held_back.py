"""What retrained models differ by among themselves, and whether a model lies within it."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from mlflow_unlearn.metrics import arrays

LEAST_GOLDS = 4


class PredictionInterval(NamedTuple):
    """Where one more retrained model would lie with a chance of 95 %."""

    low: float
    high: float


def spread_of_golds(values: npt.ArrayLike) -> PredictionInterval:
    """``mean ± t_{K−1, .975} · s · √(1 + 1/K)`` of K gold standards' values of any metric.

    Their least and largest value would be left by one more of them in ``2 / (K + 1)`` of the cases.

    Args:
        values: Of K gold standards ``[K]``, K at least 4.

    Returns:
        The prediction interval for one more.

    Raises:
        ValueError: Fewer than 4 values, or values that are not finite.

    Source: the prediction interval of a normal sample, Student 1908.

    Example:
        >>> tuple(round(end, 3) for end in spread_of_golds([0.1, 0.2, 0.3, 0.4]))
        (-0.209, 0.709)
    """
    from scipy.stats import t as student

    found = arrays.vector(values, "values")
    if found.size < LEAST_GOLDS:
        raise ValueError(f"values: expected those of at least {LEAST_GOLDS} gold standards, got {found.size}.")
    half = student.ppf(0.975, found.size - 1) * found.std(ddof=1) * np.sqrt(1 + 1 / found.size)
    return PredictionInterval(float(found.mean() - half), float(found.mean() + half))


def margin_gap(log_odds: npt.ArrayLike, log_odds_golds: npt.ArrayLike) -> float:
    """How far a model's log odds lie from those of gold standards, in their own deviation, in the mean over samples.

    ``mean_i |m_i − mean_k m_{k,i}| / σ`` with ``σ²`` the variance between gold standards, pooled over samples. It is no
    KLoM, which takes distributions of many models by sample.

    Args:
        log_odds: Under the audited model ``[N]``.
        log_odds_golds: Under the gold standards ``[K, N]``, K at least 2.

    Returns:
        At least 0; of a gold standard beside K others about ``√(2 (1 + 1/K) / π)``.

    Raises:
        ValueError: Bad shapes, values that are not finite, fewer than two gold standards, or such that are all alike.

    Source: ours; after KLoM (Georgiev et al., ICLR 2025, arXiv 2410.23232) for few models.

    Example:
        >>> round(margin_gap([2.0, 2.0], [[0.0, 1.0], [2.0, 3.0]]), 6)
        0.353553
    """
    own = arrays.vector(log_odds, "log_odds")
    golds = arrays.matrix(log_odds_golds, "log_odds_golds", own.size)
    if len(golds) < 2:
        raise ValueError("log_odds_golds: expected those of at least two gold standards, got one.")
    deviation = float(np.sqrt(golds.var(axis=0, ddof=1).mean()))
    if deviation == 0.0:
        raise ValueError("log_odds_golds: the gold standards are all alike.")
    return float(np.abs(own - golds.mean(axis=0)).mean() / deviation)
