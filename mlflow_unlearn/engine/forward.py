"""Forward passes: read a dataset in order, in eval mode, in batches that suit the device."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from mlflow_unlearn.console import track
from mlflow_unlearn.data.batching import forward_batch, in_order
from mlflow_unlearn.distributed import ranks
from mlflow_unlearn.engine.hardware import Hardware, full_precision
from mlflow_unlearn.engine.modes import evaluating


def forward(
    model: nn.Module, dataset: Dataset[Any], hardware: Hardware, *, description: str = "evaluating"
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield ``(logits [B, K] float32, labels [B])`` on the model's device, in the dataset's order.

    Args:
        model: left as it was found: modes, BatchNorm statistics, gradients.
        dataset: images and labels, by sample.
        hardware: where and in which precision.
        description: on the progress bar.

    Raises:
        UnlearnError: the output is not a tensor ``[B, K]``, or a label is not below K.
    """
    order = in_order(dataset, forward_batch(dataset, hardware.device) * ranks.size())
    loader = hardware.batches(dataset, [ranks.shard(batch) for batch in order])
    steps = track(loader, description, enabled=hardware.progress, total=len(order))
    for batch, (images, labels) in zip(order, steps, strict=True):
        with evaluating(model), full_precision(hardware.precision):
            logits = hardware.logits(model, images, labels)
        yield ranks.all_gather(logits, len(batch)), ranks.all_gather(labels.to(hardware.device).long(), len(batch))


def predict(model: nn.Module, dataset: Dataset[Any], hardware: Hardware) -> Tensor:
    """Predicted classes ``[N]`` on the CPU."""
    return torch.cat([logits.argmax(dim=1).cpu() for logits, _ in forward(model, dataset, hardware)])


def true_class_log_odds(logits: Tensor, labels: Tensor) -> Tensor:
    """``z_y − logsumexp_{j≠y} z_j = log p_y − log(1 − p_y)`` ``[N]``, float64; never from p, which saturates.

    Args:
        logits: ``[N, K]``.
        labels: ``[N]``, in ``[0, K)``.

    >>> true_class_log_odds(torch.tensor([[3.0, 1.0, 1.0]]), torch.tensor([0])).round(decimals=4).tolist()
    [1.3069]
    """
    if logits.shape[1] == 1:  # as `true_class_margins`
        return torch.zeros(len(logits), dtype=torch.float64, device=logits.device)
    z, y = logits.double(), labels[:, None]
    return z.gather(1, y)[:, 0] - z.scatter(1, y, -torch.inf).logsumexp(dim=1)


def true_class_margins(logits: Tensor, labels: Tensor) -> Tensor:
    """``z_y − max_{j≠y} z_j`` ``[N]``, float64; of logits and not of probabilities, which saturate.

    Args:
        logits: ``[N, K]``.
        labels: ``[N]``, in ``[0, K)``.

    >>> true_class_margins(torch.tensor([[3.0, 1.0, 2.5], [3.0, 1.0, 2.5]]), torch.tensor([0, 1])).tolist()
    [0.5, -2.0]
    """
    if logits.shape[1] == 1:  # no other class to be confused with
        return torch.zeros(len(logits), dtype=torch.float64, device=logits.device)
    z, y = logits.double(), labels[:, None]
    return z.gather(1, y)[:, 0] - z.scatter(1, y, -torch.inf).amax(dim=1)
