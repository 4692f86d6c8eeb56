"""The models, and the digits that they have memorised."""

from collections.abc import Callable, Mapping, Sequence
from functools import cache

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from mlflow_unlearn.engine.architectures import build_model
from mlflow_unlearn.rng import isolated_rng

FORGET = tuple(range(10))
"""Ten samples, one of each class."""
RETAIN = tuple(range(10, 30))
TRAIN = FORGET + RETAIN
VAL, TEST = tuple(range(30, 50)), tuple(range(50, 70))


@cache
def digits() -> tuple[Tensor, Tensor]:
    """Images ``[70, 1, 8, 8]`` in [0, 1] and labels ``[70]``."""
    data = load_digits()
    return torch.tensor(data.images[:70] / 16, dtype=torch.float32)[:, None], torch.tensor(data.target[:70])


def subset(indices: Sequence[int]) -> TensorDataset:
    """The digits at ``indices [N]``: images ``[N, 1, 8, 8]`` in [0, 1] and labels ``[N]``."""
    images, labels = digits()
    return TensorDataset(images[list(indices)], labels[list(indices)])


def of_classes(*classes: int) -> list[int]:
    """The indices of the training set's digits of these classes."""
    return [i for i in TRAIN if int(digits()[1][i]) in classes]


def _cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(512, 10),
    )


def _vit() -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    sizes = {"img_size": 8, "patch_size": 2, "in_chans": 1, "num_classes": 10, "embed_dim": 32, "depth": 2}
    model: nn.Module = VisionTransformer(**sizes, num_heads=2, drop_rate=0.1, proj_drop_rate=0.1)
    return model


def _resnet18() -> nn.Module:
    model = build_model("resnet18", 10, (1, 8, 8))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.3  # Running statistics have but twenty steps to get where they belong.
    return model


MODELS: Mapping[str, tuple[Callable[[], nn.Module], int, float]] = {
    "cnn": (_cnn, 25, 5e-3),
    "vit": (_vit, 140, 2e-3),
    "resnet18": (_resnet18, 20, 3e-4),
}
"""Name → how it is built, and by how many Adam steps at what learning rate it memorises the training set.

Without normalisation and with dropout; with attention, LayerNorm and dropout; with BatchNorm. The steps are short
enough to end at the same place whatever the processor's rounding, and so few that there still is a gradient to go up.
"""


@cache
def original(name: str) -> nn.Module:
    """The trained model ``name`` of `MODELS`, in eval mode: the same in every process. Copy it before use."""
    build, steps, lr = MODELS[name]
    images, labels = subset(TRAIN).tensors
    with isolated_rng(0), torch.inference_mode(False), torch.enable_grad():
        model = build().train()
        optimizer = torch.optim.Adam(model.parameters(), lr)
        for _ in range(steps):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(images), labels)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    model.zero_grad()
    return model.eval()
