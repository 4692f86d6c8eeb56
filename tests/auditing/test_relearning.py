"""Relearning and the known cheat, on models that have memorised mislabelled samples."""

import numpy as np
import pytest
import torch
import toy
from torch import nn
from torch.utils.data import ConcatDataset

from mlflow_unlearn.auditing.known_cheat import known_cheat
from mlflow_unlearn.auditing.relearning import PARTS, Relearning, relearning
from mlflow_unlearn.engine.features import last_linear
from mlflow_unlearn.engine.loop import RunOptions, run
from mlflow_unlearn.engine.predictions import attack_target
from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.methods.retrain import RetrainParams, Training

RECIPE = RetrainParams(epochs=40, lr=0.1, weight_decay=0.0)
SPLITS = toy.mislabelled_splits()


def trained(data, seed: int):
    model = toy.build_small_resnet(seed)
    return run(model, Training(RECIPE.model_dump()), {"retain": data}, toy.CPU, RunOptions(seed)).model


@pytest.fixture(scope="module")
def original():
    return trained(ConcatDataset([SPLITS.forget, SPLITS.retain]), 0)


@pytest.fixture(scope="module")
def parts(original) -> Relearning:
    made = relearning(attack_target(original, SPLITS, toy.CPU), SPLITS, RECIPE.lr, toy.CPU, seed=0)
    assert isinstance(made, Relearning)
    return made


@pytest.fixture(scope="module")
def cheat(original):
    return known_cheat(original, SPLITS, RECIPE, toy.CPU, seed=4000)


@pytest.mark.slow
def test_what_the_original_knows_is_learned_again_faster(parts, original):
    found = parts.of(original, "original")
    assert found.ratio < 0.5 and found.p_value < 0.01 and found.residual
    assert max(found.forget) < min(found.unseen)


@pytest.mark.nightly
@pytest.mark.parametrize("seed", [1000, 1001])
def test_a_retrained_model_takes_as_long_for_both(parts, seed):
    found = parts.of(trained(SPLITS.retain, seed), "gold")
    assert 0.5 < found.ratio < 2.0 and found.p_value > 0.0025, "not as far apart as can be"


@pytest.mark.slow
def test_a_new_head_on_the_old_backbone_is_caught(parts, original, cheat):
    """It has the accuracy of retraining, and all that the backbone remembers."""
    found = parts.of(cheat, "known cheat")
    assert found.ratio < 0.5 and found.p_value < 0.01
    own = {id(p) for p in last_linear(cheat).parameters()}
    changed = {
        name: not torch.equal(before, after)
        for (name, before), after in zip(original.state_dict().items(), cheat.state_dict().values(), strict=True)
    }
    heads = {name for name, parameter in cheat.named_parameters() if id(parameter) in own}
    assert {name for name, moved in changed.items() if moved} == heads, "BatchNorm's statistics stay as well"
    assert all(parameter.requires_grad for parameter in cheat.parameters()), "it is attacked as the others are"


@pytest.mark.slow
def test_parts_have_the_same_classes_and_share_nothing(parts):
    labels = {split: getattr(SPLITS, split).tensors[1].numpy() for split in ("forget", "test")}
    assert len(parts.forget) == len(parts.unseen) == PARTS
    for split, chosen in (("forget", parts.forget), ("test", parts.unseen)):
        every = np.concatenate(chosen)
        assert len(set(every.tolist())) == every.size
        assert {part.size for part in chosen} == {every.size // PARTS}, split
    for own, other in zip(parts.forget, parts.unseen, strict=True):
        assert sorted(labels["forget"][own]) == sorted(labels["test"][other])


def test_too_few_samples(original):
    few = toy.mislabelled_splits()
    few.forget.tensors = tuple(part[:40] for part in few.forget.tensors)
    found = relearning(attack_target(original, few, toy.CPU), few, 0.1, toy.CPU, seed=0)
    assert found == "needs 48 forgotten and 48 unseen samples of the same classes"


class Decided(nn.Module):
    """Tells the class alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images):
        return nn.functional.one_hot(self.model(images).argmax(dim=1), 10).float()


@pytest.mark.slow
def test_outputs_without_a_gradient(parts):
    assert parts.of(Decided(toy.net()), "audited") == "audited cannot be trained on (its outputs have no gradient)"


@pytest.mark.slow
def test_a_model_that_diverges(parts):
    """Why it cannot be measured, in a sentence: the other models are all the same."""
    wild = toy.net()
    with torch.no_grad():
        last_linear(wild).weight.mul_(1e18)
    found = parts.of(wild, "gold 1")
    assert isinstance(found, str) and found.startswith("gold 1 cannot be trained on (")


@pytest.mark.slow
def test_frozen_weights_are_free_again(parts):
    """Whoever freezes a version's weights does not decide how it is attacked."""
    model = toy.net()
    free = parts.of(model, "audited")
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    assert parts.of(model, "audited") == free
    assert not any(parameter.requires_grad for parameter in model.parameters()), "and it is left as it was"


def test_a_model_without_a_last_layer_that_can_be_trained():
    model = toy.net()
    for parameter in last_linear(model).parameters():
        parameter.requires_grad_(False)
    with pytest.raises(UnlearnError, match="cheat=true needs a model whose last layer is linear and can be trained"):
        known_cheat(model, SPLITS, RECIPE, toy.CPU, seed=0)
