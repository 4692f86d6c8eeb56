"""Thresholds by sample from unseen samples alone."""

import numpy as np
import pytest
from sklearn.ensemble import HistGradientBoostingRegressor

from mlflow_unlearn.metrics.attacks.detection import detect
from mlflow_unlearn.metrics.attacks.quantile import FOLDS, TAUS, exceeded, known_of_samples


def drawn(seed, memory=0.0, n=150, m=400):
    """Log odds that depend on one feature, and a little more for members."""
    rng = np.random.default_rng(seed)
    x, z = rng.uniform(-3, 3, (n, 1)), rng.uniform(-3, 3, (m, 1))
    own = 2 * x[:, 0] + rng.normal(0, 0.3, n) + memory
    return own, 2 * z[:, 0] + rng.normal(0, 0.3, m), x, z


def test_it_sees_what_a_single_threshold_does_not():
    own, unseen, x, z = drawn(0, memory=0.5)
    labels = np.zeros(150, int), np.zeros(400, int)
    single = detect(own, unseen, *labels, 1, seed=0)
    scores = detect(*exceeded(own, unseen, x, z, seed=0), *labels, 1, seed=0)
    assert scores.auc > single.auc + 0.15
    assert scores.p_value < 0.01


def test_what_is_drawn_alike_is_seldom_told_apart():
    found = []
    for seed in range(8):
        scores = exceeded(*drawn(seed, n=60, m=150), seed=seed)
        found.append(detect(*scores, np.zeros(60, int), np.zeros(150, int), 1, seed=seed).p_value)
    assert sum(p <= 0.05 for p in found) <= 2  # 99.4 % of Binomial(8, 0.05)


def test_equal_signals_tell_nothing():
    scores = exceeded(np.ones(50), np.ones(100), np.zeros((50, 1)), np.zeros((100, 1)), seed=0)
    assert detect(*scores, np.zeros(50, int), np.zeros(100, int), 1, seed=0).auc == pytest.approx(0.5)


@pytest.mark.slow
def test_a_sample_s_threshold_is_fitted_without_its_fold():
    own, unseen, x, z = drawn(0, n=20, m=30)
    _, scores = exceeded(own, unseen, x, z, seed=5)
    folds = np.random.default_rng(5).permutation(np.arange(30) % FOLDS)
    expected = np.zeros(30)
    for i in range(30):
        rest = folds != folds[i]
        for tau in TAUS:
            options = {"loss": "quantile", "quantile": tau, "max_iter": 50, "random_state": 5, "early_stopping": False}
            fitted = HistGradientBoostingRegressor(**options).fit(z[rest], unseen[rest])
            expected[i] += unseen[i] > fitted.predict(z[i : i + 1])[0]
    np.testing.assert_array_equal(np.floor(scores), expected)


def test_components_of_both_sets_and_classes():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(50, 40)) * np.linspace(10, 0.1, 40)
    labels = rng.integers(3, size=50)
    own, unseen = known_of_samples(features[:20], features[20:], labels[:20], labels[20:], 3)
    together = np.vstack([own, unseen])
    assert own.shape == (20, 35) and unseen.shape == (30, 35)
    assert together[:, 32:].argmax(axis=1).tolist() == labels.tolist()
    variances = together[:, :32].var(axis=0)
    assert (np.diff(variances) <= 0).all() and variances[0] > 20 * variances[-1]
    np.testing.assert_allclose(together[:, :32].mean(axis=0), 0, atol=1e-9)


def test_bad_values():
    with pytest.raises(ValueError, match="at least 20 unseen samples, got 3"):
        exceeded([1.0], [1.0] * 3, [[0.0]], [[0.0]] * 3, seed=0)
    with pytest.raises(ValueError, match="features of each sample"):
        exceeded([1.0], [1.0] * 20, [[0.0]], [[0.0, 1.0]] * 20, seed=0)
