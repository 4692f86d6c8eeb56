"""Repair: what all methods that first disturb the features do next, training on the retain set alone.

The learning rate is as high as in training: a small one leaves the disturbed features where they are, and most of the
memory of the rest in its place (docs/benchmarks.md).
"""

from functools import partial
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from mlflow_unlearn.engine.method import (
    Batch,
    OptimizerSpec,
    Params,
    Phase,
    Plan,
    Workspace,
    all_indices,
    run_epochs,
)
from mlflow_unlearn.methods._distillation import distillation

TEMPERATURE = 4.0
"""Of the distillation, as SCRUB's."""

FROM_RECIPE = ("lr", "batch_size", "weight_decay")
"""What a repair has in common with the training of the version."""
EPOCHS_OF_TRAINING = {"cnn": 1 / 3, "vit": 1 / 2}
"""How long it goes on, as a fraction of that training (docs/benchmarks.md)."""


def repair_loss(batch: Batch, distill: float) -> Tensor:
    """``(1 − w) · mean CE + w · T² · mean KL(original ‖ student)`` of logits ``[B, K]``, a scalar in nats; T = 4.

    Args:
        batch: of the retain set.
        distill: w, in [0, 1].

    Raises:
        ValueError: w > 0, and the batch has no teacher logits.
    """
    loss = torch.nn.functional.cross_entropy(batch.logits, batch.labels)
    if distill == 0:
        return loss
    if batch.teacher_logits is None:
        raise ValueError("distillation needs the original's logits: the phase must name it as teacher")
    return (1 - distill) * loss + distill * distillation(batch.teacher_logits, batch.logits, TEMPERATURE)


class RepairParams(Params):
    """Hyperparameters of a repair; ``distill`` is the weight of the original's outputs beside the labels."""

    # A longer one is hardly cheaper than retraining.
    epochs: int = Field(5, ge=1, le=1000, json_schema_extra={"search": {"factor": 2.0, "up": 1.0}})
    lr: float = Field(0.05, gt=0, le=10, json_schema_extra={"search": {"factor": 4.0, "log": True}})
    schedule: Literal["one_cycle", "cosine"] = "one_cycle"
    distill: float = Field(0.0, ge=0, le=1)
    batch_size: int = Field(128, ge=2, le=65536)
    weight_decay: float = Field(5e-4, ge=0, le=1)
    momentum: float = Field(0.9, ge=0, lt=1)


def repair(workspace: Workspace, params: RepairParams) -> Plan:
    """Passes over the retain set: SGD with Nesterov momentum, one-cycle up to ``lr`` or a cosine down from it."""
    p = params
    one_cycle, cosine = (p.epochs if p.schedule == name else 0 for name in ("one_cycle", "cosine"))
    phase = Phase(
        partial(repair_loss, distill=p.distill),
        OptimizerSpec("sgd", p.lr, p.weight_decay, p.momentum, p.momentum > 0, one_cycle, cosine),
        p.batch_size,
        retain=all_indices(workspace.labels("retain")),
        teacher="original" if p.distill else None,
    )
    return run_epochs(workspace, phase, p.epochs)
