"""What claims nothing: a model that remembers beside its weights, and weights that are not drawn at random."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from toy import CPU, Net, digits

from mlflow_unlearn.engine.loop import RunOptions, run
from mlflow_unlearn.engine.memory import beside_the_weights, changed, doubted, is_default, not_drawn
from mlflow_unlearn.evidence.record import Exactness
from mlflow_unlearn.methods.retrain import Retrain

SETS = {"retain": digits(0, 64)}
RECIPE = {"epochs": 1, "batch_size": 16, "lr": 0.05}


class Remembering(nn.Module):
    """Counts the images that it was trained on, somewhere."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.net, self.where = Net(), where
        self.attribute, self.inside = 0, {"seen": [torch.zeros(1)]}
        self.array = np.zeros(1)
        self.register_buffer("kept", torch.zeros(1), persistent=False)
        self.register_buffer("stored", torch.zeros(1))

    def forward(self, images):
        if self.training:
            if self.where == "attribute":
                self.attribute += len(images)
            elif self.where == "inside":
                self.inside["seen"][0] += len(images)
            elif self.where == "array":
                self.array += len(images)
            elif self.where in ("kept", "stored"):
                getattr(self, self.where).add_(len(images))
        return self.net(images)


def retrained(model, build=None):
    return run(model, Retrain(RECIPE), SETS, CPU, RunOptions(0, model_factory=build)).exactness


@pytest.mark.parametrize("where", ["attribute", "inside", "array", "kept"])
def test_what_is_in_no_state_dict(where):
    model = Remembering(where)
    claim = retrained(model, lambda: Remembering(where))
    assert claim.kind == "approximate" and claim.excludes[-1].startswith(
        f"'{where}': changed in training and in no state"
    )


def test_a_model_that_does_not_is_exact():
    assert retrained(Remembering("nowhere"), lambda: Remembering("nowhere")).kind == "exact"
    assert retrained(Net()).kind == "exact"


def test_a_buffer_that_no_reset_reaches():
    """The version was registered without an architecture by which it can be built anew."""
    model = Remembering("stored")
    model.stored.fill_(500.0)
    claim = retrained(model)
    assert claim.kind == "approximate" and "'stored': not drawn anew" in claim.excludes[-1]
    constant = Remembering("nowhere")
    constant.stored.fill_(500.0)  # such as the mean of the pixels
    assert retrained(constant).kind == "exact"
    assert retrained(model, lambda: Remembering("stored")).kind == "exact"


def test_a_parameter_that_no_reset_reaches():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.scale = Net(), nn.Parameter(torch.ones(1))

        def reset_parameters(self):
            """Nothing of its own."""

        def forward(self, images):
            return self.scale * self.net(images)

    model = Scaled()
    assert retrained(model).kind == "exact"
    with torch.no_grad():
        model.scale.fill_(4.49)
    claim = retrained(model)
    assert claim.kind == "approximate" and "'scale': not drawn anew" in claim.excludes[-1]


def test_a_constant_of_a_builder_is_not_what_stayed():
    """Such as a layer's initial scale, in a version that has not learned another one."""

    def build():
        model = Net()
        torch.nn.init.constant_(model[-1].bias, 1e-6)
        return model

    assert retrained(build(), build).kind == "exact"


def test_a_builder_that_gives_what_was_trained_before():
    trained = Net()

    def build():
        fresh = Net()
        fresh[-1].load_state_dict(trained[-1].state_dict())
        return fresh

    assert not not_drawn(Net) and not_drawn(build) == ["6.weight", "6.bias"]
    claim = retrained(Net(), build)
    assert claim.kind == "approximate" and "'6.weight', '6.bias': not drawn at random" in claim.excludes[-1]


def test_the_random_state_is_left_alone():
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    not_drawn(Net)
    assert torch.equal(before, torch.random.get_rng_state())


def test_weights_that_an_attribute_names_as_well_are_not_beside_them():
    model = Net()
    model.tied = [model[-1].weight]
    before = beside_the_weights(model)
    with torch.no_grad():
        model[-1].weight.add_(1)
    assert changed(before, beside_the_weights(model)) == []
    model.tied.append(3)
    assert changed(before, beside_the_weights(copy.deepcopy(model))) == ["tied"]


def test_defaults():
    assert is_default(torch.zeros(3)) and is_default(torch.ones(2, 2)) and is_default(torch.empty(0))
    assert not is_default(torch.full((3,), 0.5)) and not is_default(torch.tensor([0.0, 1.0]))


def test_a_claim_without_doubts_stays():
    claim = Exactness(kind="exact up to numerics", excludes=["a"])
    assert doubted(claim, [], "b") is claim and doubted(None, ["x"], "b") is None
    assert doubted(claim, ["x"], "b").excludes == ["a", "'x': b."]
