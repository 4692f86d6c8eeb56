import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score

from mlflow_unlearn.metrics.accuracy import accuracy, avg_gap

quick = settings(max_examples=40, deadline=None, derandomize=True)


class TestAccuracy:
    @quick
    @given(st.integers(1, 50), st.integers(0, 2**32 - 1))
    def test_is_scikit_learns_with_and_without_a_mask(self, n, seed):
        rng = np.random.default_rng(seed)
        predictions, labels, mask = rng.integers(3, size=n), rng.integers(3, size=n), rng.random(n) < 0.5
        mask[rng.integers(n)] = True
        assert accuracy(predictions, labels) == pytest.approx(accuracy_score(labels, predictions), rel=1e-15)
        expected = accuracy_score(labels[mask], predictions[mask])
        assert accuracy(predictions, labels, mask) == pytest.approx(expected, rel=1e-15)

    def test_is_not_rounded(self):
        assert accuracy([0] * 3, [0, 0, 1]) == 2 / 3

    def test_a_mask_without_samples(self):
        with pytest.raises(ValueError, match=r"^mask: no sample is left to count\.$"):
            accuracy([0, 1], [0, 1], [False, False])

    @pytest.mark.parametrize(
        ("predictions", "labels", "mask", "message"),
        [
            ([], [], None, "predictions: expected a non-empty integer array of shape [N], got float64 [0]."),
            ([0, 1], [0], None, "predictions and labels must have one length, got 2 and 1."),
            ([0], [0, 1], None, "predictions and labels must have one length, got 1 and 2."),
            (
                [[0], [1]],
                [0, 1],
                None,
                "predictions: expected a non-empty integer array of shape [N], got int64 [2, 1].",
            ),
            (
                [0.2, 0.8],
                [0, 1],
                None,
                "predictions: expected a non-empty integer array of shape [N], got float64 [2].",
            ),
            ([0, 1], [0.2, 0.8], None, "labels: expected a non-empty integer array of shape [N], got float64 [2]."),
            ([0, 1], [0, 1], [True], "mask: expected a bool array of shape [2], got bool [1]."),
            ([0, 1], [0, 1], [0, 1], "mask: expected a bool array of shape [2], got int64 [2]."),
        ],
    )
    def test_misuse(self, predictions, labels, mask, message):
        """Among others: a probability in the place of a class, an index in the place of a mask."""
        with pytest.raises(ValueError) as error:
            accuracy(predictions, labels, mask)
        assert str(error.value) == message


class TestAvgGap:
    UNLEARNED = {"mia": 0.821, "mia_excess": 0.099, "acc_forget": 0.992, "acc_retain": 0.990, "acc_test": 0.871}
    GOLD = {"mia": 0.793, "mia_excess": 0.133, "acc_forget": 0.904, "acc_retain": 1.000, "acc_test": 0.870}

    def test_by_hand(self):
        """(0.028 + 0.088 + 0.010 + 0.001) / 4 = 0.03175; with the excess (0.034 + 0.099) / 4 = 0.03325."""
        assert avg_gap(self.UNLEARNED, self.GOLD) == pytest.approx(0.03175, rel=1e-12)
        assert avg_gap(self.UNLEARNED, self.GOLD, mia_key="mia_excess") == pytest.approx(0.03325, rel=1e-12)

    def test_is_a_distance(self):
        assert avg_gap(self.GOLD, self.GOLD) == 0.0
        assert avg_gap(self.GOLD, self.UNLEARNED) == avg_gap(self.UNLEARNED, self.GOLD)

    @pytest.mark.parametrize("key", ["mia", "acc_forget", "acc_retain", "acc_test"])
    def test_a_missing_term_is_named(self, key):
        without = {name: value for name, value in self.GOLD.items() if name != key}
        with pytest.raises(ValueError, match=rf"^{key}: missing in the metrics of the gold model\.$"):
            avg_gap(self.UNLEARNED, without)
        with pytest.raises(ValueError, match=rf"^{key}: missing in the metrics of the unlearned model\.$"):
            avg_gap({**self.GOLD, key: None}, self.GOLD)
