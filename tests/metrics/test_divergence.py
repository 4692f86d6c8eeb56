"""Parity with SciPy, zero probabilities, hand-derived values of the published variants, invariants."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon
from scipy.stats import entropy as scipy_entropy

from mlflow_unlearn.metrics.divergence import (
    LN2,
    class_means,
    class_sums,
    entropy,
    js_divergence,
    js_divergence_published,
    kl_divergence,
    rf_js_divergence,
)

quick = settings(max_examples=40, deadline=None, derandomize=True)


def draw_rows(rng, n, k, zeros=0.0):
    """Distributions [n, k] over many orders of magnitude, a share of the entries exactly 0 (never a whole row)."""
    weights = np.exp(rng.normal(0.0, 4.0, (n, k)))
    weights[rng.random((n, k)) < zeros] = 0.0
    weights[:, 0] = np.where(weights.sum(axis=1) == 0.0, 1.0, weights[:, 0])
    return weights / weights.sum(axis=1, keepdims=True)


shapes = st.tuples(st.integers(1, 12), st.integers(1, 9), st.sampled_from([0.0, 0.5, 0.9]), st.integers(0, 2**32 - 1))


class TestEntropy:
    @quick
    @given(shapes)
    def test_is_scipys(self, shape):
        n, k, zeros, seed = shape
        p = draw_rows(np.random.default_rng(seed), n, k, zeros)
        np.testing.assert_allclose(entropy(p), scipy_entropy(p, axis=1), rtol=1e-12, atol=1e-14)

    def test_zero_probabilities_and_the_uniform_row(self):
        """A one-hot row has entropy 0 (and not -0), a uniform one over 5 classes ln 5."""
        result = entropy([[0, 0, 1, 0, 0], [0.2] * 5])
        assert result[0] == 0.0
        assert not np.signbit(result[0])
        assert result[1] == pytest.approx(math.log(5), abs=1e-15)

    def test_float32_rows_stay_in_range(self):
        p = np.array([[1.0000001, 0.0], [0.5000001, 0.5000001]], dtype=np.float32)
        result = entropy(p)
        assert result.dtype == np.float64
        assert 0.0 <= result.min()
        assert result.max() <= LN2


class TestKlDivergence:
    @quick
    @given(shapes)
    def test_is_scipys(self, shape):
        n, k, zeros, seed = shape
        rng = np.random.default_rng(seed)
        p, q = draw_rows(rng, n, k, zeros), draw_rows(rng, n, k)
        np.testing.assert_allclose(kl_divergence(p, q), scipy_entropy(p, q, axis=1), rtol=1e-9, atol=1e-14)

    def test_zero_probabilities(self):
        """q = 0 < p is infinite; p = 0 contributes nothing: KL((0, 1) || (1/4, 3/4)) = ln 4/3; nor do two zeros."""
        p = [[0.5, 0.5, 0.0], [0.0, 1.0, 0.0], [0.5, 0.5, 0.0]]
        q = [[1.0, 0.0, 0.0], [0.25, 0.75, 0.0], [0.5, 0.5, 0.0]]
        np.testing.assert_allclose(kl_divergence(p, q), [np.inf, math.log(4 / 3), 0.0], rtol=1e-15)

    def test_float_error_does_not_make_it_negative(self):
        """Softmax rows in float32 miss 1 by 1e-7, and ½ ln(½ / ½(1 + 2e-7)) twice is -2e-7."""
        assert kl_divergence([[0.5, 0.5]], np.array([[0.5000001, 0.5000001]], dtype=np.float32))[0] == 0.0

    def test_direction(self):
        """KL((1/2, 1/2) || (1/4, 3/4)) = ½ ln 2 + ½ ln 2/3 = 0.1438; the other way ¼ ln ½ + ¾ ln 3/2 = 0.1308."""
        assert kl_divergence([[0.5, 0.5]], [[0.25, 0.75]])[0] == pytest.approx(0.5 * math.log(4 / 3))
        assert kl_divergence([[0.25, 0.75]], [[0.5, 0.5]])[0] == pytest.approx(
            0.25 * math.log(0.5) + 0.75 * math.log(1.5)
        )


class TestJsDivergence:
    @quick
    @given(shapes)
    def test_is_the_square_of_scipys_distance(self, shape):
        n, k, zeros, seed = shape
        rng = np.random.default_rng(seed)
        p, q = draw_rows(rng, n, k, zeros), draw_rows(rng, n, k, zeros)
        np.testing.assert_allclose(js_divergence(p, q), jensenshannon(p, q, axis=1) ** 2, rtol=1e-9, atol=1e-14)

    @quick
    @given(shapes)
    def test_invariants(self, shape):
        """In [0, ln 2], symmetric, 0 exactly on itself, blind to the order of classes, row by row."""
        n, k, zeros, seed = shape
        rng = np.random.default_rng(seed)
        p, q = draw_rows(rng, n, k, zeros), draw_rows(rng, n, k, zeros)
        result = js_divergence(p, q)
        assert ((result >= 0.0) & (result <= LN2)).all()
        np.testing.assert_array_equal(result, js_divergence(q, p))
        np.testing.assert_array_equal(js_divergence(p, p), np.zeros(n))
        classes, samples = rng.permutation(k), rng.permutation(n)
        np.testing.assert_allclose(js_divergence(p[:, classes], q[:, classes]), result, rtol=1e-9, atol=1e-15)
        np.testing.assert_array_equal(js_divergence(p[samples], q[samples]), result[samples])

    @quick
    @given(shapes)
    def test_float32_rows_stay_in_range(self, shape):
        n, k, zeros, seed = shape
        p = draw_rows(np.random.default_rng(seed), n, k, zeros).astype(np.float32)
        q = np.roll(p, 1, axis=1)
        result = js_divergence(p, q)
        assert ((result >= 0.0) & (result <= LN2)).all()

    def test_zero_probabilities(self):
        """Disjoint supports are ln 2 apart; (1, 0) and (½, ½): ½ ln 4/3 + ½ (½ ln 2/3 + ½ ln 2) = 0.2158."""
        p = [[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]]
        q = [[0.0, 0.5, 0.5], [0.5, 0.5, 0.0]]
        expected = 0.5 * math.log(4 / 3) + 0.25 * math.log(2 / 3) + 0.25 * LN2
        np.testing.assert_allclose(js_divergence(p, q), [LN2, expected], rtol=1e-14)

    def test_smallest_floats_do_not_underflow(self):
        """The mean of 5e-324 and 0 underflows to 0: computed with it the divergence would be infinite, or ln 2."""
        assert js_divergence([[1.0, 5e-324]], [[1.0, 0.0]])[0] == 0.0
        assert js_divergence([[1.0, 0.0]], [[1.0, 5e-324]])[0] == 0.0


class TestPublished:
    def test_one_row_by_hand(self):
        """One row, R = 1: ½ [KL(m‖p) + KL(m‖q)] of the ordinary rows.

        p = (½, ½), q = (¼, ¾), m = (⅜, ⅝). KL(m‖p) = ⅜ ln ¾ + ⅝ ln 5/4 = −0.107881 + 0.139465 = 0.031584.
        KL(m‖q) = ⅜ ln 3/2 + ⅝ ln ⅚ = 0.152049 − 0.113951 = 0.038098. Half the sum: 0.034841. (The ordinary
        JSD, the other way round, is 0.033822.)
        """
        value = js_divergence_published([[0.5, 0.5]], [[0.25, 0.75]])
        by_hand = 0.5 * (
            0.375 * math.log(0.75) + 0.625 * math.log(1.25) + 0.375 * math.log(1.5) + 0.625 * math.log(5 / 6)
        )
        assert value == pytest.approx(by_hand, rel=1e-13)
        assert value == pytest.approx(0.034841, abs=1e-6)
        assert js_divergence([[0.5, 0.5]], [[0.25, 0.75]])[0] == pytest.approx(0.033822, abs=1e-6)

    def test_two_rows_by_hand(self):
        """Two rows, R = 2: the row sum above, 0.069682, plus a second row, over 2 R² = 8.

        Second row p = (1/5, 4/5), q = (3/5, 2/5), m = (2/5, 3/5): KL(m‖p) = 2/5 ln 2 + 3/5 ln 3/4 = 0.104650,
        KL(m‖q) = 2/5 ln 2/3 + 3/5 ln 3/2 = 0.081093. Sum 0.069682 + 0.185743 = 0.255425, over 8: 0.031928.
        """
        value = js_divergence_published([[0.5, 0.5], [0.2, 0.8]], [[0.25, 0.75], [0.6, 0.4]])
        assert value == pytest.approx(0.031928, abs=1e-6)

    def test_zero_probability_by_hand(self):
        """p = (1, 0), q = (0, 1): both clamped to ε = 1e-8, so p' = (1, ε) / (1 + ε), m = (½, ½).

        KL(m‖p') = KL(m‖q') = ½ ln (½ (1 + ε)) + ½ ln (½ (1 + ε) / ε) = −ln 2 + ln(1 + ε) − ½ ln ε = 8.517193.
        Half of their sum is the same. The clamp sets it; the ordinary JSD is ln 2.
        """
        by_hand = -math.log(2) + math.log1p(1e-8) - 0.5 * math.log(1e-8)
        value = js_divergence_published([[1.0, 0.0]], [[0.0, 1.0]])
        assert value == pytest.approx(by_hand, rel=1e-12)
        assert value == pytest.approx(8.517193, abs=1e-6)

    def test_float_error_does_not_make_it_negative(self):
        p = draw_rows(np.random.default_rng(0), 200, 8)
        values = [js_divergence_published(row[None], row[None] * (1 + 1e-15 * np.arange(8))) for row in p]
        assert min(values) == 0.0

    @quick
    @given(shapes)
    def test_is_the_formula_on_ordinary_rows(self, shape):
        """1/(2R²) Σ_r [KL(m_r‖p_r) + KL(m_r‖q_r)] with SciPy's KL, away from the clamp (no entry below 1e-3 / K)."""
        n, k, _, seed = shape
        rng = np.random.default_rng(seed)
        p = 0.999 * draw_rows(rng, n, k) + 0.001 / k
        q = 0.999 * draw_rows(rng, n, k) + 0.001 / k
        m = (p + q) / 2
        expected = (scipy_entropy(m, p, axis=1) + scipy_entropy(m, q, axis=1)).sum() / (2 * n**2)
        assert js_divergence_published(p, q) == pytest.approx(expected, rel=1e-9, abs=1e-15)

    @quick
    @given(shapes)
    def test_invariants(self, shape):
        """At least 0, symmetric, 0 on itself, blind to the order of samples; twice the data set halves it."""
        n, k, zeros, seed = shape
        rng = np.random.default_rng(seed)
        p, q = draw_rows(rng, n, k, zeros), draw_rows(rng, n, k, zeros)
        value = js_divergence_published(p, q)
        samples = rng.permutation(n)
        assert value >= 0.0
        assert js_divergence_published(q, p) == pytest.approx(value, rel=1e-9, abs=1e-15)
        assert js_divergence_published(p, p) == pytest.approx(0.0, abs=1e-15)
        assert js_divergence_published(p[samples], q[samples]) == pytest.approx(value, rel=1e-9, abs=1e-15)
        twice = js_divergence_published(np.vstack([p, p]), np.vstack([q, q]))
        assert twice == pytest.approx(value / 2, rel=1e-9, abs=1e-15)


class TestRetrainFree:
    def test_class_sums_are_the_sums_and_batches_add_up(self):
        rng = np.random.default_rng(0)
        p, labels = draw_rows(rng, 200, 6, 0.3), rng.choice([0, 2, 3, 5], size=200)
        expected = np.zeros((6, 6))
        for row, label in zip(p, labels, strict=True):
            expected[label] += row
        np.testing.assert_allclose(class_sums(p, labels), expected, rtol=1e-12)
        batches = sum(class_sums(p[i : i + 33], labels[i : i + 33]) for i in range(0, 200, 33))
        np.testing.assert_allclose(batches, expected, rtol=1e-12)

    def test_is_the_mean_over_classes_of_scipys_divergence_between_class_means(self):
        """Unequal class sizes: the mean over classes, not samples; class 1 is left out though both sets have it."""
        rng = np.random.default_rng(1)
        forget, test = draw_rows(rng, 60, 4, 0.3), draw_rows(rng, 90, 4, 0.3)
        labels_forget, labels_test = (
            rng.choice(4, 60, p=[0.6, 0.2, 0.1, 0.1]),
            rng.choice(4, 90, p=[0.1, 0.2, 0.2, 0.5]),
        )
        classes = [3, 0, 2]
        expected = np.mean(
            [
                jensenshannon(forget[labels_forget == c].mean(axis=0), test[labels_test == c].mean(axis=0)) ** 2
                for c in classes
            ]
        )
        value = rf_js_divergence(class_sums(forget, labels_forget), class_sums(test, labels_test), classes)
        assert value == pytest.approx(expected, rel=1e-10)

    def test_zero_probabilities(self):
        """Class 0: (1, 0) against (0, 1), ln 2; class 1: equal means, 0; the mean is ln 2 / 2."""
        value = rf_js_divergence([[3.0, 0.0], [0.0, 2.0]], [[0.0, 1.0], [0.0, 7.0]], [0, 1])
        assert value == pytest.approx(LN2 / 2, rel=1e-15)

    @quick
    @given(shapes)
    def test_invariants(self, shape):
        """In [0, ln 2]; 0 on the same sums; blind to duplicated samples and to the names of the classes."""
        _, k, zeros, seed = shape
        rng = np.random.default_rng(seed)
        forget = draw_rows(rng, k, k, zeros) * rng.integers(1, 50, (k, 1))
        test = draw_rows(rng, k, k, zeros) * rng.integers(1, 50, (k, 1))
        classes = rng.permutation(k)[: rng.integers(1, k + 1)]
        value = rf_js_divergence(forget, test, classes)
        assert 0.0 <= value <= LN2
        assert rf_js_divergence(forget, forget, classes) == 0.0
        assert rf_js_divergence(forget * 2, test * 3, classes) == pytest.approx(value, rel=1e-9, abs=1e-14)
        names = rng.permutation(k)
        renamed = [np.empty((k, k)), np.empty((k, k))]
        for sums, target in zip((forget, test), renamed, strict=True):
            target[np.ix_(names, names)] = sums
        assert rf_js_divergence(*renamed, names[classes]) == pytest.approx(value, rel=1e-9, abs=1e-14)

    def test_published_rf_jsd_by_hand(self):
        """Two classes with the class means of ``TestPublished.test_two_rows_by_hand``: 0.031928 again, R = 2."""
        forget = [[1.0, 1.0, 0.0], [0.0, 0.0, 0.0], [2.0, 8.0, 0.0]]
        test = [[1.0, 3.0, 0.0], [1.0, 0.0, 0.0], [3.0, 2.0, 0.0]]
        value = js_divergence_published(class_means(forget, [0, 2]), class_means(test, [0, 2]))
        assert value == pytest.approx(0.031928, abs=1e-6)


class TestMisuse:
    @pytest.mark.parametrize("bad", [[0.5, 0.5], [[]], [[0.5, 0.6]], [[2.0, -1.0]], [[np.nan, 1.0]], [[3.0, -3.0]]])
    @pytest.mark.parametrize("function", [js_divergence, kl_divergence, js_divergence_published])
    def test_not_distributions(self, function, bad):
        with pytest.raises(ValueError, match="^p:"):
            function(bad, [[0.5, 0.5]])
        with pytest.raises(ValueError, match="^q:"):
            function([[0.5, 0.5]], bad)
        with pytest.raises(ValueError, match="^p:"):
            entropy(bad)

    @pytest.mark.parametrize("function", [js_divergence, kl_divergence, js_divergence_published])
    def test_different_shapes(self, function):
        with pytest.raises(ValueError, match="same shape"):
            function([[0.5, 0.5]], [[0.5, 0.5], [0.5, 0.5]])

    @pytest.mark.parametrize("labels", [[0], [0, 2], [0, -1], [0.0, 1.0], [[0, 1]]])
    def test_class_sums_labels(self, labels):
        with pytest.raises(ValueError, match="^labels:"):
            class_sums([[0.5, 0.5], [0.5, 0.5]], labels)

    @pytest.mark.parametrize("classes", [[], [2], [0, 0], [1], [-1]])
    def test_classes(self, classes):
        """None, unknown, twice, without samples in one of the sums, negative."""
        with pytest.raises(ValueError, match="^classes:"):
            rf_js_divergence([[1.0, 1.0], [1.0, 1.0]], [[1.0, 1.0], [0.0, 0.0]], np.array(classes, dtype=int))

    def test_sums_must_be_square(self):
        with pytest.raises(ValueError, match="^sums:"):
            class_means([[1.0, 1.0]], [0])
