"""One forward pass over a split, and what it leaves for the metrics."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset

from mlflow_unlearn.data.splits import Splits
from mlflow_unlearn.distributed.ranks import on_all_ranks
from mlflow_unlearn.engine.hardware import Hardware
from mlflow_unlearn.engine.output_cache import Facts, kept_forward, model_facts
from mlflow_unlearn.engine.teacher import Teacher
from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.metrics.outputs import Outputs, SplitOutputs

ROLES = ("forget", "retain", "val", "test")
TAUGHT = ("forget", "retain", "val")
"""The sets on which methods ask the original."""


def read(
    model: nn.Module,
    dataset: Dataset[Any],
    hardware: Hardware,
    *,
    keep_probabilities: bool = False,
    keep_logits: Callable[[int, torch.Tensor], None] | None = None,
    facts: Facts | None = None,
    description: str = "evaluating",
) -> SplitOutputs:
    """One pass over ``dataset`` in eval mode; the model is left as it was found.

    ``keep_logits`` is given the logits ``[B, K]`` of each batch and the index of its first sample. With the ``facts``
    of the model the outputs come from the cache, or go there.

    Raises:
        UnlearnError: the model's outputs are not finite logits ``[N, K]``.
    """
    labels, predictions, entropies, confidences, probabilities = [], [], [], [], []
    sums: torch.Tensor | None = None
    for logits, batch_labels in kept_forward(model, dataset, hardware, facts, description=description):
        # float64: the entropies of confident outputs differ far below float32's resolution of a probability near 1.
        log_p = torch.log_softmax(logits.double(), dim=1)
        if not torch.isfinite(log_p).all():
            raise UnlearnError("the model's outputs are not finite: its weights, or its inputs, hold NaN or infinity")
        p = log_p.exp()
        if sums is None:
            sums = torch.zeros(p.shape[1], p.shape[1], dtype=torch.float64, device=p.device)
        sums.index_add_(0, batch_labels, p)
        labels.append(batch_labels.cpu())
        largest, predicted = p.max(dim=1)
        predictions.append(predicted.cpu())
        confidences.append(largest.cpu())
        entropies.append(-(p * log_p).sum(dim=1).cpu())
        if keep_probabilities:
            probabilities.append(p.cpu())
        if keep_logits is not None:
            keep_logits(sum(map(len, labels[:-1])), logits)
    if sums is None:
        raise UnlearnError("there is no sample to evaluate")
    return SplitOutputs(
        torch.cat(labels).numpy(),
        torch.cat(predictions).numpy(),
        torch.cat(entropies).clamp_min(0).numpy(),
        torch.cat(confidences).numpy(),
        sums.cpu().numpy(),
        torch.cat(probabilities).numpy() if probabilities else None,
    )


@on_all_ranks
def read_splits(
    model: nn.Module,
    splits: Splits,
    hardware: Hardware,
    *,
    roles: tuple[str, ...] = ROLES,
    name: str = "model",
    teacher: Teacher | None = None,
    kept: bool = False,
) -> Outputs:
    """`read` each of ``roles``, on a copy where the model has to move; what it says is kept for its ``teacher``.

    With ``kept`` the outputs are kept for later commands as well, but for those of the forget set, of which no trace is
    to stay.
    """
    device = next((p.device for p in model.parameters()), hardware.device)
    if device != hardware.device or hardware.channels_last:
        model = hardware.place(copy.deepcopy(model))
    facts = model_facts(model, hardware) if kept else None
    return {
        role: read(
            model,
            getattr(splits, role),
            hardware,
            keep_probabilities=role == "forget",
            facts=facts if role != "forget" else None,
            keep_logits=partial(teacher.keep, role) if teacher is not None and role in TAUGHT else None,
            description=f"evaluating {name} on {role}",
        )
        for role in roles
    }
