"""How fast forgotten samples are learned again, beside unseen ones: what outputs hide comes back faster."""

from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from mlflow_unlearn.metrics import arrays


class RelearnTest(NamedTuple):
    """What the epochs of parts of both sets say.

    Attributes:
        ratio: of the epochs of forgotten parts to those of unseen ones, in the geometric mean; below 1 memory is left.
        p_value: two-sided, by all ways to draw the parts: exact where both sets are drawn alike.
    """

    ratio: float
    p_value: float


def epochs_until(losses: Sequence[float], target: float) -> float:
    """Epochs until a loss is down at ``target``: between two of them by a straight line through the logarithms.

    Args:
        losses: Mean losses before the first epoch and after each ``[E + 1]``, above 0.
        target: Above 0.

    Returns:
        At least 0; E where no loss is down there.

    Raises:
        ValueError: No loss, or values that are not above 0.

    Source: ours; counting epochs after RURK (NeurIPS 2025, arXiv 2601.22359, App. B.4).

    Example:
        >>> epochs_until([1.0, 0.1, 0.001], 0.01), epochs_until([0.5], 0.6), epochs_until([1.0, 0.9], 0.1)
        (1.5, 0.0, 1.0)
    """
    found = arrays.vector(losses, "losses")
    if found.size == 0 or not (found > 0).all() or not target > 0:
        raise ValueError(f"expected losses and a target above 0, got {list(losses)} and {target}.")
    down = np.flatnonzero(found <= target)
    if down.size == 0:
        return float(found.size - 1)
    last = int(down[0])
    if last == 0:
        return 0.0
    before, after = np.log(found[last - 1]), np.log(found[last])
    return float(last - 1 + (before - np.log(target)) / (before - after))


def relearn_test(forget: npt.ArrayLike, unseen: npt.ArrayLike) -> RelearnTest:
    """Whether parts of ``D_f`` take other times than parts of ``D_t``: ``mean log(1 + t)`` of the ones less the others.

    The chance is the share of all ways to call P of the 2 P parts forgotten in which the means differ as much.

    Args:
        forget: Epochs of the parts of ``D_f`` ``[P]``, at least 0.
        unseen: Epochs of as many parts of ``D_t`` ``[P]``, of the same size and classes.

    Returns:
        The ratio of ``1 + t`` in the geometric mean, and the chance.

    Raises:
        ValueError: Bad shapes, or negative epochs.

    Source: two-sided, since both faster and slower differ from retraining: RURK (NeurIPS 2025, arXiv 2601.22359); the
        exact permutation test: Fisher, 1935; with unseen samples as the control: ours.

    Example:
        >>> relearn_test([0.0, 0.0, 0.0], [3.0, 3.0, 3.0])
        RelearnTest(ratio=0.25, p_value=0.1)
    """
    own, other = arrays.vector(forget, "forget"), arrays.vector(unseen, "unseen")
    if own.size != other.size or own.size == 0 or min(own.min(), other.min()) < 0:
        raise ValueError(f"expected epochs of equally many parts, at least 0, got {own.tolist()} and {other.tolist()}.")
    logs = np.log1p(np.concatenate([own, other]))
    chosen = np.array(list(combinations(range(logs.size), own.size)))
    sums = logs[chosen].sum(axis=1)
    # The first choice is the one that was measured; half of all is what an even one would have.
    far = np.abs(sums - logs.sum() / 2)
    return RelearnTest(
        float(np.exp(logs[: own.size].mean() - logs[own.size :].mean())), float((far >= far[0] - 1e-9).mean())
    )
