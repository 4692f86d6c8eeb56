"""Perturb: move the features' weights a good part of the way to noise, then repair the model on the retain set.

Ours, after the noise that entries of the NeurIPS 2023 machine unlearning challenge added (Triantafillou et al., "Are we
making progress in unlearning?", arXiv 2406.09073).
"""

import math

import torch
from pydantic import Field
from torch import Tensor, nn

from mlflow_unlearn.engine.method import Method, Plan, Workspace
from mlflow_unlearn.methods._repair import FROM_RECIPE, RepairParams, repair
from mlflow_unlearn.methods._weights import feature_weights, too_few


def towards_noise(weight: Tensor, amount: float, generator: torch.Generator) -> Tensor:
    """``√(1 − a²) · w + a · σ_w · n`` with n ~ N(0, 1), of the shape of ``weight [...]``.

    σ_w is the root mean square of w, so that the size of the weights stays as it is. The noise is drawn on the CPU.

    Args:
        weight: w.
        amount: a, from 0 (the weight itself) to 1 (noise alone).
        generator: of the noise.
    """
    noise = torch.randn(weight.shape, generator=generator).to(weight)
    return math.sqrt(1 - amount**2) * weight + amount * weight.square().mean().sqrt() * noise


class PerturbParams(RepairParams):
    """Hyperparameters: how far the weights move to noise, and the repair's."""

    amount: float = Field(0.8, gt=0, le=1, json_schema_extra={"search": {"low": 0.4, "high": 1.0}})


class Perturb(Method):
    """The forget set is never read. BatchNorm in train mode while the model is repaired."""

    name = "perturb"
    position = 11
    Params = PerturbParams
    params: PerturbParams
    by_family = {"vit": {"amount": 1.0, "epochs": 20}}
    from_recipe = FROM_RECIPE

    @classmethod
    def unsuited(cls, model: nn.Module) -> str | None:
        """There are hardly layers before the output layer."""
        what = "kernels and matrices before the output layer"
        instead = "train more layers (no prefix, none frozen), or use finetune with a learning rate as in training"
        return too_few(cls.name, what, len(feature_weights(model)), model, instead)

    def plan(self, workspace: Workspace) -> Plan:
        """Disturb, then repair."""
        with torch.no_grad():
            for weight in feature_weights(workspace.model).values():
                weight.copy_(towards_noise(weight, self.params.amount, workspace.generator))
        return repair(workspace, self.params)
