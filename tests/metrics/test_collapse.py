"""Models that no longer tell classes apart, and show ideal values for that."""

import numpy as np
import pytest
import torch
from torch import nn
from toy import class_splits, original, splits

from mlflow_unlearn import evaluate
from mlflow_unlearn.metrics.collapse import chance_accuracy, collapse, stated_collapse
from mlflow_unlearn.metrics.outputs import MetricInputs, SplitOutputs


def outputs(labels, predictions, margins=None) -> SplitOutputs:
    count = len(labels)
    margins = np.linspace(-1, 9, count) if margins is None else np.array(margins)
    halves = np.full(count, 0.5)
    return SplitOutputs(np.array(labels), np.array(predictions), halves, halves, margins, margins, np.zeros((4, 4)))


def found(labels, predictions, margins=None, test=None) -> str | None:
    retain = outputs(labels, predictions, margins)
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

    SAME = "collapsed: every sample of a class is given the same margin"

    def test_equal_margins_within_the_classes_are_always_a_collapse(self):
        """Whatever differs between the classes: no sample is told from another one of its class."""
        assert found([2] * 50, [2] * 50, margins=[0.5] * 50) == self.SAME
        assert found(self.LABELS, self.LABELS, margins=[3.0] * 50 + [7.0] * 50) == self.SAME
        assert found(self.LABELS, [0] * 100, margins=[3.0] * 100).endswith("the same margin")
        assert found([2] * 50, [2] * 50, margins=[0.5] * 50, test=outputs([1, 1], [1, 2])) is None

    @pytest.mark.parametrize(("gap", "collapsed"), [(1e-6, True), (2e-6, False)])
    def test_how_equal(self, gap, collapsed):
        """Two classes of two: an SD of sqrt(4 · (gap / 2)² / 2) = gap / sqrt(2), below 1e-6 for 1e-6."""
        assert (found([0, 0, 1, 1], [0, 0, 1, 1], margins=[0, gap, 5, 5 + gap]) == self.SAME) is collapsed

    def test_of_classes_with_one_sample_each_nothing_is_said(self):
        alone = outputs([3], [3])
        assert found([0, 1, 2], [0, 1, 2], margins=[1.0] * 3, test=alone) is None

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
        """It would have had a mia_auc of 0.5 and a mia_advantage within its null, as is ideal."""
        metrics = evaluate(ruined, sets, original(), original())
        assert {key for key in metrics if not key.startswith("acc_")} == set()
        assert {"acc_forget", "acc_retain", "acc_val", "acc_test"} <= metrics.keys()
        assert metrics.collapsed == metrics.missing["mia_advantage"] == metrics.missing["avg_gap_excess"]

    def test_of_others_all_are(self):
        metrics = evaluate(original(), splits(), original(), original())
        assert (
            metrics.collapsed is None and {"mia_advantage", "mia_auc", "rf_jsd", "avg_gap_advantage"} <= metrics.keys()
        )
