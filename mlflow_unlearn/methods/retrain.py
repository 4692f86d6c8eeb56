"""Ordinary training: of the original, and from scratch on the retain set alone, which gives the gold standard."""

import torch
from pydantic import Field
from torch import Tensor

from mlflow_unlearn.engine.method import (
    Batch,
    Method,
    OptimizerSpec,
    Params,
    Phase,
    Plan,
    Workspace,
    all_indices,
    run_epochs,
)


def cross_entropy(batch: Batch) -> Tensor:
    """``mean over the batch of −log_softmax(z)[label]``, logits ``[B, K]``, a scalar in nats."""
    return torch.nn.functional.cross_entropy(batch.logits, batch.labels)


class RetrainParams(Params):
    """The recipe: SGD with Nesterov momentum and a one-cycle schedule up to ``lr``."""

    epochs: int = Field(15, ge=1, le=10000)
    lr: float = Field(0.05, gt=0, le=10)
    batch_size: int = Field(128, ge=2, le=65536)
    weight_decay: float = Field(5e-4, ge=0, le=1)
    momentum: float = Field(0.9, ge=0, lt=1)


class Training(Method):
    """Cross-entropy on the retain set, from the weights that the model has."""

    name = "train"
    Params = RetrainParams
    params: RetrainParams

    def epoch(self, workspace: Workspace) -> Phase:
        """One pass over the retain set; the schedule, as part of the optimiser, spans all of them."""
        p = self.params
        optimizer = OptimizerSpec("sgd", p.lr, p.weight_decay, p.momentum, p.momentum > 0, one_cycle_epochs=p.epochs)
        return Phase(cross_entropy, optimizer, p.batch_size, retain=all_indices(workspace.labels("retain")))

    def plan(self, workspace: Workspace) -> Plan:
        """One phase an epoch."""
        return run_epochs(workspace, self.epoch(workspace), self.params.epochs)


class Retrain(Training):
    """The gold standard: the same from random weights, which have never seen the forget set."""

    name = "retrain"
    position = 100
    by_shards = True

    def plan(self, workspace: Workspace) -> Plan:
        """Reinitialise, then train on the retain set."""
        workspace.reinitialise()
        return super().plan(workspace)
