"""What a version keeps of its own training, by which it can be gone back on: checkpoints, shards, the version before.

A checkpoint has seen samples, so it is data as the version is: `exposure` lists it and `retire` removes it.
"""

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from mlflow_unlearn.evidence.record import FrozenRecord

CHECKPOINTS = "checkpoints"
"""The folder of a run in which they lie, and the key of what the run's tag says of them."""
CHECKPOINTS_TAG = "unlearn.checkpoints"
"""Of a run: how many checkpoints it keeps."""


class Kept(FrozenRecord):
    """One checkpoint, an artifact of the run that has written it."""

    run_id: str
    path: str = Field(description="Of the artifact in that run.")
    sha256: str = Field(description="Of the file.")
    shard: int = Field(0, description="Of an ensemble: whose sub-model; 0 for one model.")
    stage: int = Field(description="Slices of an ensemble's shard, or epochs of one model, that it was trained on.")


class Machine(FrozenRecord):
    """What the bits of trained weights depend on beside recipe, seed and data."""

    torch: str
    device: str = Field(description="Type, and the name of an accelerator.")
    precision: str
    threads: int
    instructions: str = Field(description="Of the processor, as torch uses them, such as AVX512.")

    def differences(self, other: "Machine") -> list[str]:
        """What differs, in words; threads do not count, since training sets them to the recorded number."""
        return [
            f"{name} {mine} and not {theirs}"
            for name in ("torch", "device", "precision", "instructions")
            if (mine := getattr(other, name)) != (theirs := getattr(self, name))
        ]


class Shards(FrozenRecord):
    """How an ensemble's samples are spread, and how its sub-models are trained."""

    shards: int = Field(ge=1, description="Sub-models, each on samples of its own.")
    slices: int = Field(ge=1, description="Parts of a shard that are added one after the other.")
    by: str = Field("id", description="What is hashed: id, or a column of groups, whose samples then lie together.")
    prefix: str | None = Field(None, description="Module before which the layers are frozen and shared.")
    backbone: str | None = Field(None, description="Where the frozen layers' weights came from; null: at random.")
    backbone_sha256: str | None = Field(None, description="Of the frozen layers' weights.")
    exact: bool = Field(True, description="False once another method has changed the weights.")
    ended_by: str | None = Field(None, description="That method.")


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


class Exactness(FrozenRecord):
    """What may be claimed of an unlearned version, and what the claim covers."""

    claim: Literal["exact", "exact up to numerics", "approximate"]
    covers: str = Field(description="What the claim says, in a sentence.")
    excludes: list[str] = Field([], description="What it does not speak of, a sentence each.")
    retrained: dict[str, int] = Field({}, description="Shard → slices that were kept before it was trained again.")
    untouched: dict[str, str] = Field({}, description="Shard → SHA-256 of its weights, the same as in the source.")
    steps: int = Field(0, description="Of the optimiser.")
    steps_from_scratch: int = Field(0, description="That training everything anew would take.")


def of_shard(kept: Sequence[Kept], shard: int, stage: int) -> Kept | None:
    """A shard's last checkpoint that was written after ``stage`` slices or fewer; None where it begins at random.

    Args:
        kept: by a version.
        shard: its number.
        stage: slices or epochs.
    """
    found = [one for one in kept if one.shard == shard and one.stage <= stage]
    return max(found, key=lambda one: one.stage, default=None)
