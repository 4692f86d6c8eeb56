"""One score on two sets: the area, its tail, its chance, and corrections for several."""

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from mlflow_unlearn.metrics.attacks.detection import auc_interval, detect, holm, tail


def drawn(seed, shift=0.0, n=100, m=1000):
    rng = np.random.default_rng(seed)
    labels = rng.integers(3, size=n), rng.integers(3, size=m)
    return rng.normal(shift, size=n), rng.normal(size=m), *labels


def test_of_one_class_it_is_the_area_of_scikit_learn():
    forget, unseen, *_ = drawn(0, 0.4)
    found = detect(forget, unseen, np.zeros(100, int), np.zeros(1000, int), 1, seed=0)
    truth = np.repeat([1, 0], [100, 1000])
    assert found.auc == pytest.approx(roc_auc_score(truth, np.concatenate([forget, unseen])), abs=1e-12)
    assert found.auc_low < found.auc < found.auc_high
    assert found.advantage == pytest.approx(stats.ks_2samp(forget, unseen).statistic, abs=1e-12)
    assert (found.n_forget, found.n_unseen) == (100, 1000)


def test_what_is_drawn_alike_is_seldom_told_apart():
    p_values = [detect(*drawn(seed, n=60, m=200), 3, seed=seed).p_value for seed in range(100)]
    assert sum(p <= 0.05 for p in p_values) <= 12  # 99.6 % of Binomial(100, 0.05)
    assert min(p_values) > 0
    assert stats.kstest(p_values, "uniform").pvalue > 0.01


@pytest.mark.parametrize("shift", [-1.0, 1.0])
def test_what_differs_is_told_apart_on_either_side(shift):
    found = detect(*drawn(0, shift), 3, seed=0)
    assert found.p_value == pytest.approx(1 / 1001)
    assert (found.auc - 0.5) * shift > 0


def test_spread_alone_is_told_apart():
    forget, unseen, *labels = drawn(0, n=300)
    found = detect(5 * forget, unseen, *labels, 3, seed=0)
    assert found.auc_low < 0.5 < found.auc_high
    assert found.p_value < 0.01


def test_the_tail_counts_what_is_above_one_in_a_hundred():
    unseen = np.arange(1000.0)
    found = tail([988.0, 989.0, 990.0, 991.0], unseen, np.ones(1000))
    assert found.tpr == 0.5  # 989 is the lowest score with at most 10 above it
    k, n = 2, 4
    assert found.low == pytest.approx(stats.beta.ppf(0.025, k, n - k + 1), abs=1e-9)
    assert found.high == pytest.approx(stats.beta.ppf(0.975, k + 1, n - k), abs=1e-9)


def test_the_tail_weighs_classes():
    weights = np.repeat([0.0, 2.0], 1000)  # the first half belongs to no class of the forget set
    scores = np.concatenate([np.arange(1000.0) + 5000, np.arange(1000.0)])
    assert tail([995.0], scores, weights).tpr == 1.0
    assert tail([985.0], scores, weights).tpr == 0.0


def test_too_few_false_alarms_resolve_nothing():
    assert tail([1.0], np.arange(999.0), np.ones(999)) is None
    assert tail([1.0], np.arange(200.0), np.ones(200), fpr=0.05) is not None
    assert tail([1.0], np.arange(2000.0), np.repeat([0, 1], [1500, 500])) is None


def test_ties_are_no_detection():
    found = tail(np.zeros(10), np.zeros(1000), np.ones(1000))
    assert found.tpr == 0.0


def test_too_few_matched_samples():
    assert detect(np.arange(9.0), np.arange(50.0), [0] * 9, [0] * 50, 1, seed=0) is None
    assert detect(np.arange(20.0), np.arange(50.0), [1] * 20, [0] * 50, 2, seed=0) is None


def holm_by_rejection(p_values, level):
    """Holm's procedure as it is stated: step down while p is at most level / (tests left)."""
    rejected, left = set(), len(p_values)
    for i in sorted(range(len(p_values)), key=p_values.__getitem__):
        if p_values[i] > level / left:
            break
        rejected.add(i)
        left -= 1
    return rejected


@pytest.mark.parametrize("seed", range(20))
def test_corrected_values_reject_what_the_procedure_rejects(seed):
    p_values = (np.random.default_rng(seed).random(6) ** 3).tolist()
    corrected = holm(p_values)
    for level in (0.01, 0.05, 0.2):
        assert {i for i, p in enumerate(corrected) if p <= level} == holm_by_rejection(p_values, level)


def test_bad_values():
    assert holm([]) == []
    with pytest.raises(ValueError, match=r"p-values in \[0, 1\]"):
        holm([0.5, 1.5])
    with pytest.raises(ValueError, match="fpr"):
        tail([1.0], [1.0], [1.0], fpr=1.0)
    with pytest.raises(ValueError, match="a weight for each"):
        tail([1.0], [1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="finite"):
        detect([np.nan] * 10, np.arange(50.0), [0] * 10, [0] * 50, 1, seed=0)


@pytest.mark.parametrize("seed", range(3))
def test_the_interval_is_that_of_delong(seed):
    """Sample by sample, as its paper states it; with weights as if samples stood there as often."""
    rng = np.random.default_rng(seed)
    forget, unseen = rng.integers(6, size=12) + 0.5 * seed, rng.integers(6, size=15) * 1.0
    times = rng.integers(1, 4, 15)

    def wins(x, y):
        return 1.0 if x > y else 0.5 if x == y else 0.0

    v = [np.mean([wins(f, u) for u in np.repeat(unseen, times)]) for f in forget]
    u = [np.mean([wins(f, x) for f in forget]) for x in unseen]
    auc = np.mean(v)
    of_unseen = sum(t**2 * (each - auc) ** 2 for t, each in zip(times, u, strict=True)) / times.sum() ** 2
    half = 1.96 * (np.var(v, ddof=1) / 12 + of_unseen) ** 0.5
    expected = (auc, max(0, auc - half), min(1, auc + half))
    assert tuple(auc_interval(forget, unseen, times)) == pytest.approx(expected, abs=1e-9)


def test_the_interval_holds_the_area_as_often_as_it_says():
    inside = 0
    for seed in range(300):
        forget, unseen, *_ = drawn(seed, shift=0.5, n=80, m=200)
        low, high = auc_interval(forget, unseen, np.ones(200))[1:]
        inside += low <= stats.norm.cdf(0.5 / 2**0.5) <= high
    assert inside >= 273  # 99.5 % of Binomial(300, 0.95)


def test_many_samples_take_fewer_permutations():
    rng = np.random.default_rng(0)
    sets = rng.normal(size=1000) + 1, rng.normal(size=19_001), np.zeros(1000, int), np.zeros(19_001, int)
    assert detect(*sets, 1, seed=0).p_value == pytest.approx(1 / 201)


def test_one_side_alone():
    """The other one is nothing, however far it goes."""
    rng = np.random.default_rng(0)
    sets = rng.normal(size=100), rng.normal(size=300), np.zeros(100, int), np.zeros(300, int)
    above = detect(sets[0] + 1, *sets[1:], 1, seed=0, one_sided=True)
    below = detect(sets[0] - 1, *sets[1:], 1, seed=0, one_sided=True)
    assert above.p_value < 0.01 < 0.5 < below.p_value
    assert above.advantage == pytest.approx(
        stats.ks_2samp(sets[0] + 1, sets[1], alternative="less").statistic, abs=1e-9
    )
    values = [detect(*drawn(seed, n=60, m=200), 3, seed=seed, one_sided=True).p_value for seed in range(100)]
    assert sum(p <= 0.05 for p in values) <= 12  # 99.6 % of Binomial(100, 0.05)
