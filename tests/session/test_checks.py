"""Whether a model and its data fit each other."""

from dataclasses import replace

import pytest
import torch
import toy
from torch import nn
from torch.utils.data import TensorDataset

from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.session.checks import check_alike, check_outputs

CLASSES = tuple("0123456789")


def check(module: nn.Module, dataset=None):
    return check_outputs(module, dataset or toy.digits(0, 20), CLASSES, "models:/clf/1")


def test_a_model_that_fits():
    module = toy.net().train()
    assert check(module) == (1, 8, 8)
    assert module.training


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (toy.Net(classes=7), "has 7 outputs and the data has 10 classes"),
        (nn.Sequential(toy.Net(), nn.Softmax(1)), "returns probabilities"),
        (nn.Sequential(toy.Net(), nn.Unflatten(1, (5, 2))), r"a tensor of shape \[8, 5, 2\]"),
        (nn.Linear(3, 10), r"cannot read images \[1, 8, 8\] \(RuntimeError: .*\): give another transform="),
    ],
)
def test_a_model_that_does_not(module, message):
    with pytest.raises(UnlearnError, match=message):
        check(module)


@pytest.mark.parametrize(
    "images", [[torch.zeros(1, 8, 8), torch.zeros(1, 9, 9)], [torch.zeros(8, 8)] * 2, ["a picture"] * 2]
)
def test_images_of_no_single_shape(images):
    with pytest.raises(UnlearnError, match=r"give tensors \[C, H, W\] of one shape"):
        check(toy.net(), [(image, 0) for image in images])


def test_fewer_than_eight_samples():
    assert check(toy.net(), TensorDataset(torch.zeros(2, 1, 8, 8), torch.tensor([0, 1]))) == (1, 8, 8)


def test_two_models_read_alike(opened):
    check_alike(opened.version, opened.view)
    check_alike(replace(opened.version, record=None), replace(opened.view, transform="imagenet"))
    with pytest.raises(UnlearnError, match="transform 'none', the other with 'imagenet'"):
        check_alike(opened.version, replace(opened.view, transform="imagenet"))
    with pytest.raises(UnlearnError, match="classes in another order"):
        check_alike(opened.version, replace(opened.view, classes=opened.view.classes[::-1]))
