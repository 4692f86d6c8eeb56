"""Can an attacker tell forgotten samples from unseen ones? The entropy of the softmax output is the only feature.

Symbols: ``D_f`` forget set (Nf samples), ``D_r`` retain set, ``D_t`` test set (Nt samples, never trained on).
"""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from mlflow_unlearn.metrics import arrays
from mlflow_unlearn.metrics.arrays import Bools, Floats, Ints
from mlflow_unlearn.metrics.outputs import Computed, MetricInputs

CROSS_FIT_BELOW = 100
FOLDS = 5
MIN_FORGET_SAMPLES = 10
WIDEST_DECIDED_INTERVAL = 0.1
CHUNK_BYTES = 64_000_000
UNMATCHED = "no class of the forget set occurs in the test set"

AucReading = Literal["residual", "over-forgotten", "undecided", "indistinguishable"]


@dataclass(frozen=True)
class MembershipAttack:
    """Result of the published attack on one model; all are fractions.

    Attributes:
        mia: Fraction of ``D_f`` called member. The target is the gold standard's value, not 0.
        mia_test: Class-matched fraction of ``D_t`` called member; ``None`` where no class of ``D_f`` occurs in ``D_t``.
        mia_excess: ``mia - mia_test``, in ``[-1, 1]``, ideal 0, either sign is a failure; ``None`` with ``mia_test``.
    """

    mia: float
    mia_test: float | None
    mia_excess: float | None


class AucInterval(NamedTuple):
    """A ROC AUC with its 95 % bootstrap interval, all in ``[0, 1]``."""

    auc: float
    low: float
    high: float


def class_matched_weights(
    labels_forget: npt.ArrayLike, labels_test: npt.ArrayLike, num_classes: int
) -> tuple[Floats, Floats]:
    """Weights under which ``D_f`` and ``D_t`` have the same class fractions.

    A test sample of class c weighs ``(fraction of c in D_f) / (fraction of c in D_t)``; a forget sample weighs 1, or 0
    if no test sample has its class: such samples drop out before the fractions in ``D_f`` are taken. Without the
    weights an AUC of 0.5 is not a null: a forget set of one hard class has higher entropies than the mixed test set
    under any model.

    Args:
        labels_forget: Labels of ``D_f`` ``[Nf]``, integers in ``[0, num_classes)``.
        labels_test: Labels of ``D_t`` ``[Nt]``, integers in ``[0, num_classes)``.
        num_classes: Number of classes K.

    Returns:
        ``(weights_forget [Nf] in {0, 1}, weights_test [Nt])``; ``weights_test`` has mean 1, or is all 0 where no class
        of ``D_f`` occurs in ``D_t``. The samples that dropped out are ``(weights_forget == 0).sum()``.

    Raises:
        ValueError: Bad shapes or labels out of range.

    Source: ours; the published evaluation compares the sets as they are.

    Example:
        >>> forget, test = class_matched_weights([0, 0, 0, 1, 2], [0, 1, 1, 3], num_classes=4)
        >>> forget.tolist()
        [1.0, 1.0, 1.0, 1.0, 0.0]
        >>> test.tolist()
        [3.0, 0.5, 0.5, 0.0]
    """
    classes_forget = arrays.indices(labels_forget, "labels_forget", num_classes)
    classes_test = arrays.indices(labels_test, "labels_test", num_classes)
    counts_test = np.bincount(classes_test, minlength=num_classes)
    matched = (counts_test > 0)[classes_forget]
    counts_forget = np.bincount(classes_forget, minlength=num_classes)
    scale = classes_test.size / max(int(matched.sum()), 1)
    per_class = counts_forget / np.maximum(counts_test, 1) * scale
    return np.where(matched, 1.0, 0.0), per_class[classes_test]


def membership_attack(
    entropy_retain: npt.ArrayLike,
    entropy_forget: npt.ArrayLike,
    entropy_test: npt.ArrayLike,
    *,
    labels_forget: npt.ArrayLike,
    labels_test: npt.ArrayLike,
    num_classes: int,
    nonmembers: npt.ArrayLike | None = None,
    seed: int = 0,
) -> MembershipAttack | None:
    """Run the published membership inference attack on one model and classify ``D_f`` and ``D_t`` with it.

    A logistic regression with balanced class weights learns member = ``D_r`` against non-member = ``D_t`` from the
    entropy alone. ``mia`` is the fraction of ``D_f`` that it calls member, ``mia_test`` that of ``D_t`` under
    :func:`class_matched_weights`, ``mia_excess = mia - mia_test``. Both follow the overall confidence of the model: the
    less the outputs differ from certainty, the smaller the excess, down to 0, whatever the samples give away.

    With fewer than 100 non-members each of them is classified by a fit without it (5 folds drawn with ``seed``); above
    that one feature cannot be overfitted, and ``seed`` has no effect. ``D_f`` is always classified by the fit on
    everything, as published.

    Args:
        entropy_retain: Entropies of the members ``[Nr]``, nats, under the same deterministic transform as the others.
        entropy_forget: Entropies of ``D_f`` ``[Nf]``, nats.
        entropy_test: Entropies of ``D_t`` ``[Nt]``, nats.
        labels_forget: Labels of ``D_f`` ``[Nf]``.
        labels_test: Labels of ``D_t`` ``[Nt]``.
        num_classes: Number of classes K.
        nonmembers: The samples of ``D_t`` that the attack learns from ``[Nt]``, bool: those of classes that are not
            wholly forgotten. All of them without it. The others are still classified.
        seed: Seed of the folds.

    Returns:
        The three values, or ``None`` if ``nonmembers`` leaves no sample to learn from (not computed).
        ``mia_test`` and ``mia_excess`` are ``None`` if no test sample has weight, or if there is one non-member only.

    Raises:
        ValueError: Bad shapes, values that are not finite, or labels out of range.

    Source: Spartalis et al., LoTUS, CVPR 2025 (arXiv 2503.18314), MIA; ``mia_test`` and the excess are ours.

    Example:
        >>> attack = membership_attack(
        ...     np.full(100, 0.1), [0.1, 0.1, 0.1, 0.9], np.full(100, 0.9),
        ...     labels_forget=[0, 0, 0, 0], labels_test=[0] * 100, num_classes=1,
        ... )
        >>> attack
        MembershipAttack(mia=0.75, mia_test=0.0, mia_excess=0.75)
    """
    retain = arrays.vector(entropy_retain, "entropy_retain")
    forget = arrays.vector(entropy_forget, "entropy_forget")
    test = arrays.vector(entropy_test, "entropy_test")
    classes_forget = arrays.indices(labels_forget, "labels_forget", num_classes, length=forget.size)
    classes_test = arrays.indices(labels_test, "labels_test", num_classes, length=test.size)
    learned = np.ones(test.size, dtype=np.bool_)
    if nonmembers is not None:
        learned = arrays.mask(nonmembers, "nonmembers", test.size)
    if not learned.any():
        return None
    attack = _fit_attack(retain, test[learned])
    mia = float(_called_member(attack, forget).mean())
    _, weights = class_matched_weights(classes_forget, classes_test, num_classes)
    cross_fit = int(learned.sum()) < CROSS_FIT_BELOW
    if not weights.any() or (cross_fit and int(learned.sum()) < 2):
        return MembershipAttack(mia=mia, mia_test=None, mia_excess=None)
    called = _called_member(attack, test)
    if cross_fit:
        called[learned] = _cross_fitted(retain, test[learned], seed)
    mia_test = float(np.average(called, weights=weights))
    return MembershipAttack(mia=mia, mia_test=mia_test, mia_excess=mia - mia_test)


def two_sided_auc(
    entropy_forget: npt.ArrayLike,
    entropy_test: npt.ArrayLike,
    labels_forget: npt.ArrayLike,
    labels_test: npt.ArrayLike,
    num_classes: int,
    *,
    seed: int,
    resamples: int = 1000,
) -> AucInterval | None:
    """ROC AUC of the score ``-entropy`` telling ``D_f`` (positive) from ``D_t``, class-matched, with a 95 % interval.

    ``auc = sum_ij v_i w_j ([e_i < e_j] + [e_i = e_j] / 2) / sum_ij v_i w_j`` over forget samples i and test samples j
    with their entropies e and the weights v, w of :func:`class_matched_weights`. Above 0.5: the forget set is
    recognised with more confidence than unseen data; below 0.5: with less, which gives it away as well.

    The interval is the percentile bootstrap (2.5 % and 97.5 %) over both sides. Each resample takes its weights from
    its own class counts; forget samples whose class vanished from the resampled ``D_t`` drop out of that resample. A
    resample with no class left counts as 0 for the lower end and as 1 for the upper end.

    Args:
        entropy_forget: Entropies of ``D_f`` ``[Nf]``, nats.
        entropy_test: Entropies of ``D_t`` ``[Nt]``, nats.
        labels_forget: Labels of ``D_f`` ``[Nf]``.
        labels_test: Labels of ``D_t`` ``[Nt]``.
        num_classes: Number of classes K.
        seed: Seed of the resamples; the result does not depend on the order of the samples.
        resamples: Number of bootstrap resamples.

    Returns:
        ``(auc, low, high)``, or ``None`` if fewer than 10 forget samples have a class that occurs in ``D_t`` (not
        computed).

    Raises:
        ValueError: Bad shapes, values that are not finite, labels out of range, or ``resamples`` below 1.

    Source: ours; AUC as the Mann-Whitney statistic, interval after Efron and Tibshirani, 1993, chapter 13.

    Example:
        >>> entropies = np.linspace(0.0, 1.0, 200)
        >>> result = two_sided_auc(entropies, entropies, [0] * 200, [0] * 200, 1, seed=0)
        >>> result.auc, result.low < 0.5 < result.high
        (0.5, True)
    """
    forget = arrays.vector(entropy_forget, "entropy_forget")
    test = arrays.vector(entropy_test, "entropy_test")
    classes_forget = arrays.indices(labels_forget, "labels_forget", num_classes, length=forget.size)
    classes_test = arrays.indices(labels_test, "labels_test", num_classes, length=test.size)
    if resamples < 1:
        raise ValueError(f"resamples: expected at least 1, got {resamples}.")
    matched = class_matched_weights(classes_forget, classes_test, num_classes)[0] > 0
    if int(matched.sum()) < MIN_FORGET_SAMPLES:
        return None
    comparison = _Comparison.of(-forget[matched], -test, classes_forget[matched], classes_test, num_classes)
    size_forget, size_test = comparison.classes_forget.size, comparison.classes_test.size
    auc = float(_auc_of_draws(comparison, np.arange(size_forget)[None], np.arange(size_test)[None])[0])
    # One stream a side, so that the draws do not depend on how many resamples fit into a chunk.
    stream_forget, stream_test = np.random.default_rng(seed).spawn(2)
    chunk = max(1, CHUNK_BYTES // (64 * (size_forget + size_test)))
    drawn = []
    for start in range(0, resamples, chunk):
        rows = min(chunk, resamples - start)
        draws_forget = stream_forget.integers(size_forget, size=(rows, size_forget))
        draws_test = stream_test.integers(size_test, size=(rows, size_test))
        drawn.append(_auc_of_draws(comparison, draws_forget, draws_test))
    values = np.concatenate(drawn)
    low = float(np.percentile(np.nan_to_num(values, nan=0.0), 2.5))
    high = float(np.percentile(np.nan_to_num(values, nan=1.0), 97.5))
    return AucInterval(auc=auc, low=low, high=high)


def read_auc(low: float, high: float) -> AucReading:
    """Read the interval of :func:`two_sided_auc` in one word.

    *residual* when ``low > 0.5`` (forgotten samples are still recognised), *over-forgotten* when ``high < 0.5`` (the
    Streisand effect, as bad), else *undecided* when the interval is wider than 0.1, else *indistinguishable*.

    Args:
        low: Lower end of the interval.
        high: Upper end of the interval.

    Returns:
        One of the four words.

    Raises:
        ValueError: Not ``0 <= low <= high <= 1``.

    Source: ours; "Streisand effect" after Golatkar et al., CVPR 2020 (arXiv 1911.04933).

    Example:
        >>> [read_auc(0.52, 0.58), read_auc(0.40, 0.48), read_auc(0.42, 0.58), read_auc(0.48, 0.53)]
        ['residual', 'over-forgotten', 'undecided', 'indistinguishable']
    """
    if not 0.0 <= low <= high <= 1.0:
        raise ValueError(f"expected 0 <= low <= high <= 1, got {low} and {high}.")
    if low > 0.5:
        return "residual"
    if high < 0.5:
        return "over-forgotten"
    if high - low > WIDEST_DECIDED_INTERVAL:
        return "undecided"
    return "indistinguishable"


def entropy_ks(
    entropy_forget: npt.ArrayLike,
    entropy_test: npt.ArrayLike,
    weights_forget: npt.ArrayLike,
    weights_test: npt.ArrayLike,
) -> float:
    """Weighted two-sample Kolmogorov-Smirnov statistic, ``max_e |F_f(e) - F_t(e)|``.

    ``F_f(e)`` is the weighted fraction of ``D_f`` with an entropy of at most e, ``F_t(e)`` that of ``D_t``.

    Args:
        entropy_forget: Entropies of ``D_f`` ``[Nf]``, nats.
        entropy_test: Entropies of ``D_t`` ``[Nt]``, nats.
        weights_forget: Weights of ``D_f`` ``[Nf]``, not negative, from :func:`class_matched_weights`.
        weights_test: Weights of ``D_t`` ``[Nt]``, likewise.

    Returns:
        One number in ``[0, 1]``; 0 where the distributions are the same.

    Raises:
        ValueError: Bad shapes, values that are not finite, a negative weight, or weights that sum to 0.

    Source: ours; it sees differences in spread that an AUC of 0.5 hides.

    Example:
        >>> entropy_ks([0.1, 0.2], [0.1, 0.2, 0.3, 0.4], [1.0, 1.0], [1.0, 1.0, 1.0, 1.0])
        0.5
    """
    forget = arrays.vector(entropy_forget, "entropy_forget")
    test = arrays.vector(entropy_test, "entropy_test")
    grid = np.union1d(forget, test)
    forget_curve = _cumulative(forget, weights_forget, "weights_forget", grid)
    test_curve = _cumulative(test, weights_test, "weights_test", grid)
    return float(np.abs(forget_curve - test_curve).max())


def attack_fractions(inputs: MetricInputs) -> Computed:
    """``mia``, ``mia_test`` and ``mia_excess``: :func:`membership_attack` less wholly forgotten classes; fractions.

    Source: as of :func:`membership_attack`.
    """
    forget, retain, test = (inputs.model[split] for split in ("forget", "retain", "test"))
    attack = membership_attack(
        retain.entropies,
        forget.entropies,
        test.entropies,
        labels_forget=forget.labels,
        labels_test=test.labels,
        num_classes=len(test.class_sums),
        nonmembers=~np.isin(test.labels, inputs.forgotten),
        seed=inputs.seed,
    )
    if attack is None:
        reason = "every test sample belongs to a wholly forgotten class: the attack has no non-member"
        return dict.fromkeys(("mia", "mia_test", "mia_excess"), reason)
    shared = np.isin(test.labels, forget.labels).any()
    single = "the attack can use only one test sample as a non-member; at least two are needed"
    reason = single if shared else UNMATCHED
    return {key: reason if value is None else value for key, value in vars(attack).items()}


def auc_with_interval(inputs: MetricInputs) -> Computed:
    """``mia_auc``, ``mia_auc_low`` and ``mia_auc_high``: :func:`two_sided_auc` with 1,000 resamples.

    Source: as of :func:`two_sided_auc`.
    """
    forget, test = inputs.model["forget"], inputs.model["test"]
    interval = two_sided_auc(
        forget.entropies, test.entropies, forget.labels, test.labels, len(test.class_sums), seed=inputs.seed
    )
    if interval is None:
        matched = np.isin(forget.labels, test.labels).sum()
        short = f"only {matched} forgotten samples share a class with the test set"
        reason = f"{short}; at least {MIN_FORGET_SAMPLES} are needed"
        return dict.fromkeys(("mia_auc", "mia_auc_low", "mia_auc_high"), reason)
    return {"mia_auc": interval.auc, "mia_auc_low": interval.low, "mia_auc_high": interval.high}


def entropy_distance(inputs: MetricInputs) -> Computed:
    """``entropy_ks``, in ``[0, 1]``: :func:`entropy_ks` with the weights of :func:`class_matched_weights`.

    Source: as of :func:`entropy_ks`.
    """
    forget, test = inputs.model["forget"], inputs.model["test"]
    weights = class_matched_weights(forget.labels, test.labels, len(test.class_sums))
    if not weights[0].any():
        return {"entropy_ks": UNMATCHED}
    return {"entropy_ks": entropy_ks(forget.entropies, test.entropies, *weights)}


def _fit_attack(members: Floats, nonmembers: Floats) -> Any:
    from sklearn.linear_model import LogisticRegression  # a second to import: only the attack needs it

    features = np.concatenate([members, nonmembers])[:, None]
    is_member = np.repeat([1, 0], [members.size, nonmembers.size])
    return LogisticRegression(class_weight="balanced").fit(features, is_member)


def _called_member(attack: Any, entropies: Floats) -> Bools:
    called: Bools = attack.predict(entropies[:, None]) == 1
    return called


def _cross_fitted(members: Floats, nonmembers: Floats, seed: int) -> Bools:
    """Classify each non-member with an attack that was fitted on the other folds."""
    shuffled = np.random.default_rng(seed).permutation(nonmembers.size)
    called = [
        _called_member(_fit_attack(members, np.delete(nonmembers, fold)), nonmembers[fold])
        for fold in np.array_split(shuffled, min(FOLDS, nonmembers.size))
    ]
    return np.concatenate(called)[np.argsort(shuffled)]


@dataclass(frozen=True)
class _Comparison:
    """Both sides sorted by score, with the position of each forget score among the test scores.

    Classes are renumbered: those of ``D_f`` from 0, all others share the last number and have no weight.
    """

    classes_forget: Ints  # [Nf]
    classes_test: Ints  # [Nt]
    below: Ints  # [Nf] test scores below
    upto: Ints  # [Nf] test scores below or equal
    num_classes: int

    @classmethod
    def of(
        cls, scores_forget: Floats, scores_test: Floats, classes_forget: Ints, classes_test: Ints, num_classes: int
    ) -> "_Comparison":
        present = np.unique(classes_forget)
        numbers = np.full(num_classes, present.size)
        numbers[present] = np.arange(present.size)
        by_score_forget = np.lexsort((classes_forget, scores_forget))
        by_score_test = np.lexsort((classes_test, scores_test))
        sorted_forget = scores_forget[by_score_forget]
        sorted_test = scores_test[by_score_test]
        return cls(
            classes_forget=numbers[classes_forget[by_score_forget]],
            classes_test=numbers[classes_test[by_score_test]],
            below=np.searchsorted(sorted_test, sorted_forget),
            upto=np.searchsorted(sorted_test, sorted_forget, side="right"),
            num_classes=present.size + 1,
        )


def _auc_of_draws(comparison: _Comparison, draws_forget: Ints, draws_test: Ints) -> Floats:
    """AUC ``[B]`` of B resamples given as drawn positions ``[B, Nf]`` and ``[B, Nt]``; NaN where no class is left."""
    size_forget, size_test = comparison.classes_forget.size, comparison.classes_test.size
    counts_forget = _tally(draws_forget, size_forget)
    counts_test = _tally(draws_test, size_test)
    class_counts_forget = _tally(comparison.classes_forget[draws_forget], comparison.num_classes)
    class_counts_test = _tally(comparison.classes_test[draws_test], comparison.num_classes)
    # Of a class that is not there nothing was drawn, whatever its samples would weigh.
    per_class = class_counts_forget / np.maximum(class_counts_test, 1)
    kept = counts_forget * np.take(class_counts_test > 0, comparison.classes_forget, axis=1)
    cumulative = np.zeros((len(draws_test), size_test + 1))
    np.cumsum(counts_test * np.take(per_class, comparison.classes_test, axis=1), axis=1, out=cumulative[:, 1:])
    with np.errstate(invalid="ignore"):  # 0 / 0 where no class is left
        cumulative /= cumulative[:, -1:]
        # Wins less losses, as a fraction: exactly 0 where all scores tie, so that an AUC of 0.5 is free of rounding.
        margins = np.take(cumulative, comparison.below, axis=1) + np.take(cumulative, comparison.upto, axis=1) - 1.0
        aucs: Floats = 0.5 + (kept * margins).sum(axis=1) / kept.sum(axis=1) / 2.0
    return aucs


def _tally(values: Ints, size: int) -> Ints:
    """Count in each row of ``values [B, N]`` how often 0, …, size - 1 occur: ``[B, size]``."""
    rows = values.shape[0]
    flat = values + size * np.arange(rows)[:, None]
    return np.bincount(flat.ravel(), minlength=rows * size).reshape(rows, size)


def _cumulative(values: Floats, weights: npt.ArrayLike, name: str, grid: Floats) -> Floats:
    """Weighted fraction of ``values`` at or below each point of ``grid``."""
    checked = arrays.vector(weights, name)
    if checked.size != values.size or (checked < 0.0).any() or checked.sum() == 0.0:
        raise ValueError(f"{name}: expected {values.size} weights, none negative, not all 0.")
    order = np.argsort(values)
    cumulative = np.concatenate([[0.0], np.cumsum(checked[order])])
    fractions: Floats = cumulative[np.searchsorted(values[order], grid, side="right")] / cumulative[-1]
    return fractions
