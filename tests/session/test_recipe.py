"""How a version was trained."""

from dataclasses import replace

import numpy as np
import pytest
import toy

from mlflow_unlearn.data.datasets import Augmented
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
    assert "retraining takes the defaults of `retrain`" in " ".join(capsys.readouterr().err.split())
    assert np.isfinite(toy.state(recipe.model_factory())["6.weight"].numpy()).all()


def test_a_repair_takes_the_recorded_rate_and_says_so_where_there_is_none(opened, options, capsys):
    recorded = recorded_params(opened, options, ["lotus", "transpose"])
    assert recorded == {"transpose": {"lr": 0.05, "batch_size": 32, "weight_decay": 5e-4, "epochs": 7}}
    assert not capsys.readouterr().err
    unknown = replace(opened, version=replace(opened.version, record=None))
    assert recorded_params(unknown, options, ["transpose"]) == {"transpose": {}}
    assert "does not record how it was trained; transpose takes lr = 0.05, the default" in " ".join(
        capsys.readouterr().err.split()
    )
