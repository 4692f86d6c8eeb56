"""Perturb: move the features' weights a good part of the way to noise, then repair the model on the retain set.

Ours, after the noise that entries of the NeurIPS 2023 machine unlearning challenge added (Triantafillou et al., "Are we
making progress in unlearning?", arXiv 2406.09073).
"""

import torch
from pydantic import Field
from torch import nn

from mlflow_unlearn.engine.method import Method, Plan, Workspace
from mlflow_unlearn.methods._repair import EPOCHS_OF_TRAINING, FROM_RECIPE, RepairParams, repair
from mlflow_unlearn.methods._weights import feature_weights, too_few_features, towards_noise


class PerturbParams(RepairParams):
    """Hyperparameters: how far the weights move to noise, and the repair's."""

    amount: float = Field(0.8, gt=0, le=1, json_schema_extra={"search": {"low": 0.4, "high": 1.0}})


class Perturb(Method):
    """The forget set is never read. BatchNorm in train mode while the model is repaired."""

    name = "perturb"
    position = 11
    Params = PerturbParams
    params: PerturbParams
    by_family = {"vit": {"epochs": 20}}
    from_recipe = FROM_RECIPE
    epochs_of_training = EPOCHS_OF_TRAINING

    @classmethod
    def unsuited(cls, model: nn.Module) -> str | None:
        """There are hardly layers before the output layer."""
        return too_few_features(cls.name, model)

    def plan(self, workspace: Workspace) -> Plan:
        """Disturb, then repair."""
        with torch.no_grad():
            for weight in feature_weights(workspace.model).values():
                weight.copy_(towards_noise(weight, self.params.amount, workspace.generator))
        return repair(workspace, self.params)
