"""The predictive distribution of a sample's log odds, by SciPy and by simulation."""

import numpy as np
import pytest
from scipy import stats

from mlflow_unlearn.metrics.attacks.posterior import predictive_scores


def by_hand(own, references, labels):
    k, n = references.shape
    means = [np.mean(references[:, i]) for i in range(n)]
    if k > 1:
        pooled = sum((references[j, i] - means[i]) ** 2 for i in range(n) for j in range(k)) / (n * (k - 1))
    scores = []
    for i in range(n):
        mu0 = np.mean([means[j] for j in range(n) if labels[j] == labels[i]])
        if k == 1:
            mus = [np.mean([means[j] for j in range(n) if labels[j] == labels[m]]) for m in range(n)]
            pooled = np.mean([(means[m] - mus[m]) ** 2 for m in range(n)])
        s = references[:, i]
        kappa, alpha = 1 + k, 1 + k / 2
        mu = (mu0 + s.sum()) / kappa
        beta = pooled + 0.5 * ((s - s.mean()) ** 2).sum() + k * (s.mean() - mu0) ** 2 / (2 * kappa)
        scale = np.sqrt(beta * (kappa + 1) / (alpha * kappa))
        scores.append(stats.t(df=2 * alpha, loc=mu, scale=scale).cdf(own[i]))
    return scores


@pytest.mark.parametrize("k", [1, 2, 4])
def test_the_conjugate_update(k):
    rng = np.random.default_rng(k)
    own, references, labels = rng.normal(size=15), rng.normal(size=(k, 15)), rng.integers(3, size=15)
    found = predictive_scores(own, references, labels, 3)
    np.testing.assert_allclose(found, by_hand(own, references, labels), rtol=1e-9, atol=1e-9)


def test_a_reference_that_was_trained_on_a_sample_says_nothing_of_it():
    rng = np.random.default_rng(0)
    own, references, labels = rng.normal(size=15), rng.normal(size=(3, 15)), rng.integers(3, size=15)
    extended = np.vstack([references, np.full((1, 15), np.nan)])
    np.testing.assert_allclose(
        predictive_scores(own, extended, labels, 3), predictive_scores(own, references, labels, 3), rtol=1e-12
    )


def test_a_sample_that_was_never_seen_lies_anywhere():
    rng = np.random.default_rng(0)
    hard = 3 * rng.normal(size=4000)
    models = hard + rng.normal(size=(5, 4000))
    scores = predictive_scores(models[0], models[1:], np.zeros(4000, int), 1)
    assert np.abs(np.quantile(scores, [0.1, 0.5, 0.9]) - [0.1, 0.5, 0.9]).max() < 0.06


def test_references_that_all_agree_give_no_nan():
    assert np.isfinite(predictive_scores([1.0, 1.0], [[1.0, 1.0], [1.0, 1.0]], [0, 1], 2)).all()


def test_bad_values():
    with pytest.raises(ValueError, match=r"\[K, 2\]"):
        predictive_scores([1.0, 2.0], [[1.0]], [0, 0], 1)
    with pytest.raises(ValueError, match="labels"):
        predictive_scores([1.0], [[1.0]], [3], 2)
