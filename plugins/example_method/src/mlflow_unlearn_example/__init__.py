"""Negative gradient with early stop: ascend on the forget set until it is known less well than unseen samples."""

import torch
from pydantic import Field
from torch import Tensor

from mlflow_unlearn.methods import Batch, Method, OptimizerSpec, Params, Phase, Plan, Workspace, all_indices


def ascent_loss(batch: Batch) -> Tensor:
    """Minus the mean cross-entropy of a batch, a scalar: going down it, the model unlearns the labels."""
    return -torch.nn.functional.cross_entropy(batch.logits, batch.labels)


class NegGradEarlyStopParams(Params):
    """Hyperparameters; ``epochs`` is an upper bound, and ``search`` says how far `tune` may go from the default."""

    epochs: int = Field(20, ge=1, le=1000, json_schema_extra={"search": {"factor": 2.0}})
    lr: float = Field(3e-3, gt=0, le=10, json_schema_extra={"search": {"factor": 10.0, "log": True}})
    batch_size: int = Field(64, ge=2, le=65536)


class NegGradEarlyStop(Method):
    """Only the early stop protects the retain set.

    BatchNorm: frozen statistics, since only samples that are to be forgotten are read.
    """

    name = "neggrad_early_stop"
    Params = NegGradEarlyStopParams
    params: NegGradEarlyStopParams

    def plan(self, workspace: Workspace) -> Plan:
        """One pass an epoch over the forget set, until the accuracy on it is below the original's on val."""
        p, ws = self.params, workspace
        labels_forget, labels_val = ws.labels("forget"), ws.labels("val")
        # Measured once: the student's own accuracy on val falls along, and the rule would chase it.
        acc_val = (ws.predictions("val", teacher=True) == labels_val).double().mean().item()
        acc_forget = (ws.predictions("forget") == labels_forget).double().mean().item()
        phase = Phase(
            ascent_loss,
            OptimizerSpec("sgd", p.lr),
            p.batch_size,
            forget=all_indices(labels_forget),
            frozen_statistics=True,
        )
        for epoch in range(p.epochs):
            if acc_forget < acc_val:
                break
            stats = yield phase
            acc_forget = (ws.predictions("forget") == labels_forget).double().mean().item()
            ws.record(epoch=epoch, acc_forget=acc_forget, acc_val=acc_val, loss=stats.loss, seconds=stats.seconds)
        return {"acc_forget": acc_forget, "acc_val": acc_val}
