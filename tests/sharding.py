"""Ensembles in stores: how they are trained, where samples lie, and which checkpoints are stored."""

from pathlib import Path

import numpy as np
from mlflow.models import Model
from stores import DATA, Store

from mlflow_unlearn.data.loaders import load_source
from mlflow_unlearn.data.placement import placements
from mlflow_unlearn.registry.versions import METADATA_KEY, Record

SHARDED = (
    *("--data", DATA, "--architecture", "toy:trainable", "--epochs", "2", "--batch-size", "32"),
    *("--ensemble", "2", "--slices", "3"),
)


def placed_at(shard: int, slice_: int) -> list[str]:
    """The training samples of a slice."""
    ids = load_source(DATA).train.ids
    placed = placements(ids, 2, 3)
    return [ids[i] for i in np.flatnonzero((placed.shard == shard) & (placed.slice_ == slice_))]


def record_of(store: Store, number: str, name: str = "clf") -> Record:
    """What a version records of itself, by its files."""
    model_id = str(store.client.get_model_version(name, number).source).removeprefix("models:/")
    folder = Path(store.client.get_logged_model(model_id).artifact_location.removeprefix("file://"))
    return Record.model_validate((Model.load(str(folder)).metadata or {})[METADATA_KEY])


def listed(store: Store, *numbers: str) -> set[tuple[str, str]]:
    """Run and path of the checkpoints that versions list."""
    return {(one.run_id, one.path) for number in numbers for one in record_of(store, number).checkpoints}


def checkpoint_files(store: Store) -> dict[tuple[str, str], Path]:
    """Run and path of every checkpoint that is stored, wherever."""
    return {(path.parents[2].name, f"checkpoints/{path.name}"): path for path in store.folder.rglob("*.pt")}
