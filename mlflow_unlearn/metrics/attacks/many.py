"""What many models allow: distributions by sample, of models made in the same way and of retrained ones."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from mlflow_unlearn.metrics import arrays
from mlflow_unlearn.metrics.arrays import Floats

LEAST_MODELS = 16
"""Of each kind: histograms and Gaussians of fewer are noise."""
PERMUTATIONS = 200
BINS = 20
CLIP = 100.0
"""Log odds beyond which KLoM does not look."""
SMOOTHED = 1e-5
"""Of a bin's probability, added where a model of the other kind lies in it."""
FLOOR = 1e-6
"""Of a standard deviation."""


def u_lira(unlearned: npt.ArrayLike, retrained: npt.ArrayLike) -> Floats:
    """U-LiRA: by sample one Gaussian of log odds for "trained, then unlearned" and one for "never seen".

    A model's score for sample i is ``log N(m_i; μ_u, σ_u) − log N(m_i; μ_r, σ_r)``, with the Gaussians of one half of
    the models of each kind and the scores of the other half, in turn. AUC_i is the share of pairs of an unlearned and
    a retrained model of the same half in which the unlearned one has the larger score, equal ones by half. (A model
    that is merely left out of its own Gaussian is pushed from it: then models that are alike would not be at 0.5.)

    Args:
        unlearned: Log odds ``[U, N]``, U at least 16.
        retrained: Log odds ``[K, N]`` of the same samples, K at least 16.

    Returns:
        AUC_i ``[N]``; their mean is 0.5 where both kinds are alike.

    Raises:
        ValueError: Bad shapes, values that are not finite, or too few models.

    Source: Hayes, Shumailov, Triantafillou, Khalifa and Papernot, SaTML 2025 (arXiv 2403.01218); the halves:
        ours.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> found = u_lira(rng.normal(3.0, 1.0, (16, 50)), rng.normal(0.0, 1.0, (16, 50)))
        >>> found.shape, bool(found.mean() > 0.95)
        ((50,), True)
    """
    own, other = _many(unlearned, retrained)
    even, odd = ((own[first::2], other[first::2]) for first in (0, 1))
    found: Floats = (_above(*even, *odd) + _above(*odd, *even)) / 2
    return found


def klom(unlearned: npt.ArrayLike, retrained: npt.ArrayLike) -> Floats:
    """KLoM: by sample the divergence ``KL(unlearned ‖ retrained)`` of the histograms of log odds, in nats.

    20 equal bins over the joint range of the sample's log odds, clipped at ± 100; to both shares of a bin 1e-5 is added
    where either is above 0.

    Args:
        unlearned: Log odds ``[U, N]``, U at least 16.
        retrained: Log odds ``[K, N]`` of the same samples, K at least 16.

    Returns:
        ``[N]``, at least about 0; 0 where both are alike.

    Raises:
        ValueError: Bad shapes, values that are not finite, or too few models.

    Source: Georgiev et al., ICLR 2025 (arXiv 2410.23232), App. E.1.

    Example:
        >>> models = np.arange(32.0).reshape(16, 2)
        >>> klom(models, models).round(9).tolist()
        [0.0, 0.0]
    """
    own, other = (np.clip(part, -CLIP, CLIP) for part in _many(unlearned, retrained))
    low, high = (edge(np.stack([edge(own, axis=0), edge(other, axis=0)]), axis=0) for edge in (np.min, np.max))
    # Where all are equal there is one bin.
    width = np.where(high > low, high - low, 1.0)
    shares = []
    for part in (own, other):
        bins = np.minimum((BINS * (part - low) / width).astype(int), BINS - 1)
        shares.append(np.stack([(bins == b).mean(axis=0) for b in range(BINS)]))
    p, q = (share + np.where(shares[0] + shares[1] > 0, SMOOTHED, 0.0) for share in shares)
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(p > 0, p * np.log(p / q), 0.0)
    found: Floats = terms.sum(axis=0)
    return found


def relabelled(
    statistic: Callable[[Floats, Floats], float], unlearned: npt.ArrayLike, retrained: npt.ArrayLike, *, seed: int
) -> Floats:
    """A statistic of both kinds where models are called unlearned by lot: its null, whatever they have in common.

    What samples of one model share, such as how sure it is of everything, an interval over samples would not count.

    Args:
        statistic: of log odds ``[U, N]`` and ``[K, N]``.
        unlearned: Log odds ``[U, N]``, U at least 16.
        retrained: Log odds ``[K, N]``, K at least 16.
        seed: of the lot.

    Returns:
        `PERMUTATIONS` values.

    Raises:
        ValueError: Bad shapes, values that are not finite, or too few models.

    Source: the permutation test (Fisher, 1935), over models.

    Example:
        >>> models = np.arange(32.0)[:, None]
        >>> relabelled(lambda a, b: float(a.mean() - b.mean()), models[:16], models[16:], seed=0).shape
        (200,)
    """
    own, other = _many(unlearned, retrained)
    every, random = np.vstack([own, other]), np.random.default_rng(seed)
    orders = (random.permutation(len(every)) for _ in range(PERMUTATIONS))
    return np.array([statistic(every[order[: len(own)]], every[order[len(own) :]]) for order in orders])


def _many(unlearned: npt.ArrayLike, retrained: npt.ArrayLike) -> tuple[Floats, Floats]:
    columns = np.shape(unlearned)[-1] if np.ndim(unlearned) == 2 else 0
    own = arrays.matrix(unlearned, "unlearned", columns)
    other = arrays.matrix(retrained, "retrained", columns)
    if min(len(own), len(other)) < LEAST_MODELS:
        raise ValueError(f"expected at least {LEAST_MODELS} models of each kind, got {len(own)} and {len(other)}.")
    return own, other


def _above(own: Floats, other: Floats, fitted_own: Floats, fitted_other: Floats) -> Floats:
    """By sample how often a model of the one kind has a larger score than one of the other."""
    gaussians = [
        (part.mean(axis=0), np.maximum(part.std(axis=0, ddof=1), FLOOR)) for part in (fitted_own, fitted_other)
    ]
    a, b = (_log_normal(part, *gaussians[0]) - _log_normal(part, *gaussians[1]) for part in (own, other))
    found: Floats = ((a[:, None] > b[None]) + 0.5 * (a[:, None] == b[None])).mean(axis=(0, 1))
    return found


def _log_normal(values: Floats, mean: Floats, deviation: Floats) -> Floats:
    found: Floats = -0.5 * ((values - mean) / deviation) ** 2 - np.log(deviation)
    return found
