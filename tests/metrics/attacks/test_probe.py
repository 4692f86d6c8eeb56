"""A linear probe on features, fitted on one half of the samples and asked about the other."""

import numpy as np
import pytest

from mlflow_unlearn.metrics.attacks.detection import detect
from mlflow_unlearn.metrics.attacks.probe import probe


def drawn(seed, shift=0.0, n=100, m=200, classes=3):
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=n), rng.integers(classes, size=m)
    centres = 3 * rng.normal(size=(classes, 6))
    own, unseen = (centres[each] + rng.normal(size=(len(each), 6)) for each in labels)
    return own + shift, unseen, *labels


def detected(sets, classes, seed):
    found = probe(*sets, classes, seed=seed)
    labels = sets[2][found.forget], sets[3][found.unseen]
    return detect(found.scores_forget, found.scores_unseen, *labels, classes, seed=seed)


def test_features_that_hold_it():
    assert detected(drawn(0, shift=0.8), 3, 0).p_value < 0.01


@pytest.mark.slow
def test_what_is_drawn_alike_is_seldom_told_apart():
    found = [detected(drawn(seed), 3, seed).p_value for seed in range(40)]
    assert sum(p <= 0.05 for p in found) <= 6  # 99.7 % of Binomial(40, 0.05)


def test_classes_that_are_forgotten_more_often_tell_nothing():
    """Without weights the probe would learn the classes."""
    rng = np.random.default_rng(0)
    labels = rng.choice(2, p=[0.9, 0.1], size=150), rng.choice(2, p=[0.1, 0.9], size=300)
    own, unseen = (4 * each[:, None] + rng.normal(size=(len(each), 3)) for each in labels)
    found = detected((own, unseen, *labels), 2, 0)
    assert found.auc_low < 0.5 < found.auc_high


def test_no_sample_is_asked_about_that_was_fitted():
    """Noise that a probe learns by heart tells nothing of the samples that it left out."""
    rng = np.random.default_rng(0)
    sets = rng.normal(size=(60, 200)), rng.normal(size=(60, 200)), np.zeros(60, int), np.zeros(60, int)
    assert detected(sets, 1, 0).auc < 0.75
    found = probe(*sets, 1, seed=0)
    assert len(found.forget) == len(found.unseen) == 30


def test_bad_values():
    with pytest.raises(ValueError, match="at least 50 samples"):
        probe(np.zeros((49, 2)), np.zeros((90, 2)), np.zeros(49, int), np.zeros(90, int), 1, seed=0)
    with pytest.raises(ValueError, match="no class of the forget set"):
        probe(np.zeros((60, 2)), np.zeros((60, 2)), np.zeros(60, int), np.ones(60, int), 2, seed=0)
