"""MSG: draw anew the weights that do not tell the forget set from the retain set, then repair.

Second place of the NeurIPS 2023 machine unlearning challenge, as described by Cadet et al., "Deep Unlearn: Benchmarking
Machine Unlearning", EuroS&P 2025, arXiv 2410.01276.
"""

from collections.abc import Mapping
from functools import partial

import torch
from pydantic import Field
from torch import Tensor, nn

from mlflow_unlearn.engine.method import Method, Plan, Workspace, override_phases, random_subset
from mlflow_unlearn.methods._gradients import mean_gradient
from mlflow_unlearn.methods._repair import EPOCHS_OF_TRAINING, FROM_RECIPE, RepairParams, repair
from mlflow_unlearn.methods._weights import feature_weights, too_few_features, towards_noise

BATCH = 64
"""Samples of which the gradients are taken at once."""


def smallest(values: Tensor, fraction: float) -> Tensor:
    """Which of ``values [...]`` are the ``fraction`` of smallest size, bool of their shape; at least one.

    >>> smallest(torch.tensor([[3.0, -1.0], [0.5, 2.0]]), 0.5)
    tensor([[False,  True],
            [ True, False]])
    """
    order = values.abs().flatten().argsort(stable=True)
    chosen = torch.zeros(len(order), dtype=torch.bool, device=values.device)
    chosen[order[: max(1, round(fraction * len(order)))]] = True
    return chosen.view_as(values)


def scale_gradients(model: nn.Module, factors: Mapping[str, Tensor]) -> None:
    """Multiply the gradients of some parameters by ``factors [...]`` of their shape."""
    for name, factor in factors.items():
        gradient = model.get_parameter(name).grad
        if gradient is not None:
            gradient.mul_(factor)


class MsgParams(RepairParams):
    """Hyperparameters of MSG: the fraction drawn anew, the factor on the gradients of what is kept, the repair's."""

    reset: float = Field(0.6, gt=0, le=1, json_schema_extra={"search": {"low": 0.1, "high": 0.9}})
    kept: float = Field(1.0, ge=0, le=1, json_schema_extra={"search": {"low": 0.03, "high": 1.0, "log": True}})


class Msg(Method):
    """Gradients in eval mode, so that running statistics see no forget sample; the repair's BatchNorm in train mode."""

    name = "msg"
    position = 12
    Params = MsgParams
    params: MsgParams
    from_recipe = FROM_RECIPE
    epochs_of_training = EPOCHS_OF_TRAINING
    presets = {"authors": {"epochs": 5, "lr": 1e-3, "batch_size": 64, "weight_decay": 5e-4, "reset": 0.3, "kept": 0.1}}

    @classmethod
    def unsuited(cls, model: nn.Module) -> str | None:
        """There are hardly layers before the output layer."""
        return too_few_features(cls.name, model)

    def plan(self, workspace: Workspace) -> Plan:
        """A gradient of each set, the reset, and the repair with smaller gradients for what was kept."""
        p, ws = self.params, workspace
        retain, forget = ws.labels("retain"), ws.labels("forget")
        some = random_subset(retain, min(1.0, len(forget) / len(retain)), ws.generator)
        towards = mean_gradient(ws.model, ws.batches("retain", BATCH, some))
        away = mean_gradient(ws.model, ws.batches("forget", BATCH))
        factors = {}
        with torch.no_grad():
            for name, weight in feature_weights(ws.model).items():
                anew = smallest(towards[name] - away[name], p.reset)
                weight.copy_(torch.where(anew, towards_noise(weight, 1.0, ws.generator), weight))
                factors[name] = torch.where(anew, 1.0, p.kept)
        return override_phases(repair(ws, p), before_step=partial(scale_gradients, factors=factors))
