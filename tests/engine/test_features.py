"""What goes into the last linear layer, caught in the same pass that gives the logits."""

import pytest
import torch
import toy
from torch import nn

from mlflow_unlearn.engine.features import last_features, last_linear
from mlflow_unlearn.engine.predictions import evaluate_split


def test_the_last_layer_makes_the_logits_of_them():
    model, images = toy.net().eval(), toy.digits(0, 20)
    with last_features(model) as caught, torch.no_grad():
        logits = model(images.tensors[0])
    assert len(caught) == 1 and caught[0].shape == (20, 128)
    with torch.no_grad():
        torch.testing.assert_close(last_linear(model)(caught[0]), logits)
        model(images.tensors[0])
    assert len(caught) == 1, "outside the block nothing is caught"


def test_in_the_order_of_a_split():
    model, images = toy.net().eval(), toy.digits(0, 300)
    with last_features(model) as caught:
        outputs = evaluate_split(model, images, toy.CPU)
    with torch.no_grad():
        logits = last_linear(model)(torch.cat(caught))
    assert logits.argmax(dim=1).tolist() == outputs.predictions.tolist()


def test_tokens_are_averaged():
    model = nn.Sequential(nn.Identity(), nn.Linear(3, 2))
    with last_features(model) as caught:
        model(torch.arange(12.0).reshape(1, 4, 3))
    assert caught[0].tolist() == [[4.5, 5.5, 6.5]]


def test_a_model_without_one():
    model = nn.Conv2d(1, 2, 3)
    with last_features(model) as caught:
        model(torch.zeros(1, 1, 4, 4))
    assert caught == [] and last_linear(model) is None


def test_an_error_leaves_no_hook():
    model = toy.net()
    with pytest.raises(RuntimeError), last_features(model):
        model(torch.zeros(1, 5, 8, 8))
    assert not last_linear(model)._forward_pre_hooks
