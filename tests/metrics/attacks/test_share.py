"""The share remembered: 1 where nothing was done, 0 for retraining, and what its interval counts."""

import numpy as np
import pytest

from mlflow_unlearn.metrics.attacks.share import NO_MEMORY, best_threshold, share_remembered


def models(seed=0, n=400, golds=1, memory=1.0):
    """Signals of the original and of gold standards that share what is hard about a sample."""
    rng = np.random.default_rng(seed)
    hard = rng.normal(size=n)
    original = hard + memory + 0.3 * rng.normal(size=n)
    return original, np.stack([hard + 0.3 * rng.normal(size=n) for _ in range(golds)]), rng, hard


def by_hand(own, original, golds):
    """Every threshold in turn; rates by counting."""
    best = None
    for t in sorted({*original, *np.ravel(golds)}):
        tpr = sum(s >= t for s in original) / len(original)
        fpr = sum(s >= t for row in golds for s in row) / golds.size
        if best is None or tpr - fpr > best[0] + 1e-12:
            best = tpr - fpr, t, tpr, fpr
    _, t, tpr, fpr = best
    return (sum(s >= t for s in own) / len(own) - fpr) / (tpr - fpr), t, tpr, fpr


@pytest.mark.parametrize("golds", [1, 3])
def test_the_estimator(golds):
    original, retrained, rng, hard = models(golds=golds, n=80)
    own = hard + 0.4 + 0.3 * rng.normal(size=80)
    found = share_remembered(own, original, retrained, seed=0)
    expected = by_hand(own, original, retrained)
    assert (found.value, found.threshold, found.tpr, found.fpr) == pytest.approx(expected, abs=1e-9)
    assert found.low < found.value < found.high
    assert found.golds == golds


def test_doing_nothing_is_one_and_retraining_zero():
    original, golds, *_ = models()
    assert share_remembered(original, original, golds, seed=0).value == 1.0
    assert share_remembered(golds[0], original, golds, seed=0).value == 0.0
    assert share_remembered(golds[0] - 3, original, golds, seed=0).value < -0.2


def test_another_gold_standard_is_within_its_interval_of_zero():
    inside = 0
    for seed in range(40):
        original, golds, rng, hard = models(seed, golds=3)
        found = share_remembered(hard + 0.3 * rng.normal(size=400), original, golds, 0.01, seed=seed)
        inside += found.low <= 0 <= found.high
    assert inside >= 34  # 99.6 % of Binomial(40, 0.95)


def test_what_retrained_models_differ_by_as_a_whole_widens_the_interval():
    original, golds, *_ = models(golds=4)
    found = [share_remembered(original, original, golds, shift, seed=0) for shift in (0.0, 0.1)]
    wide = 1.96 * 0.1 * np.sqrt(1.25) / (found[1].tpr - found[1].fpr)
    for end in ("low", "high"):
        half = [abs(getattr(one, end) - one.value) for one in found]
        assert half[1] == pytest.approx(np.hypot(half[0], wide))


def test_a_model_that_remembers_too_little():
    _, golds, *_ = models()
    assert share_remembered(golds[0], golds[0], golds, seed=0) == NO_MEMORY


def test_the_order_of_golds_changes_nothing():
    original, golds, *_ = models(golds=3)
    one, other = (share_remembered(golds[0], original, each, seed=0) for each in (golds, golds[::-1]))
    assert (one.value, one.low, one.high) == pytest.approx((other.value, other.low, other.high), abs=1e-12)


def test_the_bootstrap_is_over_samples():
    """Drawn one by one, as it is defined."""
    original, golds, rng, hard = models(n=200)
    own = hard + 0.5
    found = share_remembered(own, original, golds, seed=0)
    called = np.stack([own, original, golds[0]]) >= found.threshold
    drawn = []
    for _ in range(2000):
        current, true, false = called[:, rng.integers(200, size=200)].mean(axis=1)
        drawn.append((current - false) / (true - false))
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])), abs=0.02)


def test_the_lowest_of_equal_thresholds():
    assert best_threshold([2.0, 3.0], [2.0, 1.0, 0.0]) == 2.0


def test_bad_values():
    with pytest.raises(ValueError, match=r"signal_golds: expected finite values of shape \[K, 2\]"):
        share_remembered([1.0, 2.0], [1.0, 2.0], [[1.0]], seed=0)
    with pytest.raises(ValueError, match="shift of at least 0"):
        share_remembered([1.0], [1.0], [[1.0]], -1.0, seed=0)
