"""Forward passes: read a dataset in order, in eval mode, with large batches."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, default_collate

from mlflow_unlearn.compute import Precision, autocast, evaluating
from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.progress import track

BATCH_SIZE = 256


@dataclass(frozen=True)
class Hardware:
    """Where and how a command computes, decided once."""

    device: torch.device
    precision: Precision = "fp32"
    num_workers: int = 0
    progress: bool = False


def forward(
    model: nn.Module, dataset: Dataset[Any], hardware: Hardware, *, description: str = "evaluating"
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield ``(logits [B, K] float32, labels [B])`` on the model's device, in the dataset's order.

    The model is left as it was found: modes, BatchNorm statistics, gradients.

    Raises:
        UnlearnError: the output is not a tensor ``[B, K]``, or a label is not below K.
    """
    loader = DataLoader(
        dataset,
        batch_size=BATCH_SIZE,
        num_workers=hardware.num_workers,
        pin_memory=hardware.device.type == "cuda",
        collate_fn=default_collate,
        # A loader draws a seed for its workers: not from the global generator, which belongs to the caller.
        generator=torch.Generator(),
    )
    for images, labels in track(loader, description, enabled=hardware.progress):
        with evaluating(model), autocast(hardware.precision, hardware.device):
            output = model(images.to(hardware.device, non_blocking=True))
        yield checked_logits(output, labels), labels.to(hardware.device).long()


def checked_logits(output: Any, labels: Tensor) -> Tensor:
    """``output`` as float32 logits ``[B, K]``.

    Raises:
        UnlearnError: it is something else, or a label is no class in ``[0, K)``.
    """
    if labels.ndim != 1:
        raise UnlearnError(
            f"the labels of {len(labels)} samples have shape {list(labels.shape)}: give one class a sample"
        )
    if not isinstance(output, Tensor):
        raise UnlearnError(
            f"the model returns a {type(output).__name__}, not a tensor of logits [N, K]: "
            "wrap it in a module that returns the logits alone"
        )
    if output.ndim != 2 or output.shape[0] != len(labels):
        raise UnlearnError(
            f"the model returns a tensor of shape {list(output.shape)} for {len(labels)} images, not logits [N, K]"
        )
    bad = labels[(labels >= output.shape[1]) | (labels < 0)]
    if len(bad):
        raise UnlearnError(
            f"the data has label {bad[0].item()}, and the model has {output.shape[1]} outputs (0 to K − 1)"
        )
    return output.float()


def predict(model: nn.Module, dataset: Dataset[Any], hardware: Hardware) -> Tensor:
    """Predicted classes ``[N]`` on the CPU."""
    return torch.cat([logits.argmax(dim=1).cpu() for logits, _ in forward(model, dataset, hardware)])
