"""LoTUS: unlearning by smoothing the teacher's predictions up to an information-theoretic bound.

Spartalis et al., "LoTUS: Large-Scale Machine Unlearning with a Taste of Uncertainty", CVPR 2025, arXiv 2503.18314.
"""

import math
from collections.abc import Mapping
from functools import partial
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from mlflow_unlearn.data.splits import wholly_forgotten
from mlflow_unlearn.engine.method import (
    Batch,
    Method,
    OptimizerSpec,
    Params,
    Phase,
    PhaseStats,
    Plan,
    Workspace,
    all_indices,
    random_subset,
)

MAX_ALPHA = 64.0


def gumbel_noise(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """``g = −log(−log u)`` ``[*shape]``, ``u ~ U(0, 1)``, drawn on the CPU: the same noise for every device.

    ``u = 0`` would be −∞ and ``u = 1`` +∞: both ends are one float away.
    """
    tiny = torch.finfo(torch.float32).tiny
    u = torch.rand(shape, generator=generator).clamp_(tiny, 1 - torch.finfo(torch.float32).eps / 2)
    return -torch.log(-torch.log(u))


def temperature(acc_forget: float, a_u: float, alpha: float) -> float:
    """``τ = exp(α·Δ)`` with ``Δ = acc_forget − a_u``: hotter while the forget set is over-remembered (section 3).

    >>> temperature(0.9, 0.9, alpha=2.0)
    1.0
    """
    return math.exp(alpha * (acc_forget - a_u))


def lotus_targets(teacher_logits: Tensor, forget: Tensor, tau: float, noise: Tensor) -> Tensor:
    """Targets ``[B, K]`` from the teacher's logits ``z_o`` and Gumbel noise ``g`` (section 3).

    Forget samples: ``softmax((z_o + g) / τ)``. Retain samples are the limit ``τ → 0⁺``, ``one_hot(argmax(z_o + g))``:
    a *sample* from the teacher's distribution, not its argmax. A class whose teacher logit is −∞ gets 0.

    Args:
        teacher_logits: ``[B, K]``.
        forget: ``[B]`` bool.
        tau: temperature, > 0.
        noise: ``[B, K]``, from `gumbel_noise`.
    """
    noisy = teacher_logits.float() + noise.to(teacher_logits.device)
    hard = torch.nn.functional.one_hot(noisy.argmax(dim=1), noisy.shape[1])
    return torch.where(forget[:, None], torch.softmax(noisy / tau, dim=1), hard)


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """``mean over the batch of −Σ_k t_k · log_softmax(z_u)_k``: logits and targets ``[B, K]``, a scalar in nats."""
    return -(targets * torch.log_softmax(logits, dim=1)).sum(dim=1).mean()


def lotus_loss(batch: Batch, tau: float, generator: torch.Generator, masked: Tensor | None = None) -> Tensor:
    """The loss of one batch: `soft_cross_entropy` against `lotus_targets`.

    Args:
        batch: with teacher logits.
        tau: temperature.
        generator: source of the Gumbel noise.
        masked: classes ``[M]`` that the teacher must not predict, or None.

    Raises:
        ValueError: the batch has no teacher logits.
    """
    if batch.teacher_logits is None:
        raise ValueError("LoTUS needs the teacher's logits: its phase must name the original as teacher")
    logits = batch.teacher_logits
    if masked is not None:
        logits = logits.index_fill(1, masked.to(logits.device), -math.inf)
    noise = gumbel_noise(tuple(logits.shape), generator)
    return soft_cross_entropy(batch.logits, lotus_targets(logits, batch.forget, tau, noise))


def auto_alpha(delta: float) -> float:
    """``α = 1 / Δ₀``, so that the first temperature is e whatever the gap is; at most `MAX_ALPHA` (our extension).

    >>> auto_alpha(0.125), auto_alpha(0.0)
    (8.0, 64.0)
    """
    return min(MAX_ALPHA, 1 / delta) if delta > 0 else MAX_ALPHA


class LotusParams(Params):
    """Hyperparameters of LoTUS; the defaults are the published ones for a CNN.

    α was chosen from {2, 4, 8, 16}; the paper uses 8 for ResNet18 on CIFAR-10 alone and 2 everywhere else.
    ``search`` marks what `tune` varies: between two bounds, or around the published value by a factor.
    """

    alpha: Annotated[float, Field(gt=0, le=MAX_ALPHA)] | Literal["auto"] = Field(
        2.0, json_schema_extra={"search": {"low": 1.0, "high": 16.0, "log": True}}
    )
    lr: float = Field(1e-4, gt=0, le=1, json_schema_extra={"search": {"factor": 10.0, "log": True}})
    epochs: int = Field(10, ge=1, le=1000, json_schema_extra={"search": {"factor": 2.0}})
    # Two, since a training-mode BatchNorm cannot normalise one sample.
    batch_size: int = Field(128, ge=2, le=65536)
    weight_decay: float = Field(5e-4, ge=0, le=1)
    retain_fraction: float = Field(0.3, gt=0, le=1)
    mask_forgotten_classes: bool = True
    keep: Literal["last", "closest"] = "last"
    accuracy: Literal["eval", "training"] = "eval"


class Lotus(Method):
    """LoTUS as in the paper, with a masked teacher for wholly forgotten classes (our extension).

    ``keep="last"`` returns the state after the last pass, also the one that overshot, as published;
    ``keep="closest"`` returns the state with the smallest |Δ| among those after at least one pass.
    ``accuracy="training"`` takes Acc(f_u, D_f) from the training pass that has just been made, which saves a pass over
    the forget set an epoch and changes Δ (our extension).
    """

    name = "lotus"
    position = 0
    Params = LotusParams
    by_family = {"vit": {"lr": 1e-6, "batch_size": 32, "epochs": 3}}
    params: LotusParams
    final_metrics = ("acc_forget", "delta", "alpha")

    def plan(self, workspace: Workspace) -> Plan:
        """One pass an epoch over the forget set and a fixed fraction of the retain set, until Δ ≤ −0.01."""
        p, ws = self.params, workspace
        labels_forget, labels_retain = ws.labels("forget"), ws.labels("retain")
        forgotten = wholly_forgotten(labels_forget, labels_retain)
        labels_val = ws.labels("val")
        a_u = unseen_accuracy(labels_forget, labels_val, ws.predictions("val", teacher=True), forgotten)
        phase = partial(
            Phase,
            optimizer=OptimizerSpec("adamw", p.lr, p.weight_decay),
            batch_size=p.batch_size,
            forget=all_indices(labels_forget),
            retain=random_subset(labels_retain, p.retain_fraction, ws.generator),
            teacher="original",
        )
        masked = forgotten if p.mask_forgotten_classes and len(forgotten) else None

        alpha = p.alpha
        best: tuple[float, float, dict[str, Tensor]] | None = None
        stats = PhaseStats(0.0, 0.0)
        for epoch in range(p.epochs + 1):
            if p.accuracy == "training" and stats.acc_forget is not None:
                acc_forget = stats.acc_forget
            else:
                # Before the first pass the student is the teacher, whose outputs are known.
                predicted = ws.predictions("forget", teacher=epoch == 0)
                acc_forget = (predicted == labels_forget).double().mean().item()
            delta = acc_forget - a_u
            if p.keep == "closest" and epoch > 0 and (best is None or abs(delta) < abs(best[1])):
                best = acc_forget, delta, ws.snapshot()
            if epoch == p.epochs or has_forgotten(acc_forget, a_u):
                break
            if alpha == "auto":
                alpha = auto_alpha(delta)
            tau = temperature(acc_forget, a_u, alpha)
            stats = yield phase(loss=partial(lotus_loss, tau=tau, generator=ws.generator, masked=masked))
            ws.record(
                epoch=epoch,
                acc_forget=acc_forget,
                acc_val=a_u,
                delta=delta,
                temperature=tau,
                loss=stats.loss,
                seconds=stats.seconds,
            )
        if best is not None:
            acc_forget, delta, state = best
            ws.restore(state)
        used = {"alpha": alpha} if p.alpha != alpha != "auto" else {}
        return {"acc_forget": acc_forget, "acc_val": a_u, "delta": delta, **used}

    @classmethod
    def not_worthwhile(cls, labels: Mapping[str, Tensor], predictions: Mapping[str, Tensor]) -> str | None:
        """The stopping rule before the first pass, for labels and predictions ``[N]``: it would end every plan."""
        forgotten = wholly_forgotten(labels["forget"], labels["retain"])
        a_u = unseen_accuracy(labels["forget"], labels["val"], predictions["val"], forgotten)
        acc_forget = (predictions["forget"] == labels["forget"]).double().mean().item()
        if not has_forgotten(acc_forget, a_u):
            return None
        return cls.nothing_to_unlearn({"acc_forget": acc_forget, "acc_val": a_u})


def unseen_accuracy(labels_forget: Tensor, labels_val: Tensor, predictions_val: Tensor, forgotten: Tensor) -> float:
    """``A_u``: the accuracy that the original has on unseen data, which the forget set should come down to.

    ``A_u = (1 − w) · Acc(f_o, D_v without the wholly forgotten classes)``, where ``w`` is the fraction of ``D_f`` in
    them; the paper's ``Acc(f_o, D_v)`` and ``0`` are the cases w = 0 and w = 1.

    Args:
        labels_forget: ``[N_f]``.
        labels_val: ``[N_v]``.
        predictions_val: of the original, ``[N_v]``.
        forgotten: the wholly forgotten classes ``[M]``.

    >>> unseen_accuracy(torch.tensor([0, 1]), torch.tensor([0, 1, 1]), torch.tensor([0, 1, 0]), torch.tensor([0]))
    0.25
    """
    w = torch.isin(labels_forget, forgotten).double().mean().item()
    retained = ~torch.isin(labels_val, forgotten)
    if not retained.any():
        return 0.0
    return (1 - w) * (predictions_val[retained] == labels_val[retained]).double().mean().item()


def has_forgotten(acc_forget: float, a_u: float) -> bool:
    """The stopping rule: ``Δ ≤ −0.01``, or ``acc_forget ≤ 0.01`` where ``A_u < 0.01`` (Δ could never get there).

    >>> has_forgotten(0.90, 0.92), has_forgotten(0.92, 0.92), has_forgotten(0.005, 0.0)
    (True, False, True)
    """
    return acc_forget <= 0.01 if a_u < 0.01 else acc_forget - a_u <= -0.01
