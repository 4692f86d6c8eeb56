"""Retraining of the last layers on activations of the first ones, from a place that is found by measuring.

The exact-unlearning baseline "EU-k" of Goel et al., "Towards Adversarial Evaluations for Inexact Machine Unlearning",
arXiv 2201.06640, with a measured k.
"""

import torch
from pydantic import Field
from torch import nn

from mlflow_unlearn.data.splits import wholly_forgotten
from mlflow_unlearn.engine.frozen_prefix import can_be_split, depth_behind, split_points
from mlflow_unlearn.engine.method import Method, Plan, SplitName, Workspace
from mlflow_unlearn.engine.split_choice import chosen_split, memory_by_split
from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.methods._repair import FROM_RECIPE, RepairParams, repair
from mlflow_unlearn.metrics.membership import MIN_FORGET_SAMPLES

BATCH = 256
SAMPLES: dict[SplitName, int] = {"retain": 4000, "forget": 2000, "val": 2000}
"""At most so many of each set are measured."""


class RetrainFromParams(RepairParams):
    """Hyperparameters: the first module that is trained anew, or "auto", and those of the training."""

    epochs: int = Field(10, ge=1, le=1000, json_schema_extra={"search": {"factor": 2.0}})
    split: str = "auto"


class RetrainFrom(Method):
    """The layers in front are frozen and run once; those behind start anew, their BatchNorm in train mode."""

    name = "retrain_from"
    position = 13
    Params = RetrainFromParams
    params: RetrainFromParams
    own_prefix = True
    from_recipe = FROM_RECIPE
    # Each is cheaper by the layers that are frozen.
    epochs_of_training = {"cnn": 2 / 3, "vit": 2 / 3}
    final_metrics = ("split_depth",)

    @classmethod
    def unsuited(cls, model: nn.Module) -> str | None:
        """There is no place to split the model."""
        if can_be_split(model):
            return None
        return f"{cls.name} finds no place where this model can be split: use perturb, which needs none"

    def plan(self, workspace: Workspace) -> Plan:
        """Choose the place, freeze what is before it, draw the rest anew and train it on the retain set.

        Raises:
            UnlearnError: the model cannot be split at the given place.
        """
        p, ws = self.params, workspace
        split = _measured(ws) if p.split == "auto" else p.split
        depth = depth_behind(ws.model, split)
        ws.warn(f"{self.name} kept the layers before {split}, which cannot forget what they encode")
        ws.freeze_before(split)
        if not any(parameter.requires_grad for parameter in ws.model.parameters()):
            raise UnlearnError(f"no parameter behind {split!r} is trained: set requires_grad, or give another split")
        ws.reinitialise()
        yield from repair(ws, p)
        return {"split_depth": depth}


def _measured(ws: Workspace) -> str:
    """The last place in front of which the forget set does not stand out; the first one where a class goes wholly."""
    places = split_points(ws.model)
    labels = {split: ws.labels(split) for split in SAMPLES}
    matched = int(torch.isin(labels["forget"], labels["val"]).sum())
    if matched < MIN_FORGET_SAMPLES:
        ws.warn(
            f"only {matched} forget samples share a class with the validation set; at least {MIN_FORGET_SAMPLES} are "
            "needed to measure which layers may stay: nearly all were trained anew"
        )
    if matched < MIN_FORGET_SAMPLES or len(wholly_forgotten(labels["forget"], labels["retain"])):
        return places[0]
    some = {split: torch.randperm(len(labels[split]), generator=ws.generator)[:most] for split, most in SAMPLES.items()}
    batches = {split: ws.batches(split, BATCH, index) for split, index in some.items()}
    classes = int(max(int(part.max()) for part in labels.values())) + 1
    seed = int(torch.randint(2**31, (), generator=ws.generator))
    return chosen_split(memory_by_split(ws.model, places, batches, classes, seed))
