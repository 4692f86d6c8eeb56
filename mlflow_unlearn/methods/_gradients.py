"""Gradients by name of parameter, for SSD and SalUn."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor


def gradients(loss: Tensor, parameters: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """``∂ loss / ∂θ`` of the scalar ``loss`` by name of each parameter that it depends on, of the parameter's shape."""
    found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    return ((name, gradient) for name, gradient in zip(parameters, found, strict=True) if gradient is not None)
