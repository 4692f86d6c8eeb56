"""How a version was trained."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import toy

from mlflow_unlearn.data.datasets import Augmented
from mlflow_unlearn.engine.loop import RunOptions
from mlflow_unlearn.engine.past import ANEW, CHOSEN
from mlflow_unlearn.evidence.checkpoints import Origin
from mlflow_unlearn.evidence.provenance import Provenance
from mlflow_unlearn.session.recipe import recorded_params, training_recipe


def test_of_a_trained_version(opened, options):
    recipe = training_recipe(opened, options)
    assert recipe.params == {"epochs": 20, "lr": 0.05, "batch_size": 32, "weight_decay": recipe.params["weight_decay"]}
    assert (recipe.augment, recipe.seed, recipe.architecture) == ("none", 0, "toy:trainable")
    assert recipe.splits(opened.splits) is opened.splits
    built = recipe.model_factory()
    assert type(built) is type(opened.module) and not toy.same(toy.state(built), toy.state(opened.module))


def test_augmented_training_is_repeated_on_the_retain_set_alone(opened, options):
    splits = replace(training_recipe(opened, options), augment="crop-flip").splits(opened.splits)
    assert isinstance(splits.retain, Augmented) and splits.forget is opened.splits.forget


@pytest.mark.parametrize("recorded", [False, True])
def test_nothing_is_recorded(opened, options, capsys, recorded):
    """Or an unlearning of a version that cannot be opened any more."""
    lotus = Provenance(method="lotus", params={"epochs": 1}, seed=0)
    record = opened.version.record.model_copy(update={"provenance": lotus, "source_uri": None})
    unknown = replace(opened.version, record=record if recorded else None)
    recipe = training_recipe(replace(opened, version=unknown), options)
    assert (recipe.params, recipe.augment, recipe.seed) == ({}, "none", None)
    sentence = "does not record how it was trained; retraining takes the defaults of `retrain`: epochs 15, lr 0.05, "
    said = " ".join(capsys.readouterr().err.split())
    assert said.startswith("Warning: models:/clf/1 ") and f"Warning: {recipe.assumed}." == said
    assert recipe.assumed.startswith(f"models:/clf/1 {sentence}")
    assert np.isfinite(toy.state(recipe.model_factory())["6.weight"].numpy()).all()


def test_what_is_given_takes_the_place_of_what_is_recorded(opened, options, capsys):
    recorded = training_recipe(opened, options, given={"epochs": 3})
    assert (recorded.params["epochs"], recorded.params["lr"], recorded.assumed) == (3, 0.05, None)
    assert not capsys.readouterr().err
    unknown = training_recipe(
        replace(opened, version=replace(opened.version, record=None)), options, given={"epochs": 3}
    )
    assert unknown.params == {"epochs": 3}
    assert "takes the defaults of `retrain` but for what is given (epochs): lr 0.05, batch_size 128" in unknown.assumed


def test_a_retraining_claims_what_it_is(opened, options):
    """Trained without the samples; where otherwise than the version, the claim says so."""
    recipe = replace(training_recipe(opened, options), params={"epochs": 2, "lr": 0.05})
    run = RunOptions(0, model_factory=recipe.model_factory)

    def excluded(recipe, **params):
        claim = recipe.claimed(opened.unlearn("retrain", {"epochs": 2, "lr": 0.05, **params}, run)).exactness
        assert (claim.kind, claim.covers) == ("exact", ANEW) and claim.excludes[0] == CHOSEN
        return claim.excludes[1:]

    assert excluded(recipe) == []
    assert excluded(recipe, epochs=1) == ["The training was not quite the recorded one: epochs 1 and not 2."]
    assert excluded(replace(recipe, assumed="models:/clf/1 does not record it")) == [
        "How the version was trained is not recorded: this recipe may be another one."
    ]
    origin = Origin(uri="models:/clf/9", model_id=None, weights_sha256="0", samples=1, added_sha256="0", at="then")
    [sentence] = excluded(replace(recipe, origin=origin))
    assert sentence == "The training was not quite the recorded one: in one go, and not on from models:/clf/9."


def test_what_retraining_leaves_as_it_was_is_said(opened):
    module = copy.deepcopy(opened.module)
    name, parameter = next(module.named_parameters())
    parameter.requires_grad_(False)
    claim = replace(opened, module=module).unlearn("retrain", {"epochs": 1}, RunOptions(0)).exactness
    assert claim.kind == "approximate"
    assert claim.excludes[1:] == [f"'{name}': not drawn anew, so that it stayed, with whatever it has learned."]


def test_other_methods_claim_nothing(opened):
    for method in ("finetune", "retrain_from"):
        assert opened.unlearn(method, {"epochs": 1}, RunOptions(0)).exactness is None


def test_a_repair_takes_the_recorded_rate_and_says_so_where_there_is_none(opened, options, capsys):
    recorded = recorded_params(opened, options, ["lotus", "transpose"])
    assert recorded == {"transpose": {"lr": 0.05, "batch_size": 32, "weight_decay": 5e-4, "epochs": 7}}
    assert not capsys.readouterr().err
    unknown = replace(opened, version=replace(opened.version, record=None))
    assert recorded_params(unknown, options, ["transpose"]) == {"transpose": {}}
    assert "does not record how it was trained; transpose takes lr = 0.05, the default" in " ".join(
        capsys.readouterr().err.split()
    )
