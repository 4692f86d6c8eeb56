"""Scores by a few references: where a sample's log odds lie in what never having been trained on predicts for it."""

import numpy as np
import numpy.typing as npt

from mlflow_unlearn.metrics import arrays
from mlflow_unlearn.metrics.arrays import Floats


def predictive_scores(
    log_odds: npt.ArrayLike, log_odds_references: npt.ArrayLike, labels: npt.ArrayLike, num_classes: int
) -> Floats:
    """CDF of the Student-t predictive distribution of each sample's log odds, at the audited model's value.

    By sample, normal with unknown mean and variance, a normal-inverse-gamma prior of strength 1 from the pool:
    ``κ₀ = α₀ = 1``, ``μ₀`` the mean of the sample's class, ``β₀`` the pooled variance within samples (with one
    reference: within classes). After the K references that left the sample out, with mean s̄:
    ``κ = κ₀ + K``, ``μ = (κ₀ μ₀ + Σ s) / κ``, ``α = α₀ + K / 2``,
    ``β = β₀ + ½ Σ (s − s̄)² + κ₀ K (s̄ − μ₀)² / (2 κ)``; the predictive has ``2 α`` degrees of freedom and the squared
    scale ``β (κ + 1) / (α κ)``.

    Args:
        log_odds: Under the audited model ``[N]``.
        log_odds_references: Under references ``[K, N]``, NaN where one was trained on the sample.
        labels: ``[N]``, integers in ``[0, num_classes)``.
        num_classes: Number of classes.

    Returns:
        Scores ``[N]`` in ``[0, 1]``: near 1 where the model is surer than the references predict, near 0 where less.
        ``2 min(F, 1 − F)`` is the two-sided value of a sample.

    Raises:
        ValueError: Bad shapes, values that are not finite, or labels out of range.

    Source: Brännvall, BaVarIA (arXiv 2603.11799), its t form; the conjugate update after Murphy, 2007; the prior: ours.

    Example:
        >>> references = [[0.0, 1.0], [0.5, 1.5], [1.0, 2.0]]
        >>> predictive_scores([0.5, 4.0], references, [0, 1], 2).round(3).tolist()
        [0.5, 0.998]
    """
    from scipy.stats import t as student

    own = arrays.vector(log_odds, "log_odds")
    references, k = arrays.references(log_odds_references, "log_odds_references", own.size)
    classes = arrays.indices(labels, "labels", num_classes, length=own.size)
    mean = np.nanmean(references, axis=0)
    counts = np.bincount(classes, minlength=num_classes)
    prior_mean = (np.bincount(classes, mean, minlength=num_classes) / np.maximum(counts, 1))[classes]
    within = np.nansum((references - mean) ** 2, axis=0)
    variance = within.sum() / (k - 1).sum() if (k > 1).any() else ((mean - prior_mean) ** 2).mean()
    # Of references that agree on every sample that of the smallest difference that counts.
    pooled = max(float(variance), float(np.finfo(np.float32).eps))
    kappa, alpha = 1.0 + k, 1.0 + k / 2
    location = (prior_mean + k * mean) / kappa
    beta = pooled + 0.5 * within + k * (mean - prior_mean) ** 2 / (2 * kappa)
    scale = np.sqrt(beta * (kappa + 1) / (alpha * kappa))
    scores: Floats = student.cdf((own - location) / scale, 2 * alpha)
    return scores
