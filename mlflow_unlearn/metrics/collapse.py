"""Whether a model has collapsed: it no longer tells the retained classes apart, and its other metrics mean nothing."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from mlflow_unlearn.metrics import arrays
from mlflow_unlearn.metrics.accuracy import accuracy
from mlflow_unlearn.metrics.outputs import MetricInputs

COLLAPSED = "collapsed"
"""How the reason starts for which the metrics of such a model were not computed."""

SAME = 1e-6
"""Standard deviation of the margins within classes below which the samples of a class count as one."""


def chance_accuracy(labels: npt.ArrayLike) -> float:
    """The accuracy up to which a model may as well give every sample the largest class.

    ``p + 2 · sqrt(p · (1 − p) / N)`` with ``p = max_c N_c / N``: the fraction of the largest class and two standard
    errors of an accuracy of that size.

    Args:
        labels: Labels ``[N]``, integers.

    Returns:
        A fraction ``> 0``; above 1 where few samples leave no accuracy that would tell.

    Raises:
        ValueError: Bad shape or dtype, or no sample.

    Example:
        >>> chance_accuracy([0] * 50 + [1] * 50)
        0.6
    """
    found = arrays.integers(labels, "labels")
    share = float(np.unique(found, return_counts=True)[1].max() / found.size)
    return share + 2 * float(np.sqrt(share * (1 - share) / found.size))


def spread_within_classes(values: npt.ArrayLike, labels: npt.ArrayLike) -> float | None:
    """The standard deviation around each class's mean, over all classes.

    ``sqrt(Σ_c Σ_{i in c} (v_i − v̄_c)² / (N − C))`` for N values of C classes.

    Args:
        values: ``[N]``.
        labels: ``[N]``, integers.

    Returns:
        A number in the units of the values, or ``None`` where every value is the only one of its class.

    Raises:
        ValueError: Bad shapes or dtypes, or values that are not finite.

    Example:
        >>> spread_within_classes([1.0, 3.0, 10.0, 12.0], [0, 0, 1, 1])
        1.4142135623730951
    """
    found = arrays.vector(values, "values")
    _, classes, counts = np.unique(arrays.integers(labels, "labels"), return_inverse=True, return_counts=True)
    if found.size == counts.size:
        return None
    offsets = found - (np.bincount(classes, found) / counts)[classes]
    return float(np.sqrt((offsets**2).sum() / (found.size - counts.size)))


def collapse(inputs: MetricInputs) -> str | None:
    """Why a model counts as collapsed, or None: by its outputs on the retain and the test set.

    Either its margins do not differ within the classes of both sets (:func:`spread_within_classes` below 1e-6), or its
    accuracy on the retain set is at most :func:`chance_accuracy`; the latter only where at least two classes are
    retained, and some accuracy would be above it. On such a model a membership attack finds nothing, so that
    ``mia_advantage`` would be within its null and ``mia_auc`` 0.5: the ideal values.

    Source: ours.
    """
    sets = [inputs.model[split] for split in ("retain", "test") if split in inputs.model]
    margins, labels = (np.concatenate([getattr(one, name) for one in sets]) for name in ("margins", "labels"))
    spread = spread_within_classes(margins, labels) if len(labels) else None
    if spread is not None and spread < SAME:
        return f"{COLLAPSED}: every sample of a class is given the same margin"
    retain = inputs.model.get("retain")
    if retain is None or len(np.unique(retain.labels)) < 2:
        return None
    found, chance = accuracy(retain.predictions, retain.labels), chance_accuracy(retain.labels)
    if found > chance or chance >= 1:
        return None
    return f"{COLLAPSED}: acc_retain {found:.4f} is at most {chance:.4f}, the share of the largest class + 2 SE"


def stated_collapse(reasons: Mapping[str, str]) -> str | None:
    """What `collapse` gave, among the reasons why metrics were not computed, by metric."""
    return next((reason for reason in reasons.values() if reason.startswith(COLLAPSED)), None)
