"""IAM: how far a sample has gone from having been trained on towards never having been seen."""

import numpy as np
import numpy.typing as npt

from mlflow_unlearn.metrics import arrays
from mlflow_unlearn.metrics.arrays import Floats

EPS_OUTER, EPS_INNER = 1e-2, 1e-5
STEPS = 100
EULER = 0.5772156649015329


def phi(log_p: npt.ArrayLike) -> Floats:
    """``φ = −log(ε₁ − log(ε₂ + p))`` with ``ε₁ = 10⁻², ε₂ = 10⁻⁵``: spreads likelihoods near 1.

    Args:
        log_p: Log-likelihoods of the labels, any shape, nats, at most 0.

    Returns:
        The signal, of the same shape.

    Raises:
        ValueError: Values above 0 or infinite.

    Source: Wang et al., USENIX Security 2025 (arXiv 2506.06112), section 4.

    Example:
        >>> phi(np.log([1.0, 0.5])).round(4).tolist()
        [4.6062, 0.3522]
    """
    values = np.asarray(log_p, dtype=np.float64)
    if np.isinf(values).any() or (values > 0).any():
        raise ValueError("log_p: expected log-likelihoods of at most 0, none infinite.")
    signal: Floats = -np.log(EPS_OUTER - np.log(EPS_INNER + np.exp(values)))
    return signal


def remembered(log_p: npt.ArrayLike, log_p_references: npt.ArrayLike, log_p_fit: npt.ArrayLike) -> Floats:
    """Where the audited model lies on the line from never seen (0) to trained on (1), by sample.

    For 100 values ``α`` from 0 to 1, the last one left out: ``line_k(α) = (1 − α) φ(p_k) + α φ(p_fit)``; a Gumbel
    distribution by its moments, the mean over k by sample, the standard deviation σ pooled over references and samples:
    ``β = σ √6 / π``, ``μ = mean − 0.5772 β``, ``F_α = exp(−exp(−(φ(p) − μ) / β))``; then the mean of ``F_α`` weighted
    by the next α of the grid. One less the score is the completeness of forgetting.

    Args:
        log_p: Log-likelihoods of the labels under the audited model ``[N]``, nats, at most 0.
        log_p_references: Under references ``[K, N]``, NaN where one was trained on the sample.
        log_p_fit: Under a model that has: the original's ``[N]`` (online), or one number (offline).

    Returns:
        Scores ``[N]``, in ``[0, 1]``.

    Raises:
        ValueError: Bad shapes, or values that are not finite or above 0.

    Source: Wang et al., USENIX Security 2025 (arXiv 2506.06112), Algorithm 1; the code of its authors for the grid, the
    pooled deviation and the weights. Values are not rescaled to [0, 1] beforehand, which leaves every F as it is.

    Example:
        >>> references = np.log([[0.2, 0.3, 0.4]])
        >>> scores = remembered(np.log([0.3, 0.9, 0.99]), references, np.log([0.99, 0.99, 0.99]))
        >>> bool((np.diff(scores) > 0).all())
        True
    """
    own = phi(arrays.log_likelihoods(log_p, "log_p"))
    references, _ = arrays.references(log_p_references, "log_p_references", own.size)
    out, fit = phi(references), phi(np.asarray(log_p_fit, dtype=np.float64))
    if fit.shape not in ((), own.shape):
        raise ValueError(f"log_p_fit: expected [{own.size}] or a number, got {list(fit.shape)}.")
    grid = np.linspace(0.0, 1.0, STEPS)
    score, weights = np.zeros(own.size), grid[1:]
    means = np.nanmean(out, axis=0)
    for alpha, weight in zip(grid[:-1], weights, strict=True):
        deviation = _deviation((1 - alpha) * out + alpha * fit)
        beta = deviation * np.sqrt(6.0) / np.pi
        location = (1 - alpha) * means + alpha * fit - EULER * beta
        # Beyond ±700 the double exponential is 0 or 1 anyhow.
        score += weight * np.exp(-np.exp(np.clip(-(own - location) / beta, -700.0, 700.0)))
    result: Floats = score / weights.sum()
    return result


def _deviation(lines: Floats) -> float:
    """Pooled over references and samples; of equal values that of the smallest difference that counts."""
    return max(float(np.nanstd(lines)), float(np.finfo(np.float32).eps))
