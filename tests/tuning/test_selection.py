"""How trials are selected: the metrics on the validation set, and which of them is minimised."""

import math

import pytest
import torch
from toy import CPU, class_splits, original, splits

from mlflow_unlearn.engine.predictions import evaluate_splits
from mlflow_unlearn.metrics.catalog import OBJECTIVES, ON_VALIDATION
from mlflow_unlearn.metrics.suite import Metrics, compute_metrics
from mlflow_unlearn.tuning.selection import constraints, criterion, needs_gold, noise_floor, on_validation


def test_the_validation_set_stands_in_the_place_of_the_test_set():
    outputs = evaluate_splits(original(), splits(), CPU)
    swapped = {"forget": outputs["forget"], "retain": outputs["retain"], "test": outputs["val"]}
    expected = compute_metrics(swapped, original_test=outputs["val"], gold=swapped, seed=2)
    found = on_validation(outputs, outputs, gold=outputs, seed=2)
    assert list(found) == [name for name, metric in ON_VALIDATION.items() if metric.key in expected]
    assert found == {name: expected[metric.key] for name, metric in ON_VALIDATION.items()}
    assert {"acc_forget", "acc_retain", "acc_val", "mia_auc_val_low"} <= set(found)
    assert on_validation({**outputs, "test": outputs["forget"]}, outputs, gold=outputs, seed=2) == found


def test_without_gold_no_one_misses_the_distance_to_it():
    outputs = evaluate_splits(original(), class_splits(3), CPU)
    found = on_validation(outputs, outputs, seed=0)
    assert set(found) | set(found.missing) == set(ON_VALIDATION) - {
        "avg_gap_advantage_val",
        "avg_gap_val",
        "avg_gap_excess_val",
    }
    assert set(found.missing) == {"rf_jsd_val"}


def test_reasons_name_the_validation_set():
    outputs = evaluate_splits(original(), splits(), CPU)
    label = outputs["forget"].labels[0]
    other = class_splits(int(label))
    outputs["forget"] = evaluate_splits(original(), other, CPU, only=("forget",))["forget"]
    outputs["retain"] = evaluate_splits(original(), other, CPU, only=("retain",))["retain"]
    outputs["val"] = outputs["retain"]
    found = on_validation(outputs, outputs, seed=0)
    assert found.missing["entropy_ks_val"] == "no class of the forget set occurs in the validation set"


@pytest.mark.parametrize("name", OBJECTIVES)
def test_an_objective_is_0_at_the_ideal_and_grows_with_the_distance(name):
    ideal = {part: ON_VALIDATION[part].ideal for part in ON_VALIDATION}
    assert criterion(name, ideal) == 0
    away = {part: value if value is None else value + 0.25 for part, value in ideal.items()}
    assert criterion(name, away) == 0.25 * len(OBJECTIVES[name])


def test_both_signs_of_an_excess_count_and_one_side_of_an_auc():
    assert criterion("mia_excess_val", {"mia_excess_val": -0.5}) == 0.5
    assert criterion("mia_auc_val", {"mia_auc_val": 0.25}) == 0


class TestACollapsedModel:
    """It would look ideal: no attack finds anything on it."""

    @staticmethod
    def measured(ruined=True, sets=None):
        sets = sets or splits()
        model = original()
        if ruined:
            torch.nn.init.zeros_(model[6].weight)
        before, after = (evaluate_splits(one, sets, CPU) for one in (original(), model))
        return on_validation(after, before, gold=before, seed=0), on_validation(before, before, gold=before, seed=0)

    @pytest.mark.parametrize("name", OBJECTIVES)
    def test_it_is_as_far_from_every_ideal_as_can_be(self, name):
        """mia_excess ends at ±1, an AUC at 0 and 1, and so on; others come no further."""
        metrics, before = self.measured()
        assert metrics.collapsed is not None and before.collapsed is None
        worst = {"rf_jsd_val": math.log(2), "mia_excess_val": 1, "mia_auc_val": 0.5, "entropy_ks_val": 1}
        worst |= {"avg_gap_excess_val": 1.25, "rf_jsd_mia_val": math.log(2) + 1, "mia_advantage_val": 1}
        worst |= {"avg_gap_advantage_val": 1, "rf_jsd_advantage_val": math.log(2) + 1}
        assert criterion(name, metrics) == pytest.approx(worst[name])
        assert criterion(name, metrics) > criterion(name, before)

    def test_it_is_infeasible_by_as_many_constraints_as_others_have(self):
        for sets in (splits(), splits(5, 195)):
            metrics, before = self.measured(sets=sets)
            found, others = constraints(metrics, before), constraints(before, before)
            assert found["collapsed"] == 1 and "collapsed" not in others and len(found) == len(others)


class TestToldApart:
    BEFORE = {"acc_val": 0.9, "acc_retain": 1.0}

    @pytest.mark.parametrize(("value", "broken"), [(0.3, True), (0.1, False), (0.05, False)])
    def test_what_stands_out_on_whichever_side_breaks_a_constraint(self, value, broken):
        found = constraints({**self.BEFORE, "mia_advantage_val": value, "mia_advantage_null_val": 0.1}, self.BEFORE)
        assert found["told_apart"] == pytest.approx(value - 0.1) and (found["told_apart"] > 0) is broken

    def test_where_it_was_not_measured_nothing_is_broken(self):
        assert "told_apart" not in constraints(self.BEFORE, self.BEFORE)


def floor(null, n_forget=50, n_test=400):
    before = Metrics()
    before.update({"mia_advantage_val": 0.5, "mia_advantage_null_mean_val": 0.06, "mia_advantage_null_val": null})
    before.counts.update({"n_forget": n_forget, "n_test": n_test})
    return noise_floor(before)


def test_the_noise_floor_in_words():
    """At 0.2 for 50 samples it takes 1 / ((1/50 + 1/400) · (0.15 / 0.2)² − 1/400) = 98.5 of them."""
    told = "mia_advantage_val is 0.060 by chance alone in the mean, and up to "
    assert floor(0.1) == f"{told}0.100 in 95 % of the cases"
    few = "in 95 % of the cases: these are too few samples for tuning"
    assert floor(0.2) == f"{told}0.200 {few}; about 99 forgotten samples would do"
    assert floor(0.5, n_test=20) == f"{told}0.500 {few}; more validation samples would do"
    assert noise_floor(Metrics()) == ""


def test_which_objective_needs_gold():
    assert [name for name in OBJECTIVES if needs_gold(name)] == ["avg_gap_advantage_val", "avg_gap_excess_val"]
