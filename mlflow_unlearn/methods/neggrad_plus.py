"""NegGrad+: descend on the retain set and ascend on the forget set, in one joint step.

Kurmanji et al., "Towards Unbounded Machine Unlearning", NeurIPS 2023, arXiv 2302.09880 (section 4, baselines).
"""

from functools import partial

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


def neggrad_plus_loss(batch: Batch, beta: float) -> Tensor:
    """``β · mean CE(retain samples) − (1 − β) · mean CE(forget samples)`` of logits ``[B, K]``, a scalar in nats."""
    losses = torch.nn.functional.cross_entropy(batch.logits, batch.labels, reduction="none")
    return beta * losses[~batch.forget].mean() - (1 - beta) * losses[batch.forget].mean()


class NegGradPlusParams(Params):
    """Hyperparameters of NegGrad+; β is the weight of the retain set."""

    beta: float = Field(0.95, ge=0, le=1, json_schema_extra={"search": {"low": 0.5, "high": 0.9999}})
    epochs: int = Field(10, ge=1, le=1000, json_schema_extra={"search": {"factor": 2.0}})
    lr: float = Field(0.01, gt=0, le=10, json_schema_extra={"search": {"factor": 10.0, "log": True}})
    batch_size: int = Field(128, ge=2, le=65536)
    weight_decay: float = Field(5e-4, ge=0, le=1)
    momentum: float = Field(0.9, ge=0, lt=1)


class NegGradPlus(Method):
    """Each step reads a batch of either set in one forward pass; the shorter set cycles; BatchNorm in train mode."""

    name = "neggrad_plus"
    position = 2
    Params = NegGradPlusParams
    params: NegGradPlusParams

    def plan(self, workspace: Workspace) -> Plan:
        """As many joint steps an epoch as the longer set has batches."""
        p, ws = self.params, workspace
        phase = Phase(
            partial(neggrad_plus_loss, beta=p.beta),
            OptimizerSpec("sgd", p.lr, p.weight_decay, p.momentum),
            p.batch_size,
            forget=all_indices(ws.labels("forget")),
            retain=all_indices(ws.labels("retain")),
            paired=True,
        )
        return run_epochs(ws, phase, p.epochs)
