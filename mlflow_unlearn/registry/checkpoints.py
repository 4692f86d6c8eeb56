"""Checkpoints of a training as artifacts of its run: stored, and read again if they are what was stored.

Torch is loaded where it is used: to list and to compare them must not wait for it.
"""

import hashlib
import io
import re
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import mlflow
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from mlflow_unlearn.console import first_line
from mlflow_unlearn.errors import NoAnswer, UnlearnError
from mlflow_unlearn.evidence.checkpoints import CHECKPOINTS, CHECKPOINTS_TAG, RESUME_TAG, TRAINED_AS_TAG, Kept
from mlflow_unlearn.registry.artifacts import delete_run_file, run_file, run_files
from mlflow_unlearn.registry.dead import this_machine
from mlflow_unlearn.registry.network import persistently

_NAME = re.compile(rf"{CHECKPOINTS}/shard-\d+-stage-\d+\.pt")


class LostCheckpoint(UnlearnError):
    """A checkpoint is missing, or is not what was stored."""


def store_checkpoint(run_id: str, state: Mapping[str, Any], *, shard: int = 0, stage: int) -> Kept:
    """Store tensors, numbers and texts as one checkpoint of the active run.

    Args:
        run_id: of the active run.
        state: what training goes on from.
        shard: of an ensemble.
        stage: slices or epochs that are done.
    """
    import torch

    with tempfile.TemporaryDirectory(prefix="mlflow-unlearn-") as folder:
        path = Kept.path_of(shard, stage)
        file = Path(folder) / Path(path).name
        torch.save(dict(state), file)
        sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
        mlflow.log_artifact(str(file), CHECKPOINTS, run_id=run_id)
    return Kept(run_id=run_id, path=path, sha256=sha256, shard=shard, stage=stage)


def keeper(
    run_id: str, resume_key: Callable[[], str | None] = lambda: None
) -> Callable[[Mapping[str, Any], int], Kept]:
    """A function that stores a state and the epochs done as a checkpoint of a run, and counts them in its tag.

    Args:
        run_id: of the active run.
        resume_key: what the same command goes on by after a kill, once the training has begun.
    """
    stored: list[Kept] = []

    def store(state: Mapping[str, Any], epochs: int) -> Kept:
        # Before the file: what a run keeps is looked for by its tags, and the process may be killed in between.
        tags = {CHECKPOINTS_TAG: str(len(stored) + 1)}
        if not stored and (key := resume_key()) is not None:
            tags[RESUME_TAG] = hashlib.sha256(f"{key} {this_machine()}".encode()).hexdigest()
        for name, value in tags.items():
            persistently(partial(MlflowClient().set_tag, run_id, name, value))
        kept = persistently(lambda: store_checkpoint(run_id, state, stage=epochs))
        stored.append(kept)
        return kept

    return store


def mark_training(run_id: str, trained_as: str) -> None:
    """Have a run say which training keeps checkpoints in it, before the first one."""
    persistently(lambda: MlflowClient().set_tag(run_id, TRAINED_AS_TAG, trained_as))


def stored_checkpoints(run_id: str) -> dict[str, int | None]:
    """Path → size of each checkpoint in a run's artifacts; what is called otherwise is not one of ours.

    Raises:
        UnlearnError: its store does not tell.
    """
    try:
        found = run_files(run_id, CHECKPOINTS)
    except NoAnswer:
        raise
    except Exception as error:  # a store's client raises whatever it likes, also that it is not installed
        raise UnlearnError(f"the checkpoints of run {run_id} cannot be listed ({first_line(error)})") from error
    return {file.path: file.file_size for file in found if not file.is_dir and _NAME.fullmatch(file.path)}


def delete_checkpoint(run_id: str, path: str) -> None:
    """Delete one.

    Raises:
        ValueError: the path is not one of a checkpoint.
    """
    if not _NAME.fullmatch(path):  # whoever may write a version's record may have put anything there
        raise ValueError(f"{path!r} is not the path of a checkpoint")
    delete_run_file(run_id, path)


def delete_checkpoints(run_id: str) -> None:
    """Delete all of a run that no version came of."""
    for path in stored_checkpoints(run_id):
        delete_checkpoint(run_id, path)


def checked_checkpoint(kept: Kept) -> bytes:
    """Its bytes, if they are those that were stored.

    Raises:
        LostCheckpoint: it is gone, or was changed.
    """
    name = f"the checkpoint {kept.path} of run {kept.run_id}"
    with tempfile.TemporaryDirectory(prefix="mlflow-unlearn-") as folder:
        try:
            content = run_file(kept.run_id, kept.path, Path(folder)).read_bytes()
        except (MlflowException, OSError) as error:
            raise LostCheckpoint(f"{name} cannot be read ({first_line(error)})") from error
    if hashlib.sha256(content).hexdigest() != kept.sha256:
        raise LostCheckpoint(f"{name} was changed since it was written")
    return content


def read_checkpoint(kept: Kept) -> dict[str, Any]:
    """What was stored.

    Raises:
        LostCheckpoint: it is gone, or was changed.
    """
    import torch

    content = io.BytesIO(checked_checkpoint(kept))  # what was hashed is what is loaded
    found: dict[str, Any] = torch.load(content, map_location="cpu", weights_only=True)
    return found
