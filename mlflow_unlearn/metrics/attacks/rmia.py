"""RMIA: how much likelier a model finds a label than models that never saw the sample."""

import numpy as np
import numpy.typing as npt

from mlflow_unlearn.metrics import arrays
from mlflow_unlearn.metrics.arrays import Floats

A = 0.3
"""What a mean over OUT references alone says of one over both kinds; the default of Privacy Meter."""


def log_ratios(log_p: npt.ArrayLike, log_p_references: npt.ArrayLike, a: float = A) -> Floats:
    """``log r = log p − log p̃`` with ``p̃ = ½ [(1 + a) · mean_k p_k + (1 − a)]`` over the references that left it out.

    ``a`` stands for references that would have been trained on it: with ``a = 1`` the mean is taken as it is, with
    ``a = 0`` half-way to 1.

    Args:
        log_p: Log-likelihoods of the labels under the audited model ``[N]``, nats, at most 0.
        log_p_references: Likewise under the references ``[K, N]``, NaN where one was trained on the sample.
        a: In ``[0, 1]``.

    Returns:
        ``log r [N]``, nats; large where the model knows what the references do not.

    Raises:
        ValueError: Bad shapes, values that are not finite or above 0, or ``a`` out of range.

    The score of the paper, the fraction of a population z with ``r(x) / r(z) ≥ γ``, has the order of ``r`` whatever γ
    and the population are, so that nothing that is told apart by it is not told apart by this.

    Source: Zarifzadeh, Liu and Shokri, ICML 2024 (arXiv 2312.03262), section 3 and appendix B.2.2 (offline).

    Example:
        >>> log_ratios(np.log([0.9, 0.5]), np.log([[0.5, 0.5], [0.7, 0.5]]), a=1.0).round(4).tolist()
        [0.4055, 0.0]
    """
    own = arrays.log_likelihoods(log_p, "log_p")
    references, _ = arrays.references(log_p_references, "log_p_references", own.size)
    if (references > 0).any():
        raise ValueError(f"log_p_references: a log-likelihood is at most 0, got {np.nanmax(references):.3g}.")
    if not 0.0 <= a <= 1.0:
        raise ValueError(f"a: expected a number in [0, 1], got {a}.")
    mixed = 0.5 * ((1 + a) * np.nanmean(np.exp(references), axis=0) + (1 - a))
    # A likelihood that float64 takes for 0 under every reference still gives a number.
    ratios: Floats = own - np.log(np.maximum(mixed, np.finfo(np.float64).tiny))
    return ratios
