"""SCRUB: move away from the original on the forget set, stay with it and with the labels on the retain set.

Kurmanji et al., "Towards Unbounded Machine Unlearning", NeurIPS 2023, arXiv 2302.09880 (section 3, equation 3).
"""

from functools import partial

import torch
from pydantic import Field, NonNegativeInt
from torch import Tensor

from mlflow_unlearn.engine.method import Batch, Method, OptimizerSpec, Params, Phase, Plan, Workspace, all_indices
from mlflow_unlearn.methods._distillation import distillation


def max_loss(batch: Batch, temperature: float) -> Tensor:
    """Minus the `distillation` loss of logits ``[B, K]``, a scalar: to minimise it is to move from the original."""
    return -distillation(_teacher(batch), batch.logits, temperature)


def min_loss(batch: Batch, alpha: float, gamma: float, temperature: float) -> Tensor:
    """``α · distillation + γ · CE`` on retain samples, a scalar.

    Args:
        batch: logits and teacher logits ``[B, K]``, labels ``[B]``.
        alpha: α ≥ 0.
        gamma: γ ≥ 0.
        temperature: of the `distillation`, > 0.
    """
    stay = distillation(_teacher(batch), batch.logits, temperature)
    return alpha * stay + gamma * torch.nn.functional.cross_entropy(batch.logits, batch.labels)


def _teacher(batch: Batch) -> Tensor:
    if batch.teacher_logits is None:
        raise ValueError("SCRUB needs the original's logits: its phases must name it as teacher")
    return batch.teacher_logits


class ScrubParams(Params):
    """Hyperparameters of SCRUB; losses and rates by default are those of the authors' large setting.

    ``msteps`` epochs begin with a max pass, in batches of ``forget_batch_size`` (0: as ``batch_size``); the learning
    rate is multiplied by ``lr_decay`` at the start of each of ``lr_decay_epochs`` (counted from 0).
    """

    alpha: float = Field(0.001, ge=0, le=100, json_schema_extra={"search": {"low": 1e-4, "high": 1.0, "log": True}})
    gamma: float = Field(0.99, ge=0, le=100)
    temperature: float = Field(4.0, gt=0, le=100)
    msteps: int = Field(2, ge=0, le=1000, json_schema_extra={"search": {"low": 1, "high": 5}})
    epochs: int = Field(10, ge=1, le=1000, json_schema_extra={"search": {"factor": 2.0}})
    lr: float = Field(5e-4, gt=0, le=1, json_schema_extra={"search": {"factor": 10.0, "log": True}})
    lr_decay: float = Field(0.1, gt=0, le=1)
    lr_decay_epochs: tuple[NonNegativeInt, ...] = (5, 8)
    batch_size: int = Field(128, ge=2, le=65536)
    forget_batch_size: int = Field(0, ge=0, le=65536)
    weight_decay: float = Field(5e-4, ge=0, le=1)
    momentum: float = Field(0.9, ge=0, lt=1)


class Scrub(Method):
    """Max and min passes alternate, and the last pass is always a min pass.

    BatchNorm: train mode in both passes. The first max pass starts where the student is its teacher: only by the
    statistics of its batches, or by dropout, does it differ there, and without a difference there is nothing to ascend.
    """

    name = "scrub"
    position = 5
    Params = ScrubParams
    params: ScrubParams
    presets = {
        "authors-large": {"epochs": 3, "msteps": 2, "batch_size": 128, "forget_batch_size": 512},
        "authors-small": {"alpha": 0.5, "gamma": 1.0, "temperature": 2.0, "msteps": 3},
    }

    def plan(self, workspace: Workspace) -> Plan:
        """Each epoch: a max pass over the forget set (in the first ``msteps``), then a min pass over the retain set."""
        p, ws = self.params, workspace
        phase = partial(
            Phase,
            optimizer=OptimizerSpec("sgd", p.lr, p.weight_decay, p.momentum),
            teacher="original",
        )
        forget, retain = all_indices(ws.labels("forget")), all_indices(ws.labels("retain"))
        ascend = partial(max_loss, temperature=p.temperature)
        descend = partial(min_loss, alpha=p.alpha, gamma=p.gamma, temperature=p.temperature)
        for epoch in range(p.epochs):
            lr_scale = p.lr_decay ** sum(epoch >= start for start in p.lr_decay_epochs)
            loss_max, seconds = {}, 0.0
            if epoch < p.msteps:
                away = yield phase(
                    ascend, batch_size=p.forget_batch_size or p.batch_size, forget=forget, lr_scale=lr_scale
                )
                loss_max, seconds = {"loss_max": away.loss}, away.seconds
            stats = yield phase(descend, batch_size=p.batch_size, retain=retain, lr_scale=lr_scale)
            ws.record(epoch=epoch, loss=stats.loss, **loss_max, seconds=stats.seconds + seconds)
        return {}
