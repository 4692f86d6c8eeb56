"""Which shard and slice a sample is in: by a hash of its id or group, and so by nothing that other samples change."""

import csv
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mlflow_unlearn.data.manifest import Manifest
from mlflow_unlearn.errors import UnlearnError, did_you_mean
from mlflow_unlearn.spelling import spelled

if TYPE_CHECKING:  # to look where samples lie must not wait for torch
    from mlflow_unlearn.data.source import Split

Numbers = NDArray[np.int64]


@dataclass(frozen=True)
class Placement:
    """The shard and the slice of each of N samples.

    Attributes:
        shard: ``[N]``, from 0.
        slice_: ``[N]``, from 0.
    """

    shard: Numbers
    slice_: Numbers

    def __len__(self) -> int:
        """N."""
        return len(self.shard)

    def subset(self, indices: NDArray[np.int64]) -> "Placement":
        """Of the samples at ``indices [M]``."""
        return Placement(self.shard[indices], self.slice_[indices])

    def rows(self, shard: int, stage: int) -> Numbers:
        """The samples ``[M]`` of a shard's first ``stage`` slices, in their order."""
        return np.flatnonzero((self.shard == shard) & (self.slice_ < stage))


def placements(keys: Sequence[str], shards: int, slices: int) -> Placement:
    r"""Shard ``SHA-256("shard\n" + key) mod shards``, slice ``SHA-256("slice\n" + key) mod slices``.

    Args:
        keys: one a sample, its id or its group: samples with one key lie in one slice.
        shards: how many.
        slices: of each shard.
    """

    def drawn(of: str, count: int) -> dict[str, int]:
        return {key: int(hashlib.sha256(f"{of}\n{key}".encode()).hexdigest(), 16) % count for key in set(keys)}

    shard, slice_ = drawn("shard", shards), drawn("slice", slices)
    return Placement(
        np.array([shard[key] for key in keys], np.int64), np.array([slice_[key] for key in keys], np.int64)
    )


def keys_of(split: "Split", by: str) -> tuple[str, ...]:
    """What is hashed of each sample: its id, or its value in a column of groups.

    Raises:
        UnlearnError: there is no such column.
    """
    if by == "id":
        return split.ids
    if by not in split.groups:
        known = (
            did_you_mean(by, split.groups) if split.groups else f"it has no group columns, leave {spelled('group')} out"
        )
        raise UnlearnError(f"the source has no column {by!r} to shard by: {known}")
    return split.groups[by]


def check_placement(placed: Placement, labels: Numbers, classes: Sequence[str], shards: int, way_out: str) -> None:
    """Refuse shards that would be empty, or without a class that the others have.

    Args:
        placed: of the samples that are trained on ``[N]``.
        labels: their classes ``[N]``.
        classes: names of all classes.
        shards: how many there are.
        way_out: ends the sentence.

    Raises:
        UnlearnError: names the shard.
    """
    present = np.unique(labels)
    for shard in range(shards):
        own = np.unique(labels[placed.shard == shard])
        if not len(own):
            raise UnlearnError(f"shard {shard} of {shards} would have no sample: {way_out}")
        if len(missing := np.setdiff1d(present, own)):
            names = ", ".join(repr(classes[label]) for label in missing[:3])
            raise UnlearnError(f"shard {shard} of {shards} would have no sample of the class {names}: {way_out}")


def write_placement(path: Path, manifest: Manifest, placed: Placement, ids: Sequence[str]) -> None:
    """Write ``id,shard,slice`` sorted by id, below the salt where ids are hashed.

    Args:
        path: of the file.
        manifest: whose ids are listed, hashed as they are in it.
        placed: of the samples ``[N]``.
        ids: their plain ids ``[N]``.
    """
    stored = set(manifest.ids)
    rows = sorted(
        (key, int(placed.shard[i]), int(placed.slice_[i]))
        for i, plain in enumerate(ids)
        if (key := manifest.key(plain)) in stored
    )
    with path.open("w", newline="", encoding="utf-8") as file:
        if manifest.salt is not None:
            file.write(f"# salt={manifest.salt}\n")
        csv.writer(file, lineterminator="\n").writerows([("id", "shard", "slice"), *rows])


def read_placement(path: Path, named: str) -> dict[str, tuple[int, int]]:
    """Stored id → shard and slice.

    Args:
        path: of the file on this machine, which may be a copy that is gone when somebody reads of it.
        named: the file, for messages.

    Raises:
        UnlearnError: the file is missing, or is not such a table.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = csv.DictReader(line for line in file if not line.startswith("#"))
            if rows.fieldnames is None:
                raise ValueError("there is no header")
            return {row["id"]: (int(row["shard"]), int(row["slice"])) for row in rows}
    except (OSError, UnicodeDecodeError, csv.Error, KeyError, TypeError, ValueError) as error:
        why = "it is not a table of id, shard and slice"
        if isinstance(error, OSError):
            why = "it is missing" if isinstance(error, FileNotFoundError) else str(error.strerror)
        raise UnlearnError(
            f"{named}, which lists where samples were trained, cannot be read ({why}): restore the file, or use "
            f"the method retrain, which trains all shards anew without it"
        ) from error
