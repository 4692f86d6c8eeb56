"""How well does the best threshold on the margin of the true class tell forgotten samples from unseen ones?

Symbols: ``D_f`` forget set (Nf samples), ``D_t`` unseen set (Nt samples, never trained on), ``m`` the margin of a
sample, ``m = z_y − max_{j≠y} z_j`` of its logits z and its label y. Whatever multiplies all logits by one number keeps
the order of the margins, and nothing here depends on more than that order.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from mlflow_unlearn.metrics import arrays
from mlflow_unlearn.metrics.arrays import Bools, Floats, Ints
from mlflow_unlearn.metrics.membership import UNMATCHED, class_matched_weights
from mlflow_unlearn.metrics.outputs import Computed, MetricInputs

PERMUTATIONS = 1000
ROUNDING = 1e-12
"""What sums of the same weights in another order may differ by."""
CHUNK_BYTES = 1 << 18
"""Of one array of a few permutations, which the processor's cache holds."""


class Sides(NamedTuple):
    """The one-sided values, both in ``[0, 1]``.

    Attributes:
        residual: ``D⁺``: forgotten samples have larger margins, as members do.
        over: ``D⁻``: they have smaller ones.
    """

    residual: float
    over: float

    @property
    def advantage(self) -> float:
        """Of the best threshold, on whichever side."""
        return max(self)


SIDES = Sides._fields


class Null(NamedTuple):
    """What is left where forgotten and unseen samples are drawn alike.

    Attributes:
        mean: of the advantage; the noise floor.
        q80: its 80 % quantile.
        q95: its 95 % quantile.
        se: its standard deviation.
        auc_low: 2.5 % quantile of the AUC of the margin.
        auc_high: 97.5 % quantile of that.
    """

    mean: float
    q80: float
    q95: float
    se: float
    auc_low: float
    auc_high: float


@dataclass(frozen=True)
class Advantage:
    """The advantage of the best threshold with its null, and the AUC of the margin.

    Attributes:
        sides: the one-sided values; the larger one is ``mia_advantage``.
        auc: chance that a forgotten sample has a larger margin than an unseen one, classes matched, in ``[0, 1]``.
        null: of both under permutation.
    """

    sides: Sides
    auc: float
    null: Null


def sides(
    margins_forget: npt.ArrayLike,
    margins_test: npt.ArrayLike,
    labels_forget: npt.ArrayLike,
    labels_test: npt.ArrayLike,
    num_classes: int,
) -> Sides | None:
    """The one-sided, class-matched Kolmogorov-Smirnov statistics of the margins.

    ``D⁺ = max_t (TPR(t) − FPR(t))`` and ``D⁻ = max_t (FPR(t) − TPR(t))``, where ``TPR(t)`` is the weighted fraction of
    ``D_f`` with ``m ≥ t`` and ``FPR(t)`` that of ``D_t``, under :func:`class_matched_weights`. The larger one is the
    advantage of an attacker who knows the best threshold: 0 where none tells the sets apart, 1 where one does wholly.

    Args:
        margins_forget: Margins of ``D_f`` ``[Nf]``.
        margins_test: Margins of ``D_t`` ``[Nt]``.
        labels_forget: Labels of ``D_f`` ``[Nf]``, integers in ``[0, num_classes)``.
        labels_test: Labels of ``D_t`` ``[Nt]``, likewise.
        num_classes: Number of classes K.

    Returns:
        ``(D⁺, D⁻)``, or ``None`` if no class of ``D_f`` occurs in ``D_t`` (not computed).

    Raises:
        ValueError: Bad shapes, values that are not finite, or labels out of range.

    Source: the advantage of Yeom et al., CSF 2018 (arXiv 1709.01604), at the best threshold; the margin in logits after
    Carlini et al., S&P 2022 (arXiv 2112.03570); class matching is ours.

    Example:
        >>> sides([3.0, 4.0], [1.0, 2.0, 3.5, 5.0], [0, 0], [0, 0, 0, 0], 1)
        Sides(residual=0.5, over=0.25)
    """
    pool = _pool(margins_forget, margins_test, labels_forget, labels_test, num_classes)
    return None if pool is None else _own(pool)[0]


def advantage(
    margins_forget: npt.ArrayLike,
    margins_test: npt.ArrayLike,
    labels_forget: npt.ArrayLike,
    labels_test: npt.ArrayLike,
    num_classes: int,
    *,
    seed: int,
    permutations: int = PERMUTATIONS,
) -> Advantage | None:
    """:func:`sides`, the AUC of the margin, and the null of both under permutation within classes.

    Each permutation draws anew which of the samples of a class are the forgotten ones, as many as there are: what comes
    out where ``D_f`` and ``D_t`` were drawn alike, whatever the classes' margins are. A bootstrap interval would not
    do: a maximum over thresholds is biased upwards, and lies below its percentile interval in a quarter of the cases.

    Args:
        margins_forget: Margins of ``D_f`` ``[Nf]``.
        margins_test: Margins of ``D_t`` ``[Nt]``.
        labels_forget: Labels of ``D_f`` ``[Nf]``, integers in ``[0, num_classes)``.
        labels_test: Labels of ``D_t`` ``[Nt]``, likewise.
        num_classes: Number of classes K.
        seed: Seed of the permutations; the result does not depend on the order of the samples.
        permutations: How many are drawn.

    Returns:
        The values, or ``None`` if no class of ``D_f`` occurs in ``D_t`` (not computed). Quantiles are order statistics,
        rounded up: at most 5 % of the permutations are above ``null.q95``.

    Raises:
        ValueError: Bad shapes, values that are not finite, labels out of range, or ``permutations`` below 1.

    Source: as of :func:`sides`; the permutation test after Fisher, 1935.

    Example:
        >>> margins = np.arange(200.0)
        >>> found = advantage(margins, margins, [0] * 200, [0] * 200, 1, seed=0)
        >>> found.sides.advantage, found.auc, found.null.auc_low < 0.5 < found.null.auc_high
        (0.0, 0.5, True)
    """
    if permutations < 1:
        raise ValueError(f"permutations: expected at least 1, got {permutations}.")
    pool = _pool(margins_forget, margins_test, labels_forget, labels_test, num_classes)
    if pool is None:
        return None
    drawn = map(pool.statistics, pool.permuted(seed, permutations))
    residual, over, aucs = (np.concatenate(parts) for parts in zip(*drawn, strict=True))
    values = np.maximum(residual, over)
    q80, q95 = np.quantile(values, [0.8, 0.95], method="higher")
    low, _ = np.quantile(aucs, [0.025, 0.975], method="lower")
    _, high = np.quantile(aucs, [0.025, 0.975], method="higher")
    null = Null(float(values.mean()), float(q80), float(q95), float(values.std()), float(low), float(high))
    return Advantage(*_own(pool), null)


def permutation_test(
    scores_forget: npt.ArrayLike,
    scores_test: npt.ArrayLike,
    labels_forget: npt.ArrayLike,
    labels_test: npt.ArrayLike,
    num_classes: int,
    *,
    seed: int,
    permutations: int = PERMUTATIONS,
    one_sided: bool = False,
) -> tuple[float, float]:
    """The advantage of the best threshold on any score, and how likely chance alone gives as much.

    ``p = (1 + |{b : D_b ≥ D}|) / (1 + B)`` over B permutations as those of :func:`advantage`, with which it is exact:
    where both sets are drawn alike, ``p ≤ α`` in at most a fraction ``α`` of the cases.

    Args:
        scores_forget: Scores of ``D_f`` ``[Nf]``, such as margins.
        scores_test: Scores of ``D_t`` ``[Nt]``.
        labels_forget: Labels of ``D_f`` ``[Nf]``, integers in ``[0, num_classes)``.
        labels_test: Labels of ``D_t`` ``[Nt]``, likewise.
        num_classes: Number of classes K.
        seed: Seed of the permutations.
        permutations: How many are drawn.
        one_sided: D is ``D⁺``: only larger scores of forgotten samples count, as of a score that learned which are.

    Returns:
        ``(D, p)``.

    Raises:
        ValueError: Bad shapes, values that are not finite, labels out of range, ``permutations`` below 1, or no class
            of ``D_f`` in ``D_t``.

    Source: as of :func:`sides`; Phipson and Smyth, SAGMB 2010, for the 1 that is added.

    Example:
        >>> found = permutation_test(np.arange(50.0), np.arange(50.0) - 100, [0] * 50, [0] * 50, 1, seed=0)
        >>> [round(value, 6) for value in found]
        [1.0, 0.000999]
    """
    if permutations < 1:
        raise ValueError(f"permutations: expected at least 1, got {permutations}.")
    pool = _pool(scores_forget, scores_test, labels_forget, labels_test, num_classes)
    if pool is None:
        raise ValueError(f"{UNMATCHED}.")
    own = _own(pool)[0]
    found = own.residual if one_sided else own.advantage
    both = [pool.statistics(chosen)[:2] for chosen in pool.permuted(seed, permutations)]
    drawn = np.concatenate([residual if one_sided else np.maximum(residual, over) for residual, over in both])
    return found, (1 + int((drawn >= found - ROUNDING).sum())) / (1 + permutations)


def advantage_with_null(inputs: MetricInputs) -> Computed:
    """``mia_advantage`` with its sides and null, and ``mia_margin_auc`` with its own: :func:`advantage`.

    Source: as of :func:`advantage`.
    """
    forget, test = inputs.model["forget"], inputs.model["test"]
    found = advantage(forget.margins, test.margins, forget.labels, test.labels, len(test.class_sums), seed=inputs.seed)
    if found is None:
        return dict.fromkeys(_KEYS, UNMATCHED)
    null = found.null
    values = (found.sides.advantage, null.q95, null.mean, null.q80, null.se, *found.sides)
    return dict(zip(_KEYS, (*values, found.auc, null.auc_low, null.auc_high), strict=True))


def advantage_sides(inputs: MetricInputs) -> Computed:
    """The two sides alone, without a null, as the distance from gold takes them: :func:`sides`.

    Source: as of :func:`sides`.
    """
    forget, test = inputs.model["forget"], inputs.model["test"]
    found = sides(forget.margins, test.margins, forget.labels, test.labels, len(test.class_sums))
    return dict.fromkeys(SIDES, UNMATCHED) if found is None else found._asdict()


_KEYS = (
    *("mia_advantage", "mia_advantage_null", "mia_advantage_null_mean", "mia_advantage_null_80", "mia_advantage_se"),
    *("mia_advantage_residual", "mia_advantage_over", "mia_margin_auc", "mia_margin_auc_low", "mia_margin_auc_high"),
)


@dataclass(frozen=True)
class _Pool:
    """The samples of both sets that have weight, the largest margin first, and of equal ones the smallest class.

    Classes are renumbered from 0.
    """

    classes: Ints  # [N]
    forgotten: Bools  # [N]
    group_starts: Ints  # [G] the first of each run of equal margins
    weights_forget: Floats  # [N] what a sample counts among the forgotten, summing to 1 over them
    weights_test: Floats  # [N] likewise among the unseen

    def statistics(self, forgotten: Bools) -> tuple[Floats, Floats, Floats]:
        """``D⁺ [B]``, ``D⁻ [B]`` and AUC ``[B]`` for B choices ``[B, N]`` of the forgotten samples.

        By ``C = TPR − FPR``, which a forgotten sample raises and an unseen one lowers by what it counts, ``Δ``, with
        equal margins at once: ``AUC = ½ + ½ · Σ_g |Δ|_g · (C_{g−1} + C_g) / 2``.
        """
        steps = np.where(forgotten, self.weights_forget, -self.weights_test)
        sizes = np.abs(steps)
        if self.group_starts.size < self.classes.size:
            steps, sizes = (np.add.reduceat(values, self.group_starts, axis=1) for values in (steps, sizes))
        curve = np.cumsum(steps, axis=1)
        area = np.einsum("bg,bg->b", sizes, curve) - 0.5 * np.einsum("bg,bg->b", sizes, steps)
        # Above all thresholds, and at the last one, both rates are the same.
        # None is outside of [0, 1] but by rounding.
        residual, over, auc = (
            np.clip(values, 0.0, 1.0) for values in (curve.max(axis=1), -curve.min(axis=1), 0.5 + 0.5 * area)
        )
        return residual, over, auc

    def permuted(self, seed: int, permutations: int) -> Iterator[Bools]:
        """Choices ``[B, N]`` of as many forgotten samples of each class, all in all ``permutations`` rows."""
        rng = np.random.default_rng(seed)
        by_class = np.argsort(self.classes, kind="stable")
        back = np.argsort(by_class, kind="stable")
        ends = np.cumsum(np.bincount(self.classes))
        counts = np.bincount(self.classes, self.forgotten).astype(int)
        rows = max(1, CHUNK_BYTES // (8 * self.classes.size))
        for start in range(0, permutations, rows):
            # Drawn row by row, so that the draws do not depend on how many rows fit into a chunk.
            keys = rng.random((min(rows, permutations - start), self.classes.size))
            chosen = np.empty(keys.shape, dtype=np.bool_)
            for end, size, count in zip(ends, np.diff(ends, prepend=0), counts, strict=True):
                part = keys[:, end - size : end]
                bound = np.partition(part, count - 1, axis=1)[:, count - 1 : count]
                np.less_equal(part, bound, out=chosen[:, end - size : end])
            yield np.take(chosen, back, axis=1)


def _pool(
    margins_forget: npt.ArrayLike,
    margins_test: npt.ArrayLike,
    labels_forget: npt.ArrayLike,
    labels_test: npt.ArrayLike,
    num_classes: int,
) -> _Pool | None:
    forget, test = arrays.vector(margins_forget, "margins_forget"), arrays.vector(margins_test, "margins_test")
    classes_forget = arrays.indices(labels_forget, "labels_forget", num_classes, length=forget.size)
    classes_test = arrays.indices(labels_test, "labels_test", num_classes, length=test.size)
    weights = np.concatenate(class_matched_weights(classes_forget, classes_test, num_classes))
    kept = weights > 0
    if not kept.any():
        return None
    margins = np.concatenate([forget, test])[kept]
    _, classes = np.unique(np.concatenate([classes_forget, classes_test])[kept], return_inverse=True)
    forgotten = np.repeat([True, False], [forget.size, test.size])[kept]
    order = np.lexsort((forgotten, classes, -margins))
    margins, classes, forgotten = margins[order], classes[order], forgotten[order]
    # A class has the same part of both sets: as many forgotten samples of all as it has.
    counts_forget = np.bincount(classes, forgotten)
    counts_test = np.bincount(classes) - counts_forget
    share = counts_forget / counts_forget.sum()
    return _Pool(
        classes=classes,
        forgotten=forgotten,
        group_starts=np.flatnonzero(np.diff(margins, prepend=np.inf)),
        weights_forget=(share / counts_forget)[classes],
        weights_test=(share / counts_test)[classes],
    )


def _own(pool: _Pool) -> tuple[Sides, float]:
    """Of the samples that were forgotten."""
    residual, over, auc = (float(values[0]) for values in pool.statistics(pool.forgotten[None]))
    return Sides(residual, over), auc
