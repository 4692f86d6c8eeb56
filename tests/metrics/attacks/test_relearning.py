"""Relearning: epochs by hand, and the chance against SciPy's permutation test."""

import numpy as np
import pytest
from scipy.stats import kstest, permutation_test

from mlflow_unlearn.metrics.attacks.relearning import epochs_until, relearn_test


def test_epochs_by_hand():
    """From 0.8 to 0.1 in the second epoch; 0.4 and 0.2 lie at a third and two thirds of the way of the logarithms."""
    losses = [1.6, 0.8, 0.1, 0.05]
    assert epochs_until(losses, 0.8) == 1.0
    assert epochs_until(losses, 0.4) == pytest.approx(1 + 1 / 3, abs=1e-12)
    assert epochs_until(losses, 0.2) == pytest.approx(1 + 2 / 3, abs=1e-12)
    assert epochs_until(losses, 2.0) == 0.0 and epochs_until(losses, 0.01) == 3.0


def test_it_goes_up_again():
    assert epochs_until([1.0, 0.1, 1.0, 0.01], 0.1) == 1.0, "the first time counts"


@pytest.mark.parametrize("seed", range(5))
def test_parity_with_scipy(seed):
    random = np.random.default_rng(seed)
    own, other = random.exponential(3.0, 5), random.exponential(6.0, 5)
    found = relearn_test(own, other)

    def difference(a, b, axis):
        return np.mean(a, axis=axis) - np.mean(b, axis=axis)

    expected = permutation_test((np.log1p(own), np.log1p(other)), difference, n_resamples=10_000, vectorized=True)
    # SciPy doubles the smaller tail; with equally many on both sides that is the two-sided chance.
    assert found.p_value == pytest.approx(expected.pvalue, abs=1e-9)
    geometric = np.prod(1 + own) ** 0.2 / np.prod(1 + other) ** 0.2
    assert found.ratio == pytest.approx(geometric, rel=1e-9)
    turned = relearn_test(other, own)
    assert (turned.ratio, turned.p_value) == (pytest.approx(1 / found.ratio), pytest.approx(found.p_value))


def test_alike_is_no_evidence():
    assert relearn_test([30.0] * 6, [30.0] * 6) == (1.0, 1.0)


def test_the_chance_is_uniform_where_both_are_drawn_alike():
    random = np.random.default_rng(0)
    chances = [relearn_test(*random.exponential(5.0, (2, 6))).p_value for _ in range(300)]
    assert kstest(chances, "uniform").pvalue > 0.01
    assert np.mean(np.array(chances) <= 0.05) < 0.09


@pytest.mark.parametrize(("own", "other"), [([], []), ([1.0], [1.0, 2.0]), ([-1.0], [1.0]), ([np.nan], [1.0])])
def test_bad_input(own, other):
    with pytest.raises(ValueError, match="expected|finite"):
        relearn_test(own, other)


@pytest.mark.parametrize(("losses", "target"), [([], 1.0), ([0.0], 1.0), ([1.0], 0.0), ([np.inf], 1.0)])
def test_bad_losses(losses, target):
    with pytest.raises(ValueError, match="expected|finite"):
        epochs_until(losses, target)
