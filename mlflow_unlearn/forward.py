"""Forward passes: read a dataset in order, in eval mode, in batches that suit the device."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from mlflow_unlearn import ranks
from mlflow_unlearn.compute import Precision, autocast, evaluating, full_precision
from mlflow_unlearn.data.batches import BatchReader, forward_batch, in_order
from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.progress import track


@dataclass(frozen=True)
class Hardware:
    """Where and how a command computes, decided once.

    Attributes:
        device: of all passes.
        precision: "fp32", "tf32" or "bf16".
        channels_last: whether images and convolutions lie so in memory.
        num_workers: data-loading processes; None lets the data and the machine decide.
        compile: whether the student is compiled for its training passes.
        progress: whether bars are shown.
    """

    device: torch.device
    precision: Precision = "fp32"
    channels_last: bool = False
    num_workers: int | None = 0
    compile: bool = False
    progress: bool = False

    def place(self, model: nn.Module) -> nn.Module:
        """``model`` itself, moved to the device and laid out in memory."""
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        placed: nn.Module = model.to(self.device, memory_format=layout)  # type: ignore[call-overload]
        return placed

    def images(self, images: Tensor) -> Tensor:
        """A batch where and as the model reads it."""
        layout = torch.channels_last if self.channels_last and images.ndim == 4 else torch.contiguous_format
        return images.to(self.device, memory_format=layout, non_blocking=True)

    def autocast(self) -> AbstractContextManager[None]:
        """bfloat16 where the precision is that."""
        return autocast(self.precision, self.device)

    def logits(self, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        """``model(images)`` in this precision, as checked float32 logits ``[B, K]``."""
        with self.autocast():
            output = model(self.images(images))
        return checked_logits(output, labels)

    def reader(self, dataset: Dataset[Any], generator: torch.Generator) -> BatchReader:
        """Reads ``dataset`` by the batch, with as many processes as are worth it."""
        return BatchReader(dataset, self.num_workers, self.device, generator)

    def batches(self, dataset: Dataset[Any], batches: Sequence[Sequence[int]]) -> Iterable[Any]:
        """``gather(dataset, batch)`` of each of ``batches``, once.

        A loader draws a seed for its workers: not from the global generator, which belongs to the caller.
        """
        return self.reader(dataset, torch.Generator()).read(batches)


def forward(
    model: nn.Module, dataset: Dataset[Any], hardware: Hardware, *, description: str = "evaluating"
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield ``(logits [B, K] float32, labels [B])`` on the model's device, in the dataset's order.

    The model is left as it was found: modes, BatchNorm statistics, gradients.

    Raises:
        UnlearnError: the output is not a tensor ``[B, K]``, or a label is not below K.
    """
    order = in_order(dataset, forward_batch(dataset, hardware.device) * ranks.size())
    loader = hardware.batches(dataset, [ranks.share(batch) for batch in order])
    steps = track(loader, description, enabled=hardware.progress, total=len(order))
    for batch, (images, labels) in zip(order, steps, strict=True):
        with evaluating(model), full_precision(hardware.precision):
            logits = hardware.logits(model, images, labels)
        yield ranks.joined(logits, len(batch)), ranks.joined(labels.to(hardware.device).long(), len(batch))


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
