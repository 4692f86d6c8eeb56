"""Closed cases, parity with SciPy and scikit-learn, invariances, and the null under permutation."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ks_2samp
from sklearn.metrics import roc_auc_score
from torch import nn
from toy import original, splits

from mlflow_unlearn import evaluate
from mlflow_unlearn.engine.forward import true_class_margins
from mlflow_unlearn.metrics import advantage as module
from mlflow_unlearn.metrics.advantage import Sides, advantage, sides
from mlflow_unlearn.metrics.membership import class_matched_weights
from mlflow_unlearn.metrics.reading import read_advantage, read_membership

quick = settings(max_examples=40, deadline=None, derandomize=True)
sizes = st.tuples(st.integers(1, 40), st.integers(1, 60), st.integers(1, 5), st.booleans(), st.integers(0, 2**32 - 1))


def draw_sides(size):
    """Margins and labels of D_f and D_t, with ties or without; a class of D_f may be missing from D_t."""
    n_forget, n_test, k, ties, seed = size
    rng = np.random.default_rng(seed)
    forget, test = rng.normal(size=n_forget), rng.normal(0.3, 1, size=n_test)
    if ties:
        forget, test = np.round(forget), np.round(test)
    return forget, test, rng.integers(k, size=n_forget), rng.integers(k, size=n_test), k


def copies(forget, test, labels_forget, labels_test, k):
    """Both sets with every sample as often as it weighs, times what makes that whole numbers."""
    forget = forget[np.isin(labels_forget, labels_test)]
    counts = np.bincount(labels_test, minlength=k)
    whole = np.lcm.reduce(counts[counts > 0])
    matched = np.bincount(labels_forget, minlength=k) * (whole // np.maximum(counts, 1))
    return forget, np.repeat(test, matched[labels_test])


class TestSides:
    def test_by_hand(self):
        """One class of 4 against 4. Thresholds from above: TPR − FPR is ¼, ½, ¼, 0, ¼, 0, −¼, 0 at the samples.

        Margins 8 f, 7 f, 6 t, 5 t, 4 f, 3 t, 2 t, 1 f: D⁺ = ½ after two forgotten ones, D⁻ = ¼ before the last one.
        """
        found = sides([8, 7, 4, 1], [6, 5, 3, 2], [0] * 4, [0] * 4, 1)
        assert found == Sides(residual=0.5, over=0.25) and found.advantage == 0.5

    def test_classes_are_matched_by_hand(self):
        """Class 0 has ¾ of D_f, and its one unseen sample counts as much; class 1 ¼ and 2 unseen samples.

        m = 5 f0, 4 t0, 3 f0, f0, 2 t1, 1 f1, 0 t1: ¼, −½, 0, −⅛, ⅛, 0. A forgotten sample of class 2 drops out.
        """
        found = sides([5, 3, 3, 1, 9], [4, 2, 0], [0, 0, 0, 1, 2], [0, 1, 1], 3)
        assert found == pytest.approx((0.25, 0.5), abs=1e-15)

    def test_full_separation_and_equal_sets(self):
        assert sides([2, 3], [0, 1], [0, 0], [0, 0], 1) == (1, 0)
        assert sides([0, 1], [2, 3], [0, 0], [0, 0], 1) == (0, 1)
        assert sides([1, 1, 1], [1, 1], [0] * 3, [0] * 2, 1) == pytest.approx((0, 0), abs=1e-15)

    @quick
    @given(sizes)
    def test_is_scipys_where_all_weigh_the_same(self, size):
        forget, test, *_ = draw_sides(size)
        found = sides(forget, test, np.zeros(forget.size, int), np.zeros(test.size, int), 1)
        # SciPy's alternatives are about cumulative distributions, which lie the lower the larger the values are.
        greater, less = (ks_2samp(test, forget, alternative=a, mode="asymp").statistic for a in ("greater", "less"))
        assert found == pytest.approx((greater, less), abs=1e-12)

    @quick
    @given(sizes)
    def test_is_scipys_with_a_weight_as_a_number_of_copies(self, size):
        drawn = draw_sides(size)
        found = sides(*drawn)
        if not class_matched_weights(*drawn[2:])[0].any():
            assert found is None
            return
        forget, test = copies(*drawn)
        greater, less = (ks_2samp(test, forget, alternative=a, mode="asymp").statistic for a in ("greater", "less"))
        assert found == pytest.approx((greater, less), abs=1e-9)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (([np.nan], [0.0], [0], [0], 1), r"^margins_forget: values must be finite\.$"),
            (([0.0], [], [0], [0], 1), r"^margins_test: expected a non-empty array"),
            (([0.0], [0.0], [1], [0], 1), r"^labels_forget: values must be in \[0, 1\)"),
            (([0.0], [0.0], [0], [0, 0], 1), r"^labels_test: expected 1 values, got 2\.$"),
        ],
    )
    def test_misuse(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            sides(*arguments)


class TestAdvantage:
    @quick
    @given(sizes)
    def test_the_auc_is_scikit_learns(self, size):
        drawn = draw_sides(size)
        found = advantage(*drawn, seed=0, permutations=5)
        if found is None:
            return
        weights = np.concatenate(class_matched_weights(*drawn[2:]))
        kept = weights > 0
        is_forget = np.repeat([1, 0], [drawn[0].size, drawn[1].size])[kept]
        margins = np.concatenate(drawn[:2])[kept]
        assert found.auc == pytest.approx(roc_auc_score(is_forget, margins, sample_weight=weights[kept]), abs=1e-9)
        assert found.sides == sides(*drawn)

    @quick
    @given(sizes, st.sampled_from([0.25, 3.0, 100.0]))
    def test_invariants(self, size, factor):
        """Blind to the order of samples, to class names, and to whatever keeps the order of the margins."""
        forget, test, labels_forget, labels_test, k = draw_sides(size)
        found = advantage(forget, test, labels_forget, labels_test, k, seed=3, permutations=20)
        rng = np.random.default_rng(size[-1])
        i, j = rng.permutation(forget.size), rng.permutation(test.size)
        shuffled = advantage(forget[i], test[j], labels_forget[i], labels_test[j], k, seed=3, permutations=20)
        assert shuffled == found
        assert (
            advantage(forget * factor, test * factor, labels_forget, labels_test, k, seed=3, permutations=20) == found
        )
        bent = advantage(np.arctan(forget), np.arctan(test), labels_forget, labels_test, k, seed=3, permutations=20)
        assert bent == found
        if found is not None:
            mirrored = sides(-forget, -test, labels_forget, labels_test, k)
            assert mirrored == pytest.approx((found.sides.over, found.sides.residual), abs=1e-12)

    def test_the_null_is_that_of_plain_permutations(self):
        """Each drawn by hand within the classes, and measured as if it were what was forgotten."""
        rng = np.random.default_rng(0)
        forget, test = rng.normal(size=40), rng.normal(size=70)
        labels_forget, labels_test = rng.integers(3, size=40), rng.integers(3, size=70)
        found = advantage(forget, test, labels_forget, labels_test, 3, seed=1, permutations=4000).null
        pool, labels = np.concatenate([forget, test]), np.concatenate([labels_forget, labels_test])
        values = []
        for _ in range(1500):
            drawn = pool.copy()
            for label in range(3):
                drawn[labels == label] = rng.permutation(drawn[labels == label])
            values.append(sides(drawn[:40], drawn[40:], labels_forget, labels_test, 3).advantage)
        expected = (np.mean(values), *np.quantile(values, [0.8, 0.95]), np.std(values))
        assert (found.mean, found.q80, found.q95, found.se) == pytest.approx(expected, rel=0.06)

    def test_the_null_is_that_of_kolmogorov_and_smirnov(self):
        """The 95 % quantile of the limit is 1.358 · sqrt(1/n + 1/m), and the AUC's SD sqrt((1/n + 1/m) / 12)."""
        rng = np.random.default_rng(0)
        n, m = 400, 600
        zeros = np.zeros(n, int), np.zeros(m, int)
        null = advantage(rng.normal(size=n), rng.normal(size=m), *zeros, 1, seed=0).null
        unit = (1 / n + 1 / m) ** 0.5
        assert null.q95 == pytest.approx(1.358 * unit, rel=0.08) and null.mean == pytest.approx(0.8687 * unit, rel=0.08)
        assert null.auc_high - null.auc_low == pytest.approx(2 * 1.96 * unit / 12**0.5, rel=0.12)
        assert null.mean < null.q80 < null.q95

    def test_it_is_seeded_and_chunks_do_not_matter(self, monkeypatch):
        drawn = draw_sides((30, 50, 3, False, 5))
        found = advantage(*drawn, seed=0)
        assert advantage(*drawn, seed=0) == found != advantage(*drawn, seed=1)
        monkeypatch.setattr(module, "CHUNK_BYTES", 8 * 80 * 7)
        assert advantage(*drawn, seed=0) == found

    def test_one_forgotten_sample_is_measured(self):
        """Its null reaches nearly 1: nothing can be decided, and nothing is left out."""
        found = advantage([9.0], np.arange(10.0), [0], [0] * 10, 1, seed=0)
        assert found.sides.advantage == pytest.approx(0.9) and found.null.q95 >= 0.9

    def test_rounding_leaves_no_value_outside(self):
        """Of one forgotten sample beside 37 unseen ones the highest AUC of the null is 1, and was a little more."""
        found = advantage([9.0], np.arange(37.0), [0], [0] * 37, 1, seed=0)
        assert 0 <= found.null.auc_low <= found.null.auc_high <= 1 and found.auc <= 1
        read_advantage(found.sides.advantage, found.null.q95, found.auc, found.null.auc_low, found.null.auc_high)

    def test_misuse(self):
        with pytest.raises(ValueError, match=r"^permutations: expected at least 1, got 0\.$"):
            advantage([0.0], [0.0], [0], [0], 1, seed=0, permutations=0)


class TestMargins:
    def test_by_hand(self):
        logits = torch.tensor([[1.0, 4.0, 2.0], [1.0, 4.0, 2.0], [5.0, 5.0, 0.0]])
        assert true_class_margins(logits, torch.tensor([1, 2, 0])).tolist() == [2.0, -2.0, 0.0]

    def test_where_probabilities_are_saturated(self):
        """Beyond a logit difference of 37 the largest probability is 1.0 in float64; margins still differ."""
        logits = torch.tensor([[100.0, 0.0], [101.0, 0.0]])
        assert true_class_margins(logits, torch.zeros(2, dtype=torch.long)).tolist() == [100.0, 101.0]

    def test_of_a_single_class(self):
        assert true_class_margins(torch.ones(3, 1), torch.zeros(3, dtype=torch.long)).tolist() == [0.0] * 3


class Scaled(nn.Module):
    def __init__(self, model, factor):
        super().__init__()
        self.model, self.factor = model, factor

    def forward(self, images):
        return self.model(images) * self.factor


@pytest.mark.parametrize("factor", [0.25, 3.0, 10.0, 100.0])
def test_multiplying_all_logits_changes_nothing_that_decides(factor):
    """And softens what decided before: the excess of a model whose outputs are saturated is near 0."""
    plain, scaled = (evaluate(Scaled(original(), f), splits()) for f in (1.0, factor))
    deciding = [key for key in plain if key.startswith(("mia_advantage", "mia_margin"))]
    assert len(deciding) == 10
    assert {key: scaled[key] for key in deciding} == {key: plain[key] for key in deciding}
    assert read_membership(scaled, scaled.missing) == read_membership(plain, plain.missing)
    assert scaled["mia_excess"] != plain["mia_excess"]
