"""A cheat that every audit should catch: the original with a new last layer on the backbone as it was."""

import copy

from torch import nn

from mlflow_unlearn.data.splits import Splits
from mlflow_unlearn.engine.features import last_linear
from mlflow_unlearn.engine.hardware import Hardware
from mlflow_unlearn.engine.loop import RunOptions, run
from mlflow_unlearn.engine.method import Method, Plan, Workspace, override_phases
from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.methods.retrain import RetrainParams, Training
from mlflow_unlearn.rng import isolated_rng
from mlflow_unlearn.spelling import spelled


class _RefitHead(Method):
    """Training of the parameters that are left trainable, with BatchNorm as it stands."""

    name = "refit_head"
    Params = RetrainParams

    def plan(self, workspace: Workspace) -> Plan:
        return override_phases(Training(self.params.model_dump()).plan(workspace), frozen_statistics=True)


def known_cheat(
    original: nn.Module, splits: Splits, params: RetrainParams, hardware: Hardware, *, seed: int
) -> nn.Module:
    """Head refitting: the last linear layer is drawn anew and trained on the retain set; all before it stays.

    It has as good an accuracy as retraining, and remembers all that the backbone does.

    Args:
        original: to be trained; left as it was found.
        splits: of which the retain set is read, as it was trained on.
        params: of the original's training.
        hardware: where and in which precision.
        seed: of the new layer and of the training.

    Raises:
        UnlearnError: the model has no linear last layer that can be trained.

    Source: head distillation of "An Information Theoretic Evaluation Metric For Strong Unlearning" (AAAI 2026,
        arXiv 2405.17878), with labels in the place of the original's outputs.
    """
    model = copy.deepcopy(original)
    layer = last_linear(model)
    if layer is None or not any(p.requires_grad for p in layer.parameters()):
        raise UnlearnError(
            f"{spelled('cheat', True)} needs a model whose last layer is linear and can be trained: leave it out"
        )
    with isolated_rng(seed):
        layer.reset_parameters()
    own = {id(parameter) for parameter in layer.parameters()}
    free = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in own)
    method = _RefitHead(params.model_dump())
    found = run(model, method, {"retain": splits.retain}, hardware, RunOptions(seed)).model
    for name, parameter in found.named_parameters():
        parameter.requires_grad_(free[name])
    return found
