"""Selective Synaptic Dampening: shrink the weights that matter more to the forget set than to all of the data.

Foster, Schoepf and Brintrup, "Fast Machine Unlearning Without Retraining Through Selective Synaptic Dampening",
AAAI 2024, arXiv 2308.07707.
"""

from collections.abc import Iterable, Mapping

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from mlflow_unlearn.engine.hardware import checked_logits
from mlflow_unlearn.engine.method import Method, Params, Plan, Workspace
from mlflow_unlearn.engine.modes import eval_mode
from mlflow_unlearn.methods._gradients import gradients

BLOCK = 64
"""Samples whose squares are summed in float32."""


AT_ONCE = 1 << 31
"""Bytes of per-sample gradients that a GPU computes at once."""


def squared_gradients(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], *, at_once: int | None = None
) -> tuple[dict[str, Tensor], int]:
    """``Σ_n (∂ log p(y_n | x_n) / ∂θ)²`` by name of each trainable parameter, in float64, and the number of samples.

    *Per-sample* gradients: the square of a batch's mean gradient would be another, smaller number. The model is in eval
    mode, so that no sample's gradient depends on another one; batches ``([B, C, H, W], [B])`` of any size and order
    give the same sum. On a CPU one sample at a time: gradients of several at once fill the memory faster than a CPU's
    caches can take them (ResNet18: 19 ms a sample, and 40 by ``vmap`` over five). A GPU would mostly wait: it takes as
    many as `AT_ONCE` has room for, or ``at_once``, by ``torch.func``; one where that cannot vectorise the model.
    """
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    total = {name: torch.zeros_like(p, dtype=torch.float64) for name, p in trainable.items()}
    # Of some samples in float32, which is faster, and few enough for its precision.
    block = {name: torch.zeros_like(p) for name, p in trainable.items()}
    count, pending = 0, 0
    with eval_mode(model):
        for images, labels in batches:
            if at_once is None:
                room = AT_ONCE // max(1, sum(p.nbytes for p in trainable.values()))
                at_once = 1 if images.device.type == "cpu" else max(1, min(BLOCK, room))
            count += len(labels)
            squares = _by_vmap(model, trainable, images, labels, at_once) if at_once > 1 else None
            if squares is not None:
                _move(squares, total)
                continue
            at_once = 1
            for image, label in zip(images, labels, strict=True):
                logits = checked_logits(model(image[None]), label[None])
                loss = torch.nn.functional.cross_entropy(logits, label[None])
                for name, gradient in gradients(loss, trainable):
                    block[name].addcmul_(gradient, gradient)
                pending += 1
                if pending % BLOCK == 0:
                    _move(block, total)
    _move(block, total)
    return total, count


def _by_vmap(
    model: nn.Module, trainable: Mapping[str, Tensor], images: Tensor, labels: Tensor, at_once: int
) -> dict[str, Tensor] | None:
    """The sums of one batch, ``at_once`` samples at a time; None where that fails, for the model or for the memory."""
    with torch.no_grad():  # what is wrong with one sample's output is so with all, but for the labels
        checked_logits(checked_logits(model(images[:1]), labels[:1]).expand(len(labels), -1), labels)

    def loss(parameters: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        logits = functional_call(model, parameters, (image[None],))
        return torch.nn.functional.cross_entropy(logits.float(), label[None])

    weights = {name: p.detach() for name, p in trainable.items()}
    per_sample = vmap(grad(loss), in_dims=(None, 0, 0))
    total = {name: torch.zeros_like(p) for name, p in weights.items()}
    try:
        # Fused attention has no rule for vmap, which would take its samples one by one.
        with sdpa_kernel(SDPBackend.MATH):
            for some, their in zip(torch.split(images, at_once), torch.split(labels, at_once), strict=True):
                for name, gradient in per_sample(weights, some, their).items():
                    total[name] += gradient.square().sum(dim=0)
    except RuntimeError:
        return None
    return total


def _move(block: dict[str, Tensor], total: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for name, value in block.items():
            total[name] += value
            value.zero_()


def dampened(weight: Tensor, forget: Tensor, everything: Tensor, alpha: float, lam: float) -> Tensor:
    """``θ · min(λ · I_D / I_f, 1)`` where ``I_f > α · I_D``, else θ (equation 4).

    Args:
        weight: θ ``[…]``.
        forget: importances I_f of the same shape.
        everything: importances I_D of the same shape.
        alpha: the selection threshold α.
        lam: the dampening constant λ.

    >>> dampened(torch.ones(2), torch.tensor([8.0, 1.0]), torch.tensor([2.0, 2.0]), alpha=1.0, lam=1.0)
    tensor([0.2500, 1.0000])
    """
    fires = forget > alpha * everything
    factor = torch.where(fires, (lam * everything / forget).clamp(max=1.0), 1.0)
    return weight * factor.to(weight.dtype)


class SsdParams(Params):
    """Hyperparameters of SSD; the defaults are the authors'. Nothing is trained."""

    alpha: float = Field(10.0, gt=0, le=1e6, json_schema_extra={"search": {"low": 0.5, "high": 100.0, "log": True}})
    lam: float = Field(1.0, gt=0, le=100, json_schema_extra={"search": {"low": 0.1, "high": 5.0, "log": True}})


class Ssd(Method):
    """Importances at the original's weights in eval mode, applied once; BatchNorm statistics stay as they are."""

    name = "ssd"
    position = 6
    Params = SsdParams
    params: SsdParams
    stochastic = False

    def plan(self, workspace: Workspace) -> Plan:
        """One pass of per-sample gradients over the forget set, one over the retain set, and no phase."""
        p, ws = self.params, workspace
        fraction = len(ws.labels("forget")) / (len(ws.labels("forget")) + len(ws.labels("retain")))
        if p.alpha * fraction >= 1:
            ws.warn(
                "SSD cannot select a weight: I_D contains I_f, so at this share of forgotten samples their ratio is "
                f"at most {1 / fraction:.1f} and never above alpha = {p.alpha:g}; use a smaller alpha"
            )
            return {}
        forget, n_forget = squared_gradients(ws.model, ws.batches("forget", BLOCK))
        retain, n_retain = squared_gradients(ws.model, ws.batches("retain", BLOCK))
        weights = dict(ws.model.named_parameters())
        with torch.no_grad():
            for name, importance in forget.items():
                everything = (importance + retain[name]) / (n_forget + n_retain)
                weights[name].copy_(dampened(weights[name], importance / n_forget, everything, p.alpha, p.lam))
        return {}
        yield  # a generator without a phase
