"""Models that no longer tell classes apart, and show ideal values for that."""

import numpy as np
import pytest
import torch
from torch import nn
from toy import class_splits, original, splits

from mlflow_unlearn import evaluate
from mlflow_unlearn.metrics.collapse import chance_accuracy, collapse, stated_collapse
from mlflow_unlearn.metrics.outputs import MetricInputs, SplitOutputs


def outputs(labels, predictions, entropies=None) -> SplitOutputs:
    count = len(labels)
    entropies = np.linspace(0.1, 0.9, count) if entropies is None else np.full(count, entropies)
    return SplitOutputs(np.array(labels), np.array(predictions), entropies, 1 - entropies, np.zeros((4, 4)))


def found(labels, predictions, entropies=None, test=None) -> str | None:
    retain = outputs(labels, predictions, entropies)
    return collapse(MetricInputs({"retain": retain, "test": retain if test is None else test}))


class TestChance:
    def test_by_hand(self):
        """p = 0.8 of 100: 0.8 + 2 · sqrt(0.8 · 0.2 / 100) = 0.8 + 2 · 0.04."""
        assert chance_accuracy([3] * 80 + [1] * 20) == pytest.approx(0.88)
        assert chance_accuracy([1] * 7) == 1

    def test_bad_input(self):
        with pytest.raises(ValueError, match="labels"):
            chance_accuracy([0.5])


class TestCollapse:
    LABELS = [0] * 50 + [1] * 50

    @pytest.mark.parametrize(("right", "collapsed"), [(50, True), (60, True), (61, False), (100, False)])
    def test_up_to_chance(self, right, collapsed):
        """Of two halves of 100 chance is 0.5 + 2 · 0.05, which still counts."""
        wrong = [1 - label for label in self.LABELS[right:]]
        reason = found(self.LABELS, self.LABELS[:right] + wrong)
        told = f"collapsed: acc_retain {right / 100:.4f} is at most 0.6000, the share of the largest class + 2 SE"
        assert reason == (told if collapsed else None)

    def test_where_too_few_samples_tell_nothing_it_is_not_judged(self):
        """Four samples of two classes: chance is 0.5 + 2 · 0.25."""
        assert found([0, 0, 1, 1], [0, 0, 0, 0]) is None

    def test_nor_where_one_class_is_retained(self):
        assert found([2] * 50, [2] * 50) is None

    def test_equal_outputs_are_always_a_collapse(self):
        assert found([2] * 50, [2] * 50, entropies=0.5) == "collapsed: every sample is given the same output"
        assert found(self.LABELS, [0] * 100, entropies=0.5).endswith("the same output")
        assert found([2] * 50, [2] * 50, entropies=0.5, test=outputs([1, 2], [1, 2])) is None

    def test_a_confident_model_gives_no_equal_outputs(self):
        """Entropies of 0 throughout, and different classes."""
        assert found(self.LABELS, self.LABELS, entropies=0.0) is None

    def test_it_is_found_among_reasons(self):
        assert stated_collapse({"a": "no gold", "b": "collapsed: so"}) == "collapsed: so"
        assert stated_collapse({"a": "it has collapsed"}) is None


class TestMetrics:
    """On trained and on ruined models."""

    @pytest.fixture(params=["constant", "noise"])
    def ruined(self, request) -> nn.Module:
        model = original()
        with torch.no_grad():
            if request.param == "constant":
                model[6].weight.zero_()
            else:
                model[0].weight.zero_()
                model[6].bias[4] = 30
        return model.eval()

    @pytest.mark.parametrize("sets", [splits(), class_splits()])
    def test_only_its_accuracies_are_computed(self, ruined, sets):
        """It would have had a mia_auc of 0.5 and a mia_excess of 0, the ideal values."""
        metrics = evaluate(ruined, sets, original(), original())
        assert {key for key in metrics if not key.startswith("acc_")} == set()
        assert {"acc_forget", "acc_retain", "acc_val", "acc_test"} <= metrics.keys()
        assert metrics.collapsed == metrics.missing["mia_auc"] == metrics.missing["avg_gap_excess"]

    def test_of_others_all_are(self):
        metrics = evaluate(original(), splits(), original(), original())
        assert metrics.collapsed is None and {"mia_auc", "mia_excess", "rf_jsd", "avg_gap_excess"} <= metrics.keys()
