"""Training and eval mode of a module, put back as they were found."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import nn


@contextmanager
def in_mode(model: nn.Module, training: bool) -> Iterator[None]:
    """Training or eval mode inside; every submodule's own mode is put back after.

    An exported program has its mode baked in and refuses ``eval()``; it needs none.
    """
    modes = [(module, module.training) for module in model.modules()]
    for module, _ in modes:
        module.training = training
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def eval_mode(model: nn.Module) -> AbstractContextManager[None]:
    """Eval mode inside; every submodule's own mode is put back after."""
    return in_mode(model, False)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """`eval_mode` and inference mode inside."""
    with eval_mode(model), torch.inference_mode():
        yield
