"""Do the features of a model still hold which samples it was trained on, whatever its outputs say?"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from mlflow_unlearn.metrics import arrays
from mlflow_unlearn.metrics.arrays import Floats, Ints
from mlflow_unlearn.metrics.membership import class_matched_weights

FOLDS = 5
STRENGTHS = (0.01, 0.1, 1.0)
LEAST = 50
"""Samples of a set, of which half are fitted in five folds."""


class Probed(NamedTuple):
    """The samples that the probe was not fitted on: indices into the sets, and their scores, high for members."""

    forget: Ints
    unseen: Ints
    scores_forget: Floats
    scores_unseen: Floats


def probe(
    features_forget: npt.ArrayLike,
    features_unseen: npt.ArrayLike,
    labels_forget: npt.ArrayLike,
    labels_unseen: npt.ArrayLike,
    num_classes: int,
    *,
    seed: int,
) -> Probed:
    """Log odds of membership by a logistic regression on features, fitted on one half of both sets, for the other.

    Features are standardised, and unseen samples weigh so that classes are matched; the regularisation is chosen by
    cross-validation on the fitted half. Scores of the other half are exchangeable where the sets were drawn alike, so
    that a permutation test of them is exact. Those of cross-validation on everything are not: each fit leans away from
    the samples that it leaves out.

    Args:
        features_forget: Of ``D_f`` ``[Nf, F]``, such as those before the last layer.
        features_unseen: Of ``D_t`` ``[Nt, F]``.
        labels_forget: ``[Nf]``, integers in ``[0, num_classes)``.
        labels_unseen: ``[Nt]``, likewise.
        num_classes: Number of classes.
        seed: Of the halves.

    Raises:
        ValueError: Bad shapes, labels out of range, fewer than 50 samples in a set, or no class in both.

    Source: linear probes after Alain and Bengio, 2016 (arXiv 1610.01644); for unlearning after arXiv 2602.01150.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> a, b = rng.normal(size=(60, 3)) + 5, rng.normal(size=(60, 3))
        >>> found = probe(a, b, [0] * 60, [0] * 60, 1, seed=0)
        >>> len(found.forget), bool(found.scores_forget.min() > found.scores_unseen.max())
        (30, True)
    """
    from sklearn.linear_model import LogisticRegressionCV  # a second to import, and only audits need it
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    own, unseen = (np.asarray(x, dtype=np.float64) for x in (features_forget, features_unseen))
    classes_own = arrays.indices(labels_forget, "labels_forget", num_classes, length=len(own))
    classes_unseen = arrays.indices(labels_unseen, "labels_unseen", num_classes, length=len(unseen))
    if own.ndim != 2 or own.shape[1:] != unseen.shape[1:] or min(len(own), len(unseen)) < LEAST:
        raise ValueError(
            f"expected features [N, F] of at least {LEAST} samples in each set, "
            f"got {list(own.shape)} and {list(unseen.shape)}."
        )
    rng = np.random.default_rng(seed)
    halves = [np.sort(part) for n in (len(own), len(unseen)) for part in np.array_split(rng.permutation(n), 2)]
    held_own, fitted_own, held_unseen, fitted_unseen = halves
    weights = class_matched_weights(classes_own[fitted_own], classes_unseen[fitted_unseen], num_classes)
    if not weights[0].any():
        raise ValueError("no class of the forget set occurs in the unseen set.")
    used_own, used_unseen = (half[w > 0] for half, w in zip((fitted_own, fitted_unseen), weights, strict=True))
    weight = np.concatenate([np.full(used_own.size, used_unseen.size / used_own.size), weights[1][weights[1] > 0]])
    classifier = LogisticRegressionCV(Cs=list(STRENGTHS), cv=FOLDS, scoring="neg_log_loss", max_iter=500)
    model = make_pipeline(StandardScaler(), classifier).fit(
        np.concatenate([own[used_own], unseen[used_unseen]]),
        np.repeat([1, 0], [used_own.size, used_unseen.size]),
        logisticregressioncv__sample_weight=weight,
    )
    scores_own, scores_unseen = (model.decision_function(x) for x in (own[held_own], unseen[held_unseen]))
    return Probed(held_own, held_unseen, scores_own, scores_unseen)
