"""Thresholds by sample from one model alone: how sure it would be of such a sample had it never seen it."""

import numpy as np
import numpy.typing as npt

from mlflow_unlearn.metrics import arrays
from mlflow_unlearn.metrics.arrays import Bools, Floats

COMPONENTS = 32
FOLDS = 2
LEAST = 20
TAUS = (0.5, 0.9, 0.95, 0.99)


def exceeded(
    log_odds_forget: npt.ArrayLike,
    log_odds_unseen: npt.ArrayLike,
    features_forget: npt.ArrayLike,
    features_unseen: npt.ArrayLike,
    *,
    seed: int,
) -> tuple[Floats, Floats]:
    """How far each sample's log odds lie above quantiles that a regression on unseen samples predicts for it.

    For τ of 0.5, 0.9, 0.95 and 0.99 gradient-boosted trees minimise the pinball loss
    ``max(τ e, (τ − 1) e), e = m − q_τ(x)`` on unseen samples; the score is ``Σ_τ [m > q_τ] + m′`` with ``m′`` in
    ``(0, 1)`` by rank, which orders those that exceed as many. Unseen samples get theirs from regressions that were
    fitted on the other half of them; forgotten ones from one of the two, drawn for each, so that both are treated
    alike.

    Args:
        log_odds_forget: Under the audited model ``[Nf]``.
        log_odds_unseen: Likewise ``[Nt]``, at least 20.
        features_forget: What a threshold may depend on ``[Nf, F]``: classes, features.
        features_unseen: Likewise ``[Nt, F]``.
        seed: Of the folds.

    Returns:
        Scores ``[Nf]`` and ``[Nt]``, high for members.

    Raises:
        ValueError: Bad shapes, values that are not finite, or fewer than 20 unseen samples.

    Source: Bertran et al., NeurIPS 2023 (arXiv 2307.03694); scikit-learn's regression; the folds: ours.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> x = rng.normal(size=(200, 1))
        >>> forget, unseen = exceeded(x[:50, 0] + 9, x[50:, 0], x[:50], x[50:], seed=0)
        >>> bool(forget.min() > 4 > unseen.mean())
        True
    """
    from scipy.stats import rankdata  # a second to import, and only audits need them
    from sklearn.ensemble import HistGradientBoostingRegressor

    own, unseen = arrays.vector(log_odds_forget, "log_odds_forget"), arrays.vector(log_odds_unseen, "log_odds_unseen")
    x_own, x_unseen = (np.asarray(x, dtype=np.float64) for x in (features_forget, features_unseen))
    if x_own.shape[:1] != own.shape or x_unseen.shape[:1] != unseen.shape or x_own.shape[1:] != x_unseen.shape[1:]:
        raise ValueError(f"expected features of each sample, got {list(x_own.shape)} and {list(x_unseen.shape)}.")
    if unseen.size < LEAST:
        raise ValueError(f"expected at least {LEAST} unseen samples, got {unseen.size}.")
    rng = np.random.default_rng(seed)
    fold_unseen = rng.permutation(np.arange(unseen.size) % FOLDS)
    fold_own = rng.permutation(np.arange(own.size) % FOLDS)
    counts_own, counts_unseen = np.zeros(own.size), np.zeros(unseen.size)
    for fold in range(FOLDS):
        fitted: Bools = fold_unseen != fold
        for tau in TAUS:
            regression = HistGradientBoostingRegressor(
                loss="quantile", quantile=tau, max_iter=50, random_state=seed, early_stopping=False
            ).fit(x_unseen[fitted], unseen[fitted])
            for values, x, folds, counts in (
                (own, x_own, fold_own, counts_own),
                (unseen, x_unseen, fold_unseen, counts_unseen),
            ):
                part = folds == fold
                if part.any():
                    counts[part] += values[part] > regression.predict(x[part])
    ranks = rankdata(np.concatenate([own, unseen])) / (own.size + unseen.size + 1)
    return counts_own + ranks[: own.size], counts_unseen + ranks[own.size :]


def known_of_samples(
    features_forget: npt.ArrayLike,
    features_unseen: npt.ArrayLike,
    labels_forget: npt.ArrayLike,
    labels_unseen: npt.ArrayLike,
    num_classes: int,
) -> tuple[Floats, Floats]:
    """What the threshold of a sample may depend on: the leading principal components of its features, and its class.

    The components are those of both sets together: samples that they are taken from lie nearer to them than others do.

    Args:
        features_forget: Of ``D_f`` ``[Nf, F]``.
        features_unseen: Of ``D_t`` ``[Nt, F]``.
        labels_forget: ``[Nf]``, integers in ``[0, num_classes)``.
        labels_unseen: ``[Nt]``, likewise.
        num_classes: Number of classes K.

    Returns:
        ``[Nf, C + K]`` and ``[Nt, C + K]`` with ``C = min(32, F, Nf + Nt)``.

    Raises:
        ValueError: Labels out of range.

    Source: ours; Bertran et al. take all features.

    Example:
        >>> known_of_samples([[3.0, 0.0]], [[-1.0, 0.0], [1.0, 0.0]], [1], [0, 0], 2)[0].shape
        (1, 4)
    """
    from sklearn.decomposition import PCA

    features = np.concatenate([np.asarray(part, dtype=np.float64) for part in (features_forget, features_unseen)])
    labels = [
        arrays.indices(labels_forget, "labels_forget", num_classes),
        arrays.indices(labels_unseen, "labels_unseen", num_classes),
    ]
    components = PCA(min(COMPONENTS, *features.shape), svd_solver="full").fit_transform(features)
    known: Floats = np.hstack([components, np.eye(num_classes)[np.concatenate(labels)]])
    return known[: labels[0].size], known[labels[0].size :]
