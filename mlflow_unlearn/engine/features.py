"""What a model makes of images before its last layer, caught during one forward pass."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def last_linear(model: nn.Module) -> nn.Linear | None:
    """The linear layer that comes last among a model's modules; None where it has none, as an exported graph."""
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    return layers[-1] if layers else None


@contextmanager
def last_features(model: nn.Module) -> Iterator[list[Tensor]]:
    """Collects the inputs ``[B, F]`` of the last linear layer, of every pass inside the block; on the CPU, float32.

    Inputs with more axes are averaged over all but the first and the last. The list stays empty where there is no such
    layer.
    """
    caught: list[Tensor] = []

    def keep(_layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        features = inputs[0].detach()
        axes = tuple(range(1, features.ndim - 1))
        caught.append((features.mean(dim=axes) if axes else features).to("cpu", torch.float32))

    layer = last_linear(model)
    handle = layer.register_forward_pre_hook(keep) if layer is not None else None
    try:
        yield caught
    finally:
        if handle is not None:
            handle.remove()
