"""SalUn: only the weights that matter most to the forget set may move.

Fan et al., "SalUn: Empowering Machine Unlearning via Gradient-based Weight Saliency", ICLR 2024, arXiv 2310.12508.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from mlflow_unlearn.engine.method import Method, Params, Plan, Workspace, override_phases
from mlflow_unlearn.methods._gradients import mean_gradient
from mlflow_unlearn.methods.lotus import Lotus
from mlflow_unlearn.methods.random_labels import RandomLabels


def saliency_mask(
    gradient: Mapping[str, Tensor], fraction: float, *, of: Literal["all", "nonzero"] = "all"
) -> dict[str, Tensor]:
    """Bool tensors ``[…]`` by name, true at the ``fraction`` of all coordinates with the largest |gradient| (eq. 4).

    All tensors are ranked together.

    Args:
        gradient: ``[…]`` by name.
        fraction: in (0, 1].
        of: what it is a fraction of: all coordinates, or those whose gradient is not 0.

    >>> saliency_mask({"w": torch.tensor([3.0, -4.0]), "b": torch.tensor([0.1, -1.0])}, 0.5)
    {'w': tensor([True, True]), 'b': tensor([False, False])}
    """
    sizes = torch.cat([value.detach().abs().flatten() for value in gradient.values()])
    count = max(1, round(fraction * (len(sizes) if of == "all" else int((sizes > 0).sum()))))
    # Selecting the threshold is many times faster than sorting, but not among the equal zeros of inactive units.
    positive = sizes[sizes > 0].cpu().numpy()
    place = len(positive) - count
    threshold = float(np.partition(positive, place)[place]) if place >= 0 else 0.0
    chosen = sizes > threshold
    ties = (sizes == threshold).nonzero().flatten()
    chosen[ties[: count - int(chosen.sum())]] = True
    parts = torch.split(chosen, [value.numel() for value in gradient.values()])
    return {name: part.view_as(gradient[name]) for name, part in zip(gradient, parts, strict=True)}


def unmasked_weights(model: nn.Module, mask: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """By parameter the positions ``[M]`` outside ``mask``, in the flattened tensor, and the weights ``[M]`` there."""
    weights = {}
    for name, parameter in model.named_parameters():
        if name in mask:
            index = (~mask[name]).flatten().nonzero().flatten()
            weights[name] = (index, parameter.detach().flatten()[index])
    return weights


def restore(model: nn.Module, weights: Mapping[str, tuple[Tensor, Tensor]]) -> None:
    """Put back `unmasked_weights` ``[M]``, bit for bit: weight decay and momentum moved them without a gradient."""
    for name, values in weights.items():
        model.get_parameter(name).put_(*values)


_OBJECTIVES: Mapping[str, type[Method]] = {"random_labels": RandomLabels, "lotus": Lotus}


class SalUnParams(Params):
    """Hyperparameters of SalUn; the inner objective has its own settings for those that are not given.

    ``share`` is the fraction of the weights that may move, of all or of those that the forget loss depends on
    (``share_of``); ``alpha`` and ``retain_fraction`` are LoTUS's.
    """

    objective: Literal["random_labels", "lotus"] = "random_labels"
    share: float = Field(0.5, gt=0, le=1, json_schema_extra={"search": {"low": 0.1, "high": 1.0}})
    share_of: Literal["all", "nonzero"] = "all"
    statistics: Literal["frozen", "train"] = "frozen"
    epochs: int = Field(10, ge=1, le=1000, json_schema_extra={"search": {"factor": 2.0}})
    lr: float = Field(0.01, gt=0, le=10, json_schema_extra={"search": {"factor": 10.0, "log": True}})
    batch_size: int = Field(128, ge=2, le=65536)
    weight_decay: float = Field(5e-4, ge=0, le=1)
    momentum: float = Field(0.9, ge=0, lt=1)
    alpha: float = Field(2.0, gt=0, le=64)
    retain_fraction: float = Field(0.3, gt=0, le=1)


class SalUn(Method):
    """The inner objective's plan, with every weight outside the mask restored after each step.

    Normalisation: running statistics frozen throughout, since they are not under the mask, unless ``statistics`` says
    otherwise.
    """

    name = "salun"
    position = 8
    Params = SalUnParams
    params: SalUnParams
    presets = {"authors": {"share": 0.5, "share_of": "nonzero", "statistics": "train"}}

    def __init__(self, params: Mapping[str, Any] | None = None, *, family: str = "cnn") -> None:
        """Take the settings of the inner objective for the family, where nothing else is given."""
        given = params or {}
        objective = _OBJECTIVES.get(str(given.get("objective", "random_labels")))
        inner = {} if objective is None else objective(family=family).params.model_dump()
        shared = {name: inner[name] for name in inner.keys() & self.Params.model_fields.keys()}
        super().__init__({**shared, **given}, family=family)

    def plan(self, workspace: Workspace) -> Plan:
        """One pass over the forget set for the mask, then the passes of the objective."""
        p, ws = self.params, workspace
        objective = _OBJECTIVES[p.objective]
        inner = objective(p.model_dump(include=set(objective.Params.model_fields)))
        mask = saliency_mask(mean_gradient(ws.model, ws.batches("forget", p.batch_size)), p.share, of=p.share_of)
        put_back = partial(restore, weights=unmasked_weights(ws.model, mask))
        return override_phases(inner.plan(ws), after_step=put_back, frozen_statistics=p.statistics == "frozen")
