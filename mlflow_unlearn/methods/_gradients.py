"""Gradients by name of parameter, for SSD, SalUn and MSG."""

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn

from mlflow_unlearn.engine.hardware import checked_logits
from mlflow_unlearn.engine.modes import eval_mode


def gradients(loss: Tensor, parameters: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """``∂ loss / ∂θ`` of the scalar ``loss`` by name of each parameter that it depends on, of the parameter's shape."""
    found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    return ((name, gradient) for name, gradient in zip(parameters, found, strict=True) if gradient is not None)


def mean_gradient(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """``∇ mean CE`` over all samples by name of each trainable parameter, of its shape; the model is in eval mode.

    ``batches`` yields images ``[B, C, H, W]`` and labels ``[B]``.
    """
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    total = {name: torch.zeros_like(p) for name, p in trainable.items()}
    count = 0
    with eval_mode(model):
        for images, labels in batches:
            logits = checked_logits(model(images), labels)
            loss = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
            for name, gradient in gradients(loss, trainable):
                total[name] += gradient
            count += len(labels)
    return {name: value / count for name, value in total.items()}
