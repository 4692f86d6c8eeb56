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
from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.metrics.advantage import Advantage, advantage
from mlflow_unlearn.metrics.membership import MIN_FORGET_SAMPLES, AucInterval, read_auc, two_sided_auc

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
    a_u: Literal["class-matched", "published"] = "class-matched"


class Lotus(Method):
    """LoTUS as in the paper, with a masked teacher for wholly forgotten classes and a class-matched ``A_u`` (ours).

    ``keep="last"`` returns the state after the last pass, also the one that overshot, as published;
    ``keep="closest"`` returns the state with the smallest |Δ| among those after at least one pass.
    ``accuracy="training"`` takes Acc(f_u, D_f) from the training pass that has just been made, which saves a pass over
    the forget set an epoch and changes Δ (our extension). ``a_u="published"`` takes the paper's ``A_u``, whatever the
    classes of the forget set are.

    Samples whose accuracy is low from the start may still be remembered: the rule that ends a run ends it before the
    first pass only where membership shows no trace of them either. Else it says nothing, and all epochs are run, at a
    temperature of at least 1.
    """

    name = "lotus"
    position = 0
    Params = LotusParams
    by_family = {"vit": {"lr": 1e-6, "batch_size": 32, "epochs": 3}}
    params: LotusParams
    final_metrics = ("acc_forget", "delta", "alpha", "a_u_left_out")

    def plan(self, workspace: Workspace) -> Plan:
        """One pass an epoch over the forget set and a fixed fraction of the retain set, until Δ ≤ −0.01."""
        p, ws = self.params, workspace
        labels_forget, labels_retain = ws.labels("forget"), ws.labels("retain")
        forgotten = wholly_forgotten(labels_forget, labels_retain)
        labels_val, right_val = ws.labels("val"), ws.predictions("val", teacher=True) == ws.labels("val")
        a_u, counted = unseen_accuracy(labels_forget, labels_retain, labels_val, right_val, p.a_u)
        left_out = int((~counted).sum())
        if left_out:
            ws.warn(
                f"{left_out} of {len(counted)} samples have a class without a validation sample: A_u and Δ are about "
                f"the others{', and accuracy=training has no effect' if p.accuracy == 'training' else ''}"
            )
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
        decides, refused = True, dict[str, float]()
        best: tuple[float, float, dict[str, Tensor]] | None = None
        stats = PhaseStats(0.0, 0.0)
        for epoch in range(p.epochs + 1):
            if p.accuracy == "training" and stats.acc_forget is not None and not left_out:
                acc_forget = stats.acc_forget
            else:
                # Before the first pass the student is the teacher, whose outputs are known.
                predicted = ws.predictions("forget", teacher=epoch == 0)
                acc_forget = (predicted == labels_forget)[counted].double().mean().item()
            delta = acc_forget - a_u
            if epoch == 0 and has_forgotten(acc_forget, a_u):
                entropies = ws.teacher_entropies("forget"), ws.teacher_entropies("val")
                margins = ws.teacher_margins("forget"), ws.teacher_margins("val")
                interval = unseen_auc(*entropies, labels_forget, labels_val)
                found = unseen_advantage(*margins, labels_forget, labels_val)
                if interval is not None and not trace(interval, found):
                    refused = {"mia_auc_val": interval.auc}
                else:
                    decides = False
                    few = f"membership cannot be measured with fewer than {MIN_FORGET_SAMPLES}"
                    why = few if interval is None else trace(interval, found)
                    ws.warn(
                        f"accuracy shows no trace of these samples (acc_forget {acc_forget:.4f}, A_u {a_u:.4f}), but "
                        f"{why}: all epochs are run, and the stopping rule decides nothing"
                    )
            if p.keep == "closest" and epoch > 0 and (best is None or abs(delta) < abs(best[1])):
                best = acc_forget, delta, ws.snapshot()
            if epoch == p.epochs or (decides and has_forgotten(acc_forget, a_u)):
                break
            if alpha == "auto":
                alpha = auto_alpha(delta)
            tau = temperature(acc_forget, a_u, alpha)
            tau = tau if decides else max(1.0, tau)  # below 1 targets are sharper than the teacher's outputs
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
        used |= {"a_u_left_out": left_out} if left_out else {}
        return {"acc_forget": acc_forget, "acc_val": a_u, "delta": delta, **used, **refused}

    @classmethod
    def not_worthwhile(
        cls,
        labels: Mapping[str, Tensor],
        predictions: Mapping[str, Tensor],
        entropies: Mapping[str, Tensor],
        margins: Mapping[str, Tensor],
    ) -> str | None:
        """What ends every plan before its first pass: the stopping rule, and no trace by membership either.

        Args:
            labels: by set, ``[N]``.
            predictions: the original's, likewise.
            entropies: of its softmax outputs, likewise.
            margins: of the true class in its logits, likewise.
        """
        right = {split: predictions[split] == labels[split] for split in ("forget", "val")}
        try:
            a_u, counted = unseen_accuracy(labels["forget"], labels["retain"], labels["val"], right["val"])
        except UnlearnError:
            return None  # trials with a_u=published may still be able to
        acc_forget = right["forget"][counted].double().mean().item()
        if not has_forgotten(acc_forget, a_u):
            return None
        interval = unseen_auc(entropies["forget"], entropies["val"], labels["forget"], labels["val"])
        found = unseen_advantage(margins["forget"], margins["val"], labels["forget"], labels["val"])
        if interval is None or trace(interval, found):
            return None
        return cls.nothing_to_unlearn({"acc_forget": acc_forget, "acc_val": a_u, "mia_auc_val": interval.auc})


def unseen_accuracy(
    labels_forget: Tensor, labels_retain: Tensor, labels_val: Tensor, right_val: Tensor, kind: str = "class-matched"
) -> tuple[float, Tensor]:
    """``A_u``, the accuracy that the forget set should come down to: the original's on unseen data of its classes.

    ``A_u = Σ_c (n_f,c / n_f) · Acc_c(f_o, D_v)`` over the classes c of ``D_f``, with ``Acc_c = 0`` for a wholly
    forgotten one. A class that stays and has no validation sample leaves ``A_u``, and its samples Δ.

    ``kind = "published"`` is the paper's, ``(1 − w) · Acc(f_o, D_v)`` over the retained classes, where ``w`` is the
    fraction of ``D_f`` in wholly forgotten ones: ``Acc(f_o, D_v)`` and 0 are the cases w = 0 and w = 1.

    Args:
        labels_forget: ``[N_f]``.
        labels_retain: ``[N_r]``.
        labels_val: ``[N_v]``.
        right_val: whether the original's prediction is the label, ``[N_v]`` bool.
        kind: "class-matched" or "published".

    Returns:
        ``A_u``, and which of the forget samples it is about, ``[N_f]`` bool.

    Raises:
        UnlearnError: the validation set says nothing about the forget set.

    >>> unseen_accuracy(*map(torch.tensor, ([0, 1, 1, 2], [1, 2], [0, 1, 1], [True, True, False])))
    (0.3333333333333333, tensor([ True,  True,  True, False]))
    """
    lost = torch.isin(labels_forget, wholly_forgotten(labels_forget, labels_retain))
    if kind == "published":
        retained = torch.isin(labels_val, labels_retain)
        if not retained.any() and not lost.all():
            raise UnlearnError("the validation set has no sample of a class that stays, so LoTUS has no A_u: add some")
        w = lost.double().mean().item()
        a_u = 0.0 if lost.all() else (1 - w) * right_val[retained].double().mean().item()
        return a_u, torch.ones_like(lost)
    counted = lost | torch.isin(labels_forget, labels_val)
    if not counted.any():
        raise UnlearnError(
            "the validation set has no sample of the classes to forget, so LoTUS has no A_u: add some, or give "
            "a_u=published, which takes all classes"
        )
    size = int(torch.cat([labels_forget, labels_val]).max()) + 1
    by_class = torch.bincount(labels_val, right_val.double(), size) / torch.bincount(labels_val, minlength=size)
    return torch.where(lost, 0.0, by_class[labels_forget])[counted].mean().item(), counted


def unseen_auc(
    entropies_forget: Tensor, entropies_val: Tensor, labels_forget: Tensor, labels_val: Tensor
) -> AucInterval | None:
    """`two_sided_auc` of telling the forget set from the validation set, classes matched; None for too few samples.

    Args:
        entropies_forget: of the original's outputs, nats, ``[N_f]``.
        entropies_val: likewise ``[N_v]``.
        labels_forget: ``[N_f]``.
        labels_val: ``[N_v]``.
    """
    forget, val = labels_forget.numpy(), labels_val.numpy()
    classes = int(max(forget.max(), val.max())) + 1
    return two_sided_auc(entropies_forget.numpy(), entropies_val.numpy(), forget, val, classes, seed=0)


def unseen_advantage(
    margins_forget: Tensor, margins_val: Tensor, labels_forget: Tensor, labels_val: Tensor
) -> Advantage | None:
    """`advantage` of telling the forget set from the validation set, classes matched; None without a common class.

    Args:
        margins_forget: of the true class in the original's logits, ``[N_f]``.
        margins_val: likewise ``[N_v]``.
        labels_forget: ``[N_f]``.
        labels_val: ``[N_v]``.
    """
    forget, val = labels_forget.numpy(), labels_val.numpy()
    classes = int(max(forget.max(), val.max())) + 1
    return advantage(margins_forget.numpy(), margins_val.numpy(), forget, val, classes, seed=0)


def trace(interval: AucInterval, found: Advantage | None = None) -> str:
    """The trace that membership shows, in words; empty where it shows none.

    By the AUC of the entropy, or by the side of the advantage on which forgotten samples look like members.

    >>> trace(AucInterval(0.4, 0.3, 0.55)), trace(AucInterval(0.6, 0.55, 0.65))
    ('', 'membership does (mia_auc 0.6000, residual)')
    """
    reading = read_auc(interval.low, interval.high)
    if interval.auc > 0.5 and reading != "indistinguishable":
        return f"membership does (mia_auc {interval.auc:.4f}, {reading})"
    if found is not None and found.sides.residual > found.null.q95:
        return f"membership does (mia_advantage {found.sides.residual:.4f}, by chance up to {found.null.q95:.4f})"
    return ""


def has_forgotten(acc_forget: float, a_u: float) -> bool:
    """The stopping rule: ``Δ ≤ −0.01``, or ``acc_forget ≤ 0.01`` where ``A_u < 0.01`` (Δ could never get there).

    >>> has_forgotten(0.90, 0.92), has_forgotten(0.92, 0.92), has_forgotten(0.005, 0.0)
    (True, False, True)
    """
    return acc_forget <= 0.01 if a_u < 0.01 else acc_forget - a_u <= -0.01
