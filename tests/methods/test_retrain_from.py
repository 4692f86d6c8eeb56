import pytest
import torch
from torch import nn
from toy import class_splits, net, original, splits, state
from watching import watch

from mlflow_unlearn import Splits, unlearn
from mlflow_unlearn.engine.frozen_prefix import split_points
from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.methods.retrain_from import RetrainFrom


def kept(result, model):
    before, after = state(model), state(result.model)
    return {name for name in before if torch.equal(before[name], after[name])}


@pytest.mark.filterwarnings("ignore::mlflow_unlearn.errors.UnlearnWarning")
class TestRetrainFrom:
    def test_what_is_before_the_split_stays_and_the_rest_is_trained_anew(self):
        result = unlearn(original(), splits(), "retrain_from", {"epochs": 1, "lr": 1e-6, "split": "6"})
        assert kept(result, original()) == {name for name in state(original()) if not name.startswith("6.")}
        assert (result.model[6].weight - original()[6].weight).abs().max() > 0.05
        assert result.final == {"split_depth": 0.5}
        assert any("kept the layers before 6, which cannot forget" in sentence for sentence in result.warnings)

    def test_a_class_that_goes_wholly_takes_all_layers_with_it(self):
        outcome, _ = watch(RetrainFrom({"epochs": 1}), sets=class_splits())
        assert any(f"before {split_points(original())[0]}," in sentence for sentence in outcome.warnings)

    def test_too_few_samples_to_measure_take_them_as_well_and_say_so(self):
        outcome, _ = watch(RetrainFrom({"epochs": 1}), sets=splits(9, 100))
        assert outcome.warnings[0].startswith(
            "only 9 forget samples share a class with the validation set; at least 10 are needed"
        )
        assert f"before {split_points(original())[0]}," in outcome.warnings[1]

    def test_the_forget_set_is_read_for_the_choice_alone(self):
        """Measured or given, the same place gives the same weights."""
        sets = splits()
        model = net(norm=False)
        first = unlearn(model, Splits(sets.val, sets.retain, sets.test, sets.test), "retrain_from", {"epochs": 1})
        chosen = first.warnings[0].partition("before ")[2].partition(",")[0]
        again = unlearn(model, sets, "retrain_from", {"epochs": 1, "split": chosen}, seed=0)
        assert kept(first, model) == kept(again, model)

    def test_a_frozen_rest_is_refused(self):
        model = original()
        model[6].requires_grad_(False)
        with pytest.raises(UnlearnError, match="no parameter behind '6' is trained: set requires_grad"):
            unlearn(model, splits(), "retrain_from", {"split": "6"})

    def test_a_place_that_is_none(self):
        with pytest.raises(UnlearnError, match="the model has no module 'layer9' to cut before"):
            unlearn(original(), splits(), "retrain_from", {"split": "layer9"})


def test_a_model_that_cannot_be_split_is_refused():
    reason = RetrainFrom.unsuited(nn.Linear(64, 10))
    assert reason == "retrain_from finds no place where this model can be split: use perturb, which needs none"
