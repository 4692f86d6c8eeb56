"""What a version keeps of its own training, by which it can be gone back on: checkpoints, shards, the version before.

A checkpoint has seen samples, so it is data as the version is: `exposure` lists it and `retire` removes it.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from mlflow_unlearn.evidence.record import FrozenRecord

CHECKPOINTS = "checkpoints"
"""The folder of a run in which they lie, and the key of what the run's tag says of them."""
CHECKPOINTS_TAG = "unlearn.checkpoints"
"""Of a run: how many checkpoints it keeps, or "shards"; of a version and its LoggedModel: how many they list."""
OF_SHARDS = "shards"
"""The value of a run's tag where a training that goes on after a kill stores all of them again."""
TRAINED_AS_TAG = "unlearn.trained_as"
"""Of a run that keeps checkpoints: `trained_as` of its training, and of the one that it goes back on, for `retire`."""
RESUME_TAG = "unlearn.resume_key"
"""Of such a run of one model: equal for those that go on from one another on one machine after a kill."""
_RECIPE = ("epochs", "lr", "batch_size", "weight_decay")


def trained_as(architecture: str | None, samples_sha256: str, params: Mapping[str, Any], seed: int) -> str:
    """What tells a training from others, known before it begins; trainings that differ in more are taken for one.

    Args:
        architecture: of the model.
        samples_sha256: of the list of its samples, as a version stores it.
        params: with the recipe among them.
        seed: from which everything random follows.
    """
    told = [architecture, samples_sha256, {name: params.get(name) for name in _RECIPE}, seed]
    return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()


class Kept(FrozenRecord):
    """One checkpoint, an artifact of the run that has written it."""

    run_id: str
    path: str = Field(description="Of the artifact in that run.")
    sha256: str = Field(description="Of the file.")
    shard: int = Field(0, description="Of an ensemble: whose sub-model; 0 for one model.")
    stage: int = Field(description="Slices of an ensemble's shard, or epochs of one model, that it was trained on.")

    @model_validator(mode="after")
    def _named_by_what_it_is(self) -> Self:
        """A record that somebody has edited cannot call a later state an earlier one."""
        if self.path != self.path_of(self.shard, self.stage):
            raise ValueError(f"{self.path!r} is not the checkpoint of shard {self.shard} after stage {self.stage}")
        return self

    @staticmethod
    def path_of(shard: int, stage: int) -> str:
        """Where a checkpoint lies in its run."""
        return f"{CHECKPOINTS}/shard-{shard}-stage-{stage}.pt"


class Machine(FrozenRecord):
    """What the bits of trained weights depend on beside recipe, seed and data."""

    torch: str
    device: str = Field(description="Type, and the name of an accelerator.")
    precision: str
    threads: int
    instructions: str = Field(description="Of the processor, as torch and oneDNN use them, such as AVX512.")
    processor: str = ""
    channels_last: bool = False
    compiled: bool = False
    processes: int = 1

    def differences(self, other: "Machine") -> list[str]:
        """What differs, in words; threads do not count, since training sets them to the recorded number."""
        return [
            f"{name.replace('_', ' ')} {theirs} and not {mine}"
            for name in type(self).model_fields
            if name != "threads" and (theirs := getattr(self, name)) != (mine := getattr(other, name))
        ]


class Shards(FrozenRecord):
    """How an ensemble's samples are spread, and how its sub-models are trained."""

    shards: int = Field(ge=1, description="Sub-models, each on samples of its own.")
    slices: int = Field(ge=1, description="Parts of a shard that are added one after the other.")
    by: str = Field("id", description="What is hashed: id, or a column of groups, whose samples then lie together.")
    params: dict[str, Any] = Field({}, description="Of the training; epochs are those of one model at the same cost.")
    seed: int = Field(0, description="From which the initial weights and the order of each stage follow.")
    augment: str = Field("none", description="Random augmentation of the training images.")
    prefix: str | None = Field(None, description="Module before which the layers are frozen and shared.")
    backbone: str | None = Field(None, description="Where the frozen layers' weights came from; null: at random.")
    backbone_sha256: str | None = Field(None, description="Of the frozen layers' weights.")
    mixed: bool = Field(False, description="Some were trained again on another machine than the others.")
    ended_by: str | None = Field(None, description="The method that has changed the weights without regard to shards.")

    def ended(self, by: str) -> Self:
        """As a version records them whose weights a method has changed so; the first one stays named."""
        return self if self.ended_by is not None else self.model_copy(update={"ended_by": by})


class Origin(FrozenRecord):
    """The version that a training went on from, with data that arrived later."""

    uri: str
    model_id: str | None
    weights_sha256: str
    samples: int = Field(description="So many were added by the training that went on.")
    added_sha256: str = Field(description="Of the list of added ids, as they are stored.")
    at: str = Field(description="When, UTC.")
    trained_on: Literal["all", "new"] = Field("all", description="All samples, or those alone that were added.")
    forgotten: list[str] = Field([], description="Ids of requests that it, or a version before it, had fulfilled.")
