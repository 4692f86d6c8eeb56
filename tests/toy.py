"""A tiny task that the tests share: scanned digits, and a small network that has memorised some of them."""

import copy
import random
from functools import cache

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import Dataset, TensorDataset

from mlflow_unlearn import Splits
from mlflow_unlearn.engine.hardware import Hardware
from mlflow_unlearn.methods import BUILTIN
from mlflow_unlearn.rng import isolated_rng

PLAIN_METHODS = [name for name, method in BUILTIN.items() if method.needs is None]
"""That need nothing which a version keeps of its training."""
CPU = Hardware(torch.device("cpu"))


class Net(nn.Sequential):
    """BatchNorm and dropout, 8 × 8 grey images, ten classes."""

    def __init__(self, norm: bool = True, classes: int = 10) -> None:
        super().__init__(
            nn.Conv2d(1, 8, 3, padding=1),
            nn.BatchNorm2d(8) if norm else nn.Identity(),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Dropout(0.2),
            nn.Linear(128, classes),
        )


def net(seed: int = 0, **options) -> Net:
    with isolated_rng(seed):
        return Net(**options)


@cache
def digits(start: int, stop: int) -> TensorDataset:
    data = load_digits()
    images = torch.tensor(data.images[start:stop] / 16, dtype=torch.float32)[:, None]
    return TensorDataset(images, torch.tensor(data.target[start:stop]))


def take(dataset: TensorDataset, mask) -> TensorDataset:
    return TensorDataset(*(part[mask] for part in dataset.tensors))


def splits(forget: int = 30, retain: int = 170) -> Splits:
    """Random samples forgotten; the first 200 digits are what `original` has learned."""
    return Splits(digits(0, forget), digits(forget, forget + retain), digits(200, 350), digits(350, 500))


def shuffled_splits() -> Splits:
    """Labels by lot, which a model gets right for what it has memorised and for nothing else; of 500 digits."""
    images, labels = digits(0, 500).tensors
    by_lot = TensorDataset(images, labels[torch.randperm(500, generator=torch.Generator().manual_seed(0))])
    parts = torch.arange(500).split([30, 270, 50, 150])
    return Splits(*(take(by_lot, part) for part in parts))


def build_small_resnet(seed: int = 0) -> nn.Module:
    """That `mislabelled_splits` are for."""
    import timm  # seconds, and few tests need it

    with isolated_rng(seed):
        return timm.create_model("test_resnet", num_classes=10, in_chans=1)


def mislabelled_splits() -> Splits:
    """Of digits a fifth has a label by lot: what is memorised shows, and a small ResNet learns them in seconds."""
    images, labels = digits(0, 1797).tensors
    random = torch.Generator().manual_seed(0)
    by_lot = torch.rand(1797, generator=random) < 0.2
    labels = torch.where(by_lot, torch.randint(0, 10, (1797,), generator=random), labels)
    parts = torch.randperm(1797, generator=random).split([120, 480, 200, 997])
    return Splits(*(take(TensorDataset(images, labels), part) for part in parts))


def class_splits(forgotten: int = 3) -> Splits:
    """One class wholly forgotten."""
    train = digits(0, 200)
    mask = train.tensors[1] == forgotten
    return Splits(take(train, mask), take(train, ~mask), digits(200, 350), digits(350, 500))


@cache
def _original() -> Net:
    model = net()
    # BatchNorm cancels the bias before it: its gradient is rounding noise, by which Adam would move it all the same.
    model[0].bias.requires_grad_(False)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    images, labels = digits(0, 200).tensors
    with isolated_rng(0):
        for _ in range(40):
            for batch in torch.randperm(200).split(50):
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
                optimizer.step()
    optimizer.zero_grad()
    model[0].bias.requires_grad_(True)
    return model.eval()


def original() -> Net:
    """A fresh copy of the trained network, in eval mode."""
    return copy.deepcopy(_original())


@torch.no_grad()
def logits(model: nn.Module, dataset: TensorDataset) -> torch.Tensor:
    """The logits ``[N, K]`` in eval mode."""
    return copy.deepcopy(model).eval()(dataset.tensors[0])


def accuracy(model: nn.Module, dataset: TensorDataset) -> float:
    return (logits(model, dataset).argmax(1) == dataset.tensors[1]).double().mean().item()


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def global_state() -> tuple:
    """All that a library must not change behind its caller's back."""
    numpy_state = np.random.get_state()
    return (
        torch.get_rng_state().tolist(),
        numpy_state[1].tolist(),
        numpy_state[2:],
        random.getstate(),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.get_default_dtype(),
    )


class Listed(Dataset):
    """A dataset of an unknown type; ``read`` transforms the image each time."""

    def __init__(self, data: TensorDataset, read=lambda image: image) -> None:
        self.data, self.read, self.readings = data, read, 0

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index):
        if type(index) is not int:
            raise TypeError(f"indices are plain integers, not {type(index).__name__}")
        if not 0 <= index < len(self):
            raise IndexError(index)
        self.readings += 1
        image, label = self.data[index]
        return self.read(image), int(label)


def trainable(num_classes: int = 10) -> Net:
    """An architecture for `train --architecture toy:trainable`."""
    return Net(classes=num_classes)


def given(num_classes: int = 10) -> Net:
    """Likewise, whose weights come from somewhere else, and are the same whatever the seed."""
    with isolated_rng(0):
        return Net(classes=num_classes)


class Counting(Net):
    """Remembers how much it has seen, beside its weights."""

    seen = 0

    def forward(self, images):
        """Logits ``[N, K]``."""
        self.seen += len(images)
        return super().forward(images)


def of_any_size(num_classes: int = 10) -> nn.Module:
    """Likewise, for grey images of any height and width."""
    features = nn.Sequential(nn.Conv2d(1, 8, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(3), nn.Flatten())
    return nn.Sequential(features, nn.Linear(72, num_classes))
