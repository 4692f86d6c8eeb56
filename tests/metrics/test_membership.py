"""Parity with SciPy and scikit-learn, class matching, calibration of the bootstrap, the attack and its excess."""

import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import entropy, ks_2samp
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from mlflow_unlearn.metrics import membership
from mlflow_unlearn.metrics.membership import (
    class_matched_weights,
    entropy_ks,
    membership_attack,
    read_auc,
    two_sided_auc,
)

quick = settings(max_examples=40, deadline=None, derandomize=True)
sizes = st.tuples(st.integers(10, 60), st.integers(1, 60), st.integers(1, 6), st.integers(0, 2**32 - 1))


def draw_sides(size, ties=True):
    """Entropies and labels of D_f and D_t; every class of D_f may or may not occur in D_t."""
    n_forget, n_test, k, seed = size
    rng = np.random.default_rng(seed)
    forget, test = rng.random(n_forget), rng.random(n_test)
    if ties:
        forget, test = np.floor(forget * 8) / 8, np.floor(test * 8) / 8
    return forget, test, rng.integers(k, size=n_forget), rng.integers(k, size=n_test), k


def sklearn_auc(forget, test, labels_forget, labels_test, k):
    weights = np.concatenate(class_matched_weights(labels_forget, labels_test, k))
    is_forget = np.repeat([1, 0], [forget.size, test.size])
    kept = weights > 0
    return roc_auc_score(is_forget[kept], -np.concatenate([forget, test])[kept], sample_weight=weights[kept])


class TestClassMatchedWeights:
    @quick
    @given(sizes)
    def test_weighted_class_shares_agree(self, size):
        _, test, labels_forget, labels_test, k = draw_sides(size)
        forget_weights, test_weights = class_matched_weights(labels_forget, labels_test, k)
        np.testing.assert_array_equal(forget_weights, np.isin(labels_forget, labels_test).astype(float))
        if not forget_weights.any():
            assert not test_weights.any()
            return
        shares_forget = np.bincount(labels_forget, forget_weights, k) / forget_weights.sum()
        shares_test = np.bincount(labels_test, test_weights, k) / test_weights.sum()
        np.testing.assert_allclose(shares_forget, shares_test, atol=1e-12)
        assert test_weights.sum() == pytest.approx(test.size)

    @quick
    @given(sizes)
    def test_follow_samples_and_class_names(self, size):
        _, _, labels_forget, labels_test, k = draw_sides(size)
        rng = np.random.default_rng(size[-1])
        forget_weights, test_weights = class_matched_weights(labels_forget, labels_test, k)
        names, order = rng.permutation(k), rng.permutation(labels_test.size)
        renamed = class_matched_weights(names[labels_forget], names[labels_test][order], k)
        np.testing.assert_array_equal(renamed[0], forget_weights)
        np.testing.assert_allclose(renamed[1], test_weights[order], rtol=1e-12)
        twice = class_matched_weights(np.tile(labels_forget, 3), np.tile(labels_test, 2), k)
        np.testing.assert_allclose(twice[1], np.tile(test_weights, 2), rtol=1e-12)

    def test_by_hand(self):
        """Matched D_f: classes 0, 0, 0, 1 (2 drops out), fractions ¾ and ¼. D_t: fractions ¼, ½, ¼ (of class 3).

        Class 0 weighs ¾ / ¼ = 3, class 1 ¼ / ½ = ½, class 3 nothing.
        """
        forget_weights, test_weights = class_matched_weights([0, 0, 2, 0, 1], [3, 1, 1, 0], 4)
        assert forget_weights.tolist() == [1, 1, 0, 1, 1]
        assert test_weights.tolist() == [0, 0.5, 0.5, 3]

    @np.errstate(all="raise")
    def test_one_sample_and_none_with_a_counterpart(self):
        """The only one of class 0 has all the weight, D_t likewise; of class 1 alone nothing has any."""
        forget_weights, test_weights = class_matched_weights([1, 0], [0, 2, 2], 3)
        assert forget_weights.tolist() == [0, 1] and test_weights.tolist() == [3, 0, 0]
        forget_weights, test_weights = class_matched_weights([1, 1], [0, 2, 2], 3)
        assert forget_weights.tolist() == [0, 0] and test_weights.tolist() == [0, 0, 0]

    @pytest.mark.parametrize("bad", [[], [0.0], [2], [-1], [[0]]])
    def test_misuse(self, bad):
        with pytest.raises(ValueError, match="^labels_forget:"):
            class_matched_weights(bad, [0], 2)
        with pytest.raises(ValueError, match="^labels_test:"):
            class_matched_weights([0], bad, 2)


class TestTwoSidedAuc:
    @quick
    @given(sizes)
    def test_is_scikit_learns_with_weights_and_ties(self, size):
        sides = draw_sides(size)
        result = two_sided_auc(*sides, seed=0, resamples=20)
        if np.isin(sides[2], sides[3]).sum() < 10:
            assert result is None
            return
        assert result.auc == pytest.approx(sklearn_auc(*sides), rel=1e-12, abs=1e-12)
        assert 0.0 <= result.low <= result.high <= 1.0

    @quick
    @given(sizes)
    def test_invariants(self, size):
        """Blind to the order of samples (interval too), to class names, to duplicates; mirrored by the sign."""
        forget, test, labels_forget, labels_test, k = sides = draw_sides(size)
        result = two_sided_auc(*sides, seed=0, resamples=20)
        if result is None:
            return
        rng = np.random.default_rng(size[-1])
        i, j = rng.permutation(forget.size), rng.permutation(test.size)
        shuffled = two_sided_auc(forget[i], test[j], labels_forget[i], labels_test[j], k, seed=0, resamples=20)
        assert shuffled == result
        names = rng.permutation(k)
        renamed = two_sided_auc(forget, test, names[labels_forget], names[labels_test], k, seed=0, resamples=20)
        assert renamed.auc == pytest.approx(result.auc, rel=1e-12)
        doubled = [np.tile(side, 2) for side in sides[:4]]
        assert two_sided_auc(*doubled, k, seed=0, resamples=1).auc == pytest.approx(result.auc, rel=1e-12)
        mirrored = two_sided_auc(-forget, -test, labels_forget, labels_test, k, seed=0, resamples=1)
        assert mirrored.auc == pytest.approx(1 - result.auc, abs=1e-12)

    def test_direction(self):
        """Forgotten samples with the lower entropies are recognised: above 0.5."""
        low, high = np.linspace(0, 1, 50), np.linspace(2, 3, 50)
        zeros = np.zeros(50, dtype=int)
        assert two_sided_auc(low, high, zeros, zeros, 1, seed=0) == (1.0, 1.0, 1.0)
        assert two_sided_auc(high, low, zeros, zeros, 1, seed=0) == (0.0, 0.0, 0.0)

    @pytest.mark.slow
    def test_interval_is_that_of_a_plain_bootstrap(self):
        """An independent bootstrap: resample both sides, weights and AUC anew from each resample, one by one."""
        rng = np.random.default_rng(5)
        labels_forget, labels_test = rng.choice(3, 40, p=[0.7, 0.2, 0.1]), rng.choice(3, 80, p=[0.2, 0.4, 0.4])
        forget, test = rng.normal(labels_forget - 0.3, 1.0), rng.normal(labels_test, 1.0)
        values = []
        for _ in range(800):
            i, j = rng.integers(40, size=40), rng.integers(80, size=80)
            values.append(sklearn_auc(forget[i], test[j], labels_forget[i], labels_test[j], 3))
        result = two_sided_auc(forget, test, labels_forget, labels_test, 3, seed=0, resamples=4000)
        np.testing.assert_allclose(result[1:], np.percentile(values, [2.5, 97.5]), atol=0.016)

    @pytest.mark.parametrize(
        ("n_forget", "expected", "runs", "coverage"),
        [
            pytest.param(1000, 0.011, 200, (0.90, 0.99), marks=pytest.mark.slow),
            pytest.param(50, 0.041, 400, (0.92, 0.98), marks=pytest.mark.slow),
            (10, 0.089, 200, (0.86, 0.97)),
        ],
    )
    def test_null(self, n_forget, expected, runs, coverage):
        """2,000 unseen samples, no difference: the SDs of the specification, and 95 % intervals that hold 0.5 so often.

        The SD of a Mann-Whitney AUC without ties is sqrt((n + m + 1) / (12 n m)): 0.0112, 0.0414, 0.0916. Ten
        samples are too few for a percentile bootstrap to reach 95 %: it covers about 91 %.
        """
        rng = np.random.default_rng(n_forget)
        labels_forget, labels_test = np.zeros(n_forget, dtype=int), np.zeros(2000, dtype=int)
        found = np.array(
            [
                two_sided_auc(
                    rng.exponential(size=n_forget), rng.exponential(size=2000), labels_forget, labels_test, 1,
                    seed=run, resamples=150,
                )
                for run in range(runs)
            ]
        )  # fmt: skip
        assert found[:, 0].mean() == pytest.approx(0.5, abs=4 * expected / runs**0.5)
        assert found[:, 0].std() == pytest.approx(expected, rel=0.12)
        covered = ((found[:, 1] <= 0.5) & (found[:, 2] >= 0.5)).mean()
        assert coverage[0] <= covered <= coverage[1]

    def test_null_with_many_classes(self):
        """200 forgotten of 20 classes with other entropies and fractions than in D_t: 0.5 is still the null."""
        rng = np.random.default_rng(3)
        fractions = rng.dirichlet(np.full(20, 2.0))
        found = []
        for run in range(200):
            labels_forget, labels_test = rng.choice(20, 200, p=fractions), rng.integers(20, size=600)
            forget, test = rng.normal(labels_forget / 4, 1.0), rng.normal(labels_test / 4, 1.0)
            found.append(two_sided_auc(forget, test, labels_forget, labels_test, 20, seed=run, resamples=150))
        aucs, lows, highs = np.array(found).T
        assert aucs.mean() == pytest.approx(0.5, abs=0.01)
        assert 0.90 <= ((lows <= 0.5) & (highs >= 0.5)).mean() <= 0.99

    def test_class_matching(self):
        """One hard class among ten: the forgotten samples are like the unseen ones of their class, not the rest."""
        rng = np.random.default_rng(0)
        labels_forget, labels_test = np.full(400, 3), np.repeat(np.arange(10), 200)
        forget, test = rng.gamma(4.0, 0.3, 400), rng.gamma(np.where(labels_test == 3, 4.0, 1.5), 0.3)
        auc, low, high = two_sided_auc(forget, test, labels_forget, labels_test, 10, seed=0)
        unweighted = roc_auc_score(np.repeat([1, 0], [400, 2000]), -np.concatenate([forget, test]))
        assert unweighted < 0.25
        assert auc == pytest.approx(0.5, abs=0.05)
        assert low < 0.5 < high

    def test_ties_and_full_separation_are_exact(self):
        """A saturated model gives one entropy to everybody: 0.5 to the last bit, or it would read as a difference."""
        labels_forget, labels_test = np.repeat([0, 1, 2], [20, 11, 7]), np.repeat([0, 1, 2], [50, 13, 3])
        for forget, test, expected in ((0.0, 0.0, 0.5), (0.0, 1.0, 1.0), (1.0, 0.0, 0.0)):
            sides = np.full(38, forget), np.full(66, test), labels_forget, labels_test, 3
            assert two_sided_auc(*sides, seed=0) == (expected, expected, expected)

    def test_seed(self):
        sides = draw_sides((50, 60, 3, 1))
        assert two_sided_auc(*sides, seed=1) == two_sided_auc(*sides, seed=1)
        assert two_sided_auc(*sides, seed=1)[1:] != two_sided_auc(*sides, seed=2)[1:]
        assert two_sided_auc(*sides, seed=1).auc == two_sided_auc(*sides, seed=2).auc

    def test_chunks_do_not_matter(self, monkeypatch):
        sides = draw_sides((50, 61, 3, 1))
        whole = two_sided_auc(*sides, seed=1)
        monkeypatch.setattr(membership, "CHUNK_BYTES", 64 * 120 * 7)
        assert two_sided_auc(*sides, seed=1) == whole

    def test_time_and_memory(self):
        rng = np.random.default_rng(0)
        sides = rng.random(1000), rng.random(2000), rng.integers(10, size=1000), rng.integers(10, size=2000)
        start = time.process_time()
        two_sided_auc(*sides, 10, seed=0)
        assert time.process_time() - start < 1.0
        big = rng.random(5000), rng.random(50_000), rng.integers(10, size=5000), rng.integers(10, size=50_000)
        tracemalloc.start()
        two_sided_auc(*big, 10, seed=0, resamples=60)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 64e6

    def test_fewer_than_ten_matched_samples(self):
        """Nine of class 0 match, the others have no unseen counterpart: not computed; one more and it is."""
        labels = [0] * 9 + [1] * 20
        rng = np.random.default_rng(0)
        assert two_sided_auc(rng.random(29), rng.random(5), labels, [0] * 5, 2, seed=0) is None
        assert two_sided_auc(rng.random(30), rng.random(5), [0, *labels], [0] * 5, 2, seed=0) is not None

    def test_unmatched_samples_drop_out(self):
        sides = draw_sides((30, 40, 2, 7))
        with_others = (np.append(sides[0], [0.0] * 9), sides[1], np.append(sides[2], [2] * 9), sides[3], 3)
        assert two_sided_auc(*with_others, seed=0) == two_sided_auc(*sides, seed=0)

    def test_a_class_that_vanishes_from_resamples(self):
        """One unseen sample of the only forgotten class: 37 % of the resamples lose it, nothing can be said."""
        result = two_sided_auc(np.zeros(20), np.ones(50), [0] * 20, [0] + [1] * 49, 2, seed=0)
        assert result == (1.0, 0.0, 1.0)
        assert read_auc(result.low, result.high) == "undecided"
        assert two_sided_auc(np.ones(20), np.zeros(50), [0] * 20, [0] + [1] * 49, 2, seed=0) == (0.0, 0.0, 1.0)

    def test_forget_samples_drop_out_with_a_vanished_class(self):
        """Class 0 is told apart in full (AUC 1); class 1, half of D_f, ranks below all and has one sample in D_t.

        All of D_t lies above class 1 and below class 0: AUC ½. The 37 % of resamples without class 1 leave class 0: 1.
        """
        labels_forget, labels_test = np.repeat([0, 1], 20), np.append(np.zeros(50, dtype=int), 1)
        result = two_sided_auc(np.repeat([0.0, 2.0], 20), np.ones(51), labels_forget, labels_test, 2, seed=0)
        assert result.auc == 0.5
        assert result.high == 1.0
        assert result.low < 0.4

    def test_a_thousand_resamples_unless_told_otherwise(self):
        sides = draw_sides((50, 60, 3, 1))
        assert two_sided_auc(*sides, seed=1) == two_sided_auc(*sides, seed=1, resamples=1000)
        assert two_sided_auc(*sides, seed=1) != two_sided_auc(*sides, seed=1, resamples=1001)

    @np.errstate(all="raise")
    def test_resamples_without_a_class_divide_nothing_by_nothing(self):
        assert two_sided_auc(np.zeros(20), np.ones(50), [0] * 20, [0] + [1] * 49, 2, seed=0).high == 1.0

    @pytest.mark.parametrize(
        ("argument", "value", "message"),
        [
            ("entropy_forget", [np.nan, *[0.0] * 11], "values must be finite."),
            ("entropy_test", [[0.0]], "expected a non-empty array of shape [N], got shape [1, 1]."),
            ("labels_forget", [0] * 11, "expected 12 values, got 11."),
            ("labels_forget", [1, *[0] * 11], "values must be in [0, 1), got 0 to 1."),
            ("labels_test", [0] * 13, "expected 12 values, got 13."),
            ("labels_test", [-1, *[0] * 11], "values must be in [0, 1), got -1 to 0."),
            ("resamples", 0, "expected at least 1, got 0."),
        ],
    )
    def test_misuse(self, argument, value, message):
        good = {"entropy_forget": [0.0] * 12, "entropy_test": [0.0] * 12, "labels_forget": [0] * 12}
        good |= {"labels_test": [0] * 12, "num_classes": 1, "seed": 0, "resamples": 1}
        assert two_sided_auc(**good) == (0.5, 0.5, 0.5)
        with pytest.raises(ValueError) as error:
            two_sided_auc(**good | {argument: value})
        assert str(error.value) == f"{argument}: {message}"


class TestReadAuc:
    @pytest.mark.parametrize(
        ("low", "high", "word"),
        [
            (0.5001, 0.52, "residual"),
            (0.51, 0.9, "residual"),
            (0.48, 0.4999, "over-forgotten"),
            (0.1, 0.49, "over-forgotten"),
            (0.5, 0.59, "indistinguishable"),
            (0.45, 0.5, "indistinguishable"),
            (0.4375, 0.5625, "undecided"),
            (0.5, 0.75, "undecided"),
            (0.25, 0.5, "undecided"),
            (0.46, 0.54, "indistinguishable"),
            (0.5, 0.5, "indistinguishable"),
            (0.0, 1.0, "undecided"),
        ],
    )
    def test_precedence_and_borders(self, low, high, word):
        """A wide interval beside 0.5 still decides; an end at exactly 0.5 does not."""
        assert read_auc(low, high) == word

    @pytest.mark.parametrize(("low", "high"), [(0.6, 0.5), (-0.1, 0.5), (0.5, 1.1), (np.nan, 0.6)])
    def test_misuse(self, low, high):
        with pytest.raises(ValueError) as error:
            read_auc(low, high)
        assert str(error.value) == f"expected 0 <= low <= high <= 1, got {low} and {high}."


class TestEntropyKs:
    @quick
    @given(sizes, st.booleans())
    def test_is_scipys_with_unit_weights(self, size, ties):
        forget, test, *_ = draw_sides(size, ties)
        value = entropy_ks(forget, test, np.ones(forget.size), np.ones(test.size))
        assert value == pytest.approx(ks_2samp(forget, test).statistic, abs=1e-12)

    @quick
    @given(sizes, st.integers(0, 2**32 - 1))
    def test_a_weight_is_a_number_of_copies(self, size, seed):
        forget, test, *_ = draw_sides(size)
        rng = np.random.default_rng(seed)
        copies = [rng.integers(0, 4, side.size) for side in (forget, test)]
        copies[0][0] = copies[1][0] = 1
        value = entropy_ks(forget, test, copies[0] / 2, copies[1] * 3)
        expected = ks_2samp(np.repeat(forget, copies[0]), np.repeat(test, copies[1])).statistic
        assert value == pytest.approx(expected, abs=1e-12)
        assert 0.0 <= value <= 1.0

    def test_class_matching(self):
        """D_f has class 0 only and the entropies of class 0 in D_t: 0 with the weights, ½ without."""
        labels_forget, labels_test = [0] * 2, [0, 0, 1, 1]
        forget, test = [0.1, 0.2], [0.1, 0.2, 0.8, 0.9]
        assert entropy_ks(forget, test, *class_matched_weights(labels_forget, labels_test, 2)) == 0.0
        assert entropy_ks(forget, test, np.ones(2), np.ones(4)) == 0.5

    def test_sees_what_the_auc_does_not(self):
        """Same median, other spread: ±1 against ±3 in equal parts. F_f(-1) = ½ against F_t(-1) = ½, F(-3): 0 and ½."""
        assert entropy_ks([-1, 1] * 20, [-3, 3] * 20, np.ones(40), np.ones(40)) == 0.5
        zeros = [0] * 40
        assert two_sided_auc([-1, 1] * 20, [-3, 3] * 20, zeros, zeros, 1, seed=0).auc == 0.5

    @pytest.mark.parametrize("side", ["forget", "test"])
    @pytest.mark.parametrize(
        ("what", "value", "message"),
        [
            ("entropy", [0.1, np.nan], "values must be finite."),
            ("weights", [np.nan, 1.0], "values must be finite."),
            ("weights", [1.0], "expected 2 weights, none negative, not all 0."),
            ("weights", [0.0, 0.0], "expected 2 weights, none negative, not all 0."),
            ("weights", [2.0, -1.0], "expected 2 weights, none negative, not all 0."),
            ("weights", [], "expected a non-empty array of shape [N], got shape [0]."),
        ],
    )
    def test_misuse(self, side, what, value, message):
        good = {f"{name}_{of}": [1.0, 1.0] for name in ("entropy", "weights") for of in ("forget", "test")}
        assert entropy_ks(**good) == 0.0
        with pytest.raises(ValueError) as error:
            entropy_ks(**good | {f"{what}_{side}": value})
        assert str(error.value) == f"{what}_{side}: {message}"


def two_class_entropies(margins, temperature=1.0):
    p = 1 / (1 + np.exp(-margins / temperature))
    return entropy(np.stack([p, 1 - p], axis=1), axis=1)


class TestMembershipAttack:
    def test_is_scikit_learns_regression(self):
        """The fractions called member and their difference; half of the classes are unseen."""
        rng = np.random.default_rng(0)
        retain, forget, test = rng.gamma(1, 0.2, 3000), rng.gamma(2, 0.2, 200), rng.gamma(3, 0.2, 500)
        labels_forget, labels_test = rng.choice(4, 200, p=[0.6, 0.2, 0.2, 0]), rng.integers(4, size=500)
        nonmembers = labels_test != 2
        test[~nonmembers] += 1.0  # the attack would learn another threshold with them
        features = np.concatenate([retain, test[nonmembers]])[:, None]
        reference = LogisticRegression(class_weight="balanced").fit(
            features, np.repeat([1, 0], [3000, nonmembers.sum()])
        )
        result = membership_attack(
            retain, forget, test,
            labels_forget=labels_forget, labels_test=labels_test, num_classes=4, nonmembers=nonmembers,
        )  # fmt: skip
        assert result.mia == reference.predict(forget[:, None]).mean()
        called = reference.predict(test[:, None])
        by_class = [called[labels_test == c].mean() for c in range(4)]
        expected = np.dot(by_class, np.bincount(labels_forget, minlength=4) / 200)
        assert result.mia_test == pytest.approx(expected, rel=1e-12)
        assert result.mia_excess == result.mia - result.mia_test
        assert 0.3 < result.mia < 0.9

    def test_balanced(self):
        """Members outnumber non-members 100 to 1: without balanced weights everything would be called a member."""
        rng = np.random.default_rng(0)
        retain, test = rng.normal(0.0, 1.0, 20_000), rng.normal(1.0, 1.0, 200)
        forget = rng.normal(1.0, 1.0, 2000)
        zeros = {"labels_forget": np.zeros(2000, dtype=int), "labels_test": np.zeros(200, dtype=int)}
        result = membership_attack(retain, forget, test, **zeros, num_classes=1)
        assert result.mia == pytest.approx(0.31, abs=0.05)  # P(N(1, 1) < 0.5) = 0.309

    def test_softening_lowers_mia_and_leaves_the_excess(self):
        """Forgotten like unseen: 85 % as sure as members, a tail of unsure ones. Then a temperature for all outputs."""
        rng = np.random.default_rng(0)

        def unseen(n):
            return np.where(rng.random(n) < 0.85, rng.normal(5, 1, n), np.abs(rng.normal(0, 1, n)))

        margins = np.abs(rng.normal(5, 1, 8000)), unseen(1000), unseen(2000)
        labels = {"labels_forget": np.zeros(1000, dtype=int), "labels_test": np.zeros(2000, dtype=int)}
        sharp, soft = (
            membership_attack(*(two_class_entropies(m, t) for m in margins), **labels, num_classes=1)
            for t in (1.0, 3.0)
        )
        assert sharp.mia - soft.mia > 0.15
        assert abs(sharp.mia_excess) < 0.03
        assert abs(soft.mia_excess) < 0.03

    def test_residual_membership_shows_in_the_excess(self):
        rng = np.random.default_rng(0)
        labels = {"labels_forget": np.zeros(500, dtype=int), "labels_test": np.zeros(500, dtype=int)}
        retain, like_retain, unseen = rng.gamma(1, 0.1, 4000), rng.gamma(1, 0.1, 500), rng.gamma(3, 0.1, 500)
        assert membership_attack(retain, like_retain, unseen, **labels, num_classes=1).mia_excess > 0.3

    @pytest.mark.parametrize("count", [53, 99, 100])
    def test_no_non_member_is_classified_by_a_fit_that_saw_it(self, count):
        """Below 100 non-members scikit-learn's regression is fitted without each fifth; from 100 on once, on all."""

        def called(learned, asked):
            features = np.concatenate([retain, learned])[:, None]
            is_member = np.repeat([1, 0], [len(retain), len(learned)])
            fitted = LogisticRegression(class_weight="balanced").fit(features, is_member)
            return fitted.predict(asked[:, None]).tolist()

        rng = np.random.default_rng(2)
        retain, forget, test = rng.normal(0, 1, 50), rng.normal(0.1, 1, 40), rng.normal(0.1, 1, count)
        folds = np.array_split(np.random.default_rng(7).permutation(count), 5)
        crossed = [one for fold in folds for one in called(np.delete(test, fold), test[fold])]
        labels = {"labels_forget": np.zeros(40, dtype=int), "labels_test": np.zeros(count, dtype=int)}
        result = membership_attack(retain, forget, test, **labels, num_classes=1, seed=7)
        assert np.mean(crossed) != np.mean(called(test, test))
        assert result.mia == pytest.approx(np.mean(called(test, forget)))
        assert result.mia_test == pytest.approx(np.mean(crossed if count < 100 else called(test, test)))

    def test_cross_fit_by_hand(self, monkeypatch):
        """Members at ±1, non-members at 3 and -3.2. Fitted on both, a line calls one of them member: ½.

        Cross-fitted, 3 is read by a line that knows -3.2 alone (low is non-member): member; -3.2 likewise: 1.
        """
        arguments = {"labels_forget": [0], "labels_test": [0, 0], "num_classes": 1}
        assert membership_attack([-1.0, 1.0] * 50, [0.0], [3.0, -3.2], **arguments).mia_test == 1.0
        monkeypatch.setattr(membership, "CROSS_FIT_BELOW", 0)
        assert membership_attack([-1.0, 1.0] * 50, [0.0], [3.0, -3.2], **arguments).mia_test == 0.5

    def test_cross_fit_is_seeded(self):
        """The folds follow the seed; what is read of D_f does not."""
        rng = np.random.default_rng(4)
        retain, forget, test = rng.normal(0, 1, 50), rng.normal(0.1, 1, 40), rng.normal(0.1, 1, 30)
        arguments = {"labels_forget": [0] * 40, "labels_test": [0] * 30, "num_classes": 1}
        by_seed = [membership_attack(retain, forget, test, **arguments, seed=seed) for seed in range(5)]
        assert by_seed == [membership_attack(retain, forget, test, **arguments, seed=seed) for seed in range(5)]
        assert len({result.mia_test for result in by_seed}) > 1
        assert by_seed[0].mia_test != by_seed[1].mia_test
        assert membership_attack(retain, forget, test, **arguments) == by_seed[0]
        assert len({result.mia for result in by_seed}) == 1

    def test_wholly_forgotten_class(self):
        """Class 1 is wholly forgotten: the attack does not learn from it (its entropies are absurd), and reads it."""
        rng = np.random.default_rng(0)
        retain, unseen = rng.normal(0.2, 0.05, 500), rng.normal(0.6, 0.05, 200)
        labels_test = np.repeat([0, 1], [200, 50])
        arguments = {"labels_forget": np.ones(30, dtype=int), "labels_test": labels_test, "num_classes": 2}
        forget = rng.normal(0.6, 0.05, 30)
        result, same = (
            membership_attack(
                retain, forget, np.append(unseen, np.full(50, absurd)), **arguments, nonmembers=labels_test == 0
            )
            for absurd in (0.0, 9.0)
        )
        assert result.mia == same.mia == 0.0
        assert result.mia_test == 1.0  # the absurd 50 alone have weight, and lie on the members' side
        assert same.mia_test == 0.0
        assert result.mia_excess == -1.0

    def test_cross_fit_beside_a_wholly_forgotten_class(self):
        """Few non-members: the forgotten class was not learned from, the first classifier reads its samples."""
        labels = {"labels_forget": [0, 1, 1, 1], "labels_test": [0] * 20 + [1] * 10, "num_classes": 2}
        test = np.append(np.full(20, 0.9), np.full(10, 0.1))
        result = membership_attack(
            np.full(50, 0.1), [0.1] * 4, test, **labels, nonmembers=np.repeat([True, False], [20, 10])
        )
        assert result.mia_test == pytest.approx(0.75, rel=1e-12)

    def test_what_is_not_computed(self):
        """No class of D_f in D_t: no mia_test. Nobody to learn from: nothing. One non-member: no cross-fit."""
        retain, forget, test = np.full(50, 0.1), np.full(20, 0.1), np.full(30, 0.9)
        labels = {"labels_forget": [1] * 20, "labels_test": [0] * 30, "num_classes": 2}
        result = membership_attack(retain, forget, test, **labels)
        assert (result.mia, result.mia_test, result.mia_excess) == (1.0, None, None)
        assert membership_attack(retain, forget, test, **labels, nonmembers=np.zeros(30, dtype=bool)) is None
        alone = membership_attack(retain, forget, [0.9], labels_forget=[0] * 20, labels_test=[0], num_classes=1)
        assert (alone.mia, alone.mia_test, alone.mia_excess) == (1.0, None, None)

    @pytest.mark.parametrize(
        ("argument", "value", "message"),
        [
            ("entropy_retain", [np.inf], "values must be finite."),
            ("entropy_forget", [], "expected a non-empty array of shape [N], got shape [0]."),
            ("entropy_test", [0.1, np.nan], "values must be finite."),
            ("labels_forget", [0, 0], "expected 1 values, got 2."),
            ("labels_forget", [1], "values must be in [0, 1), got 1 to 1."),
            ("labels_test", [0], "expected 2 values, got 1."),
            ("labels_test", [0, 1], "values must be in [0, 1), got 0 to 1."),
            ("nonmembers", [0, 1], "expected a bool array of shape [2], got int64 [2]."),
        ],
    )
    def test_misuse(self, argument, value, message):
        good = {"entropy_retain": [0.1], "entropy_forget": [0.1], "entropy_test": [0.1, 0.2], "labels_forget": [0]}
        good |= {"labels_test": [0, 0], "num_classes": 1, "nonmembers": [True, True]}
        assert membership_attack(**good) is not None
        with pytest.raises(ValueError) as error:
            membership_attack(**good | {argument: value})
        assert str(error.value) == f"{argument}: {message}"
