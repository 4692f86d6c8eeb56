"""How far two sets of softmax outputs are apart: Jensen-Shannon divergence and RF-JSD.

Natural logarithm throughout (units: nats), ``0 * log 0 = 0``. RF-JSD needs no more than the sum of the outputs of each
class, which add up batch by batch: row c is ``sum over x with label c of p(x)``.
"""

import math

import numpy as np
import numpy.typing as npt

from mlflow_unlearn.metrics import arrays
from mlflow_unlearn.metrics.arrays import Floats, Ints
from mlflow_unlearn.metrics.outputs import Computed, MetricInputs

LN2 = math.log(2.0)
SMALLEST = np.finfo(np.float64).smallest_subnormal
PUBLISHED_CLAMP = 1e-8


def js_divergence(p: npt.ArrayLike, q: npt.ArrayLike) -> Floats:
    """Jensen-Shannon divergence of each row, ``JSD(p, q) = KL(p || m) / 2 + KL(q || m) / 2`` with ``m = (p + q) / 2``.

    Against the gold standard, ``jsd`` is the mean over the forget set of ``JSD(f_u(x), f_g(x))``.

    Args:
        p: Probabilities ``[N, K]``, rows sum to 1.
        q: Probabilities ``[N, K]``, rows sum to 1.

    Returns:
        ``[N]``, nats, in ``[0, ln 2]``. Only float error is clipped (less than 1e-12 for float64 rows).

    Raises:
        ValueError: ``p`` or ``q`` is not a non-empty ``[N, K]`` array of distributions, or their shapes differ.

    Source: Lin, Divergence measures based on the Shannon entropy, 1991; used by Spartalis et al., LoTUS, CVPR 2025
    (arXiv 2503.18314) to compare the unlearned with the gold standard model.

    Example:
        >>> js_divergence([[1.0, 0.0], [0.3, 0.7]], [[0.0, 1.0], [0.3, 0.7]]).round(4).tolist()
        [0.6931, 0.0]
    """
    rows_p, rows_q = arrays.two_distributions(p, q)
    # p log(p / m) as p log(2 p / (p + q)): m itself would underflow to 0 under the smallest floats. In the place of 0
    # the smallest of them is divided by, and its logarithm taken: either is multiplied by 0.
    total = np.maximum(rows_p + rows_q, SMALLEST)
    terms = _times_log_of_ratio(rows_p, total) + _times_log_of_ratio(rows_q, total)
    bounded: Floats = np.clip(terms.sum(axis=1) / 2.0, 0.0, LN2)
    return bounded


def js_divergence_published(p: npt.ArrayLike, q: npt.ArrayLike) -> float:
    """What the published LoTUS code computes under the names JSD and RF-JSD, for comparison with the paper's tables.

    It clamps both matrices at 1e-8 from below, divides each by its total, takes KL the other way round and divides by
    the number of rows again. With ``P = max(p, 1e-8) / sum``, ``Q`` likewise and ``M = (P + Q) / 2``::

        1 / (2 R) * sum_rk M_rk [log(M_rk / P_rk) + log(M_rk / Q_rk)]

    The total of R distributions is R, so ``P = p / R`` and ``M = m / R``; the R cancels inside the logarithms and stays
    once in front, which leaves, up to the clamp::

        1 / (2 R^2) * sum_r [KL(m_r || p_r) + KL(m_r || q_r)],    m_r = (p_r + q_r) / 2

    For ``jsd_published`` the rows are the outputs on the forget set (R = Nf), for ``rf_jsd_published`` they are
    the class means of :func:`class_means` (R = number of classes). Never use it as the main value: it shrinks
    with R, and where supports are disjoint its size is set by the clamp.

    Args:
        p: Probabilities ``[R, K]``, rows sum to 1.
        q: Probabilities ``[R, K]``, rows sum to 1.

    Returns:
        One number, nats, at least 0, not bounded by ln 2; the paper's tables show it times 1e4.

    Raises:
        ValueError: ``p`` or ``q`` is not a non-empty ``[R, K]`` array of distributions, or their shapes differ.

    Source: behaviour of the code published with Spartalis et al., LoTUS, CVPR 2025 (arXiv 2503.18314).

    Example:
        >>> round(js_divergence_published([[0.5, 0.5]], [[0.25, 0.75]]), 6)
        0.034841
        >>> round(js_divergence_published([[0.5, 0.5]] * 10, [[0.25, 0.75]] * 10), 7)
        0.0034841
    """
    rows_p, rows_q = arrays.two_distributions(p, q)
    whole_p, whole_q = _published_matrix(rows_p), _published_matrix(rows_q)
    middle = (whole_p + whole_q) / 2.0
    terms: Floats = middle * (2.0 * np.log(middle) - np.log(whole_p) - np.log(whole_q))
    return max(float(terms.sum()) / (2.0 * len(rows_p)), 0.0)


def class_means(sums: npt.ArrayLike, classes: npt.ArrayLike) -> Floats:
    """Mean softmax output of each given class, from running sums: row c of ``sums``, renormalised to sum 1.

    Args:
        sums: Class sums ``[K, K]``; row c is 0 where no sample has label c.
        classes: The classes to take ``[C]``, distinct integers in ``[0, K)``.

    Returns:
        ``[C, K]``, row i belongs to ``classes[i]``.

    Raises:
        ValueError: Bad shapes, a class twice, or a class whose row of ``sums`` is 0 (no sample has that label).

    Source: ``P_c`` and ``Q_c`` of RF-JSD, Spartalis et al., LoTUS, CVPR 2025 (arXiv 2503.18314).

    Example:
        >>> class_means([[0.0, 0.0], [0.5, 1.5]], [1]).tolist()
        [[0.25, 0.75]]
    """
    rows = arrays.non_negative(sums, "sums")
    if rows.shape[0] != rows.shape[1]:
        raise ValueError(f"sums: expected shape [K, K], got {list(rows.shape)}.")
    chosen = arrays.indices(classes, "classes", len(rows))
    if np.unique(chosen).size != chosen.size:
        raise ValueError("classes: each class may occur once.")
    totals = rows[chosen].sum(axis=1, keepdims=True)
    if (totals == 0.0).any():
        missing = chosen[totals[:, 0] == 0.0].tolist()
        raise ValueError(f"classes: no sample of the classes {missing} in the sums.")
    means: Floats = rows[chosen] / totals
    return means


def rf_js_divergence(forget_sums: npt.ArrayLike, test_sums: npt.ArrayLike, classes: npt.ArrayLike) -> float:
    """Retrain-free JSD: ``rf_jsd = mean over classes c of JSD(P_c, Q_c)``.

    ``P_c`` is the mean of ``softmax f_u(x)`` over the forget samples of class c, ``Q_c`` the mean of ``softmax f_o(x)``
    over the test samples of class c, each renormalised to sum 1. The optimum is 0. ``classes`` must be those that occur
    in the forget set, in the test set and in the retain set: a wholly forgotten class has no unseen reference, and with
    it the metric would reward a model that still knows the class.

    Args:
        forget_sums: ``[K, K]``, class sums of the *unlearned* model's outputs on the forget set.
        test_sums: ``[K, K]``, class sums of the *original* model's outputs on the test set.
        classes: The classes to take ``[C]``, distinct integers in ``[0, K)``, at least one.

    Returns:
        One number, nats, in ``[0, ln 2]``.

    Raises:
        ValueError: Bad shapes, no class, a class twice, or a class without samples in one of the sums.

    Source: Spartalis et al., LoTUS, CVPR 2025 (arXiv 2503.18314), the RF-JSD metric; the condition on the retain set
    is ours.

    Example:
        >>> forget = [[0.9, 0.1], [0.2, 0.8]]
        >>> test = [[1.6, 0.4], [0.2, 0.8]]  # class 0 has two samples
        >>> round(rf_js_divergence(forget, test, [0, 1]), 6)
        0.004983
    """
    return float(js_divergence(class_means(forget_sums, classes), class_means(test_sums, classes)).mean())


def usable_classes(inputs: MetricInputs) -> Ints:
    """The classes of the forget set that occur in the test set and in the retain set ``[C]``: those of RF-JSD."""
    forget, retain, test = (inputs.model[split].labels for split in ("forget", "retain", "test"))
    return np.intersect1d(np.intersect1d(forget, test), retain)


def from_original(inputs: MetricInputs) -> Computed:
    """``rf_jsd`` and ``rf_jsd_published``, nats: the unlearned model on forgotten data, the original on unseen data.

    Source: as of :func:`rf_js_divergence` and :func:`js_divergence_published`.
    """
    forget, retain = inputs.model["forget"], inputs.model["retain"]
    classes, reason = usable_classes(inputs), None
    if not np.isin(forget.labels, retain.labels).any():
        reason = "no unseen reference for a wholly forgotten class"
    elif not len(classes):
        reason = "no retained class of the forget set occurs in the test set"
    if reason is not None:
        return {"rf_jsd": reason, "rf_jsd_published": reason}
    ours, theirs = forget.class_sums, inputs.original["test"].class_sums
    return {
        "rf_jsd": rf_js_divergence(ours, theirs, classes),
        "rf_jsd_published": js_divergence_published(class_means(ours, classes), class_means(theirs, classes)),
    }


def from_gold(inputs: MetricInputs) -> Computed:
    """``jsd`` and ``jsd_published``, nats: the unlearned model and the gold standard on the forget set.

    Raises:
        ValueError: the probabilities of the forget set were not kept.

    Source: as of :func:`js_divergence` and :func:`js_divergence_published`.
    """
    ours, theirs = inputs.model["forget"].probabilities, inputs.gold["forget"].probabilities
    if ours is None or theirs is None:
        raise ValueError("jsd needs the probabilities of the forget set: evaluate it with keep_probabilities=True")
    return {"jsd": float(js_divergence(ours, theirs).mean()), "jsd_published": js_divergence_published(ours, theirs)}


def _times_log_of_ratio(rows: Floats, total: Floats) -> Floats:
    """``p log(2 p / total)``."""
    terms: Floats = rows * np.log(np.maximum(2.0 * (rows / total), SMALLEST))
    return terms


def _published_matrix(rows: Floats) -> Floats:
    """Clamp from below and divide the whole matrix by its total."""
    clamped = np.maximum(rows, PUBLISHED_CLAMP)
    whole: Floats = clamped / clamped.sum()
    return whole
