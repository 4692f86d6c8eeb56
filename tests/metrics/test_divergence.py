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
    js_divergence,
    js_divergence_published,
    rf_js_divergence,
)

quick = settings(max_examples=40, deadline=None, derandomize=True)


def draw_rows(rng, n, k, zeros=0.0):
    """Distributions [n, k] over many orders of magnitude, a part of the entries exactly 0 (never a whole row)."""
    weights = np.exp(rng.normal(0.0, 4.0, (n, k)))
    weights[rng.random((n, k)) < zeros] = 0.0
    weights[:, 0] = np.where(weights.sum(axis=1) == 0.0, 1.0, weights[:, 0])
    return weights / weights.sum(axis=1, keepdims=True)


shapes = st.tuples(st.integers(1, 12), st.integers(1, 9), st.sampled_from([0.0, 0.5, 0.9]), st.integers(0, 2**32 - 1))


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

    def test_float_error_does_not_make_it_negative(self):
        """Two rows 3e-9 apart are about 1e-17 apart, which float64 makes −2e-17 of."""
        assert js_divergence([[0.04, 0.96]], [[0.04 + 3e-9, 0.96 - 3e-9]])[0] == 0.0

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

    @np.errstate(all="raise")
    def test_a_class_that_neither_row_has_is_not_divided_by(self):
        assert js_divergence([[0.0, 0.5, 0.5]], [[0.0, 0.5, 0.5]]).tolist() == [0.0]


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
        sums = np.eye(4)[labels_forget].T @ forget, np.eye(4)[labels_test].T @ test
        value = rf_js_divergence(*sums, classes)
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
    @pytest.mark.parametrize("function", [js_divergence, js_divergence_published])
    def test_not_distributions(self, function, bad):
        with pytest.raises(ValueError, match="^p:"):
            function(bad, [[0.5, 0.5]])
        with pytest.raises(ValueError, match="^q:"):
            function([[0.5, 0.5]], bad)

    @pytest.mark.parametrize("function", [js_divergence, js_divergence_published])
    def test_different_shapes(self, function):
        with pytest.raises(ValueError, match="same shape"):
            function([[0.5, 0.5]], [[0.5, 0.5], [0.5, 0.5]])

    @pytest.mark.parametrize(
        ("classes", "message"),
        [
            ([], "classes: expected a non-empty integer array of shape [N], got int64 [0]."),
            ([2, 0], "classes: values must be in [0, 2), got 0 to 2."),
            ([0, -1], "classes: values must be in [0, 2), got -1 to 0."),
            ([0, 0], "classes: each class may occur once."),
            ([0, 1], "classes: no sample of the classes [1] in the sums."),
        ],
    )
    def test_classes(self, classes, message):
        """None, unknown, negative, twice, without samples in one of the sums."""
        with pytest.raises(ValueError) as error:
            rf_js_divergence([[1.0, 1.0], [1.0, 1.0]], [[1.0, 0.0], [0.0, 0.0]], np.array(classes, dtype=int))
        assert str(error.value) == message

    @pytest.mark.parametrize(
        ("sums", "message"),
        [
            ([[1.0, 1.0]], "expected shape [K, K], got [1, 2]."),
            ([[1.0], [1.0]], "expected shape [K, K], got [2, 1]."),
            ([[1.0, -1.0], [1.0, 1.0]], "values must be finite and not negative."),
        ],
    )
    def test_sums(self, sums, message):
        with pytest.raises(ValueError) as error:
            class_means(sums, [0])
        assert str(error.value) == f"sums: {message}"
