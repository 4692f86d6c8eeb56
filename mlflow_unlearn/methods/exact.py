"""Exact unlearning of an ensemble: the shards that have seen the samples are trained again from before they did.

Bourtoule et al., "Machine Unlearning" (SISA), IEEE S&P 2021, section IV.
"""

from dataclasses import replace
from typing import Any

from pydantic import Field
from torch import nn
from torch.utils.data import Dataset

from mlflow_unlearn.data.datasets import Augmented
from mlflow_unlearn.engine.ensemble import Ensemble
from mlflow_unlearn.engine.hardware import Hardware
from mlflow_unlearn.engine.loop import Outcome, RunOptions
from mlflow_unlearn.engine.method import Method, Params, Plan, Workspace
from mlflow_unlearn.engine.shards import ShardedPast, train_anew
from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.methods.retrain import Training
from mlflow_unlearn.spelling import spelled


def not_an_ensemble() -> str:
    """Why one model cannot be unlearned in this way."""
    return (
        f"{spelled('method', 'exact')} goes back on the training of an ensemble, and this version is one model: train "
        f"one by `train` with {spelled('ensemble', 4)} and {spelled('slices', 4)}, or use "
        f"{spelled('method', 'retrain')}"
    )


class ExactParams(Params):
    """The recipe is the recorded one; nothing else may be chosen."""

    fall_back: bool = Field(False, description="Go back further where a checkpoint is missing or was changed.")


class Exact(Method):
    """Trains the touched shards again, each from the slice before its first forgotten sample, on what is retained."""

    name = "exact"
    Params = ExactParams
    params: ExactParams
    position = 95
    stochastic = False
    needs = "shards"
    by_shards = True

    def plan(self, workspace: Workspace) -> Plan:
        """There is none for a module alone.

        Raises:
            UnlearnError: always: what decides is what a registered version keeps of its training.
        """
        raise UnlearnError(
            f"{spelled('method', 'exact')} needs what a registered version keeps of its training: use `mlflow-unlearn "
            f"unlearn` on a version that `train` with {spelled('ensemble')} has made and no other method has changed"
        )

    @classmethod
    def unsuited(cls, model: nn.Module) -> str | None:
        """One model has no shards."""
        return None if isinstance(model, Ensemble) else not_an_ensemble()


def retrain_shards(
    model: nn.Module,
    past: ShardedPast,
    retain: Dataset[Any],
    recipe: Method,
    hardware: Hardware,
    options: RunOptions,
) -> Outcome:
    """An ensemble's shards trained again on the retain set: those that are touched, or by ``retrain`` all of them.

    Args:
        model: the ensemble.
        past: what its version keeps.
        retain: the retain set, as it is trained on.
        recipe: `Exact`, which goes by the record, or a method whose hyperparameters and seed take its place.
        hardware: where and in which precision.
        options: seed and callbacks.

    Raises:
        UnlearnError: a shard would be left empty or without a class, or a checkpoint cannot be read.
    """
    if isinstance(recipe, Exact):
        begin, fall_back = past.begin(), recipe.params.fall_back
        if past.shards.augment != "none":
            retain = Augmented(retain, past.shards.augment)
    else:
        params = recipe.params.model_dump(mode="json")
        past = replace(past, shards=past.shards.model_copy(update={"params": params, "seed": options.seed}))
        begin, fall_back = dict.fromkeys(range(past.shards.shards), 0), False
    return train_anew(
        model, past, retain, Training, hardware, begin=begin, fall_back=fall_back, on_epoch=options.on_epoch
    )
