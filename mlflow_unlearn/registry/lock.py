"""One command of a kind at a time in an experiment, by a lock that dies with its process."""

import hashlib
import os
import platform
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mlflow
from filelock import FileLock, Timeout
from mlflow.entities import Run

from mlflow_unlearn.console import note
from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.registry import tracking

LOCK_TAG = "unlearn.lock"
"""Host and lock of a command: a run with another lock is none of its business."""


@contextmanager
def experiment_lock(command: str, run_id: str) -> Iterator[None]:
    """Hold the experiment's lock, which dies with its process, and close what a dead process has left running.

    Raises:
        UnlearnError: another process holds it.
    """
    experiment = mlflow.get_run(run_id).info.experiment_id
    scheme, slashes, path = mlflow.get_tracking_uri().partition(":///")
    store = f"{scheme}{slashes}{os.path.realpath(path)}" if scheme == "sqlite" else mlflow.get_tracking_uri()
    digest = hashlib.sha256(f"{store} {experiment}".encode()).hexdigest()[:16]
    lock = FileLock(Path(tempfile.gettempdir()).resolve() / f"mlflow-unlearn-{command}-{digest}.lock")
    holder = f"{platform.node()}:{lock.lock_file}"
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise UnlearnError(
            f"another {command} is running in experiment {experiment} of this tracking store: wait until it is done, "
            "or set MLFLOW_EXPERIMENT_NAME to another one"
        ) from error
    except OSError as error:
        raise UnlearnError(
            f"the lock {lock.lock_file!r} cannot be taken ({error.strerror}): is it another user's?"
        ) from error
    try:
        mlflow.set_tag(LOCK_TAG, holder)
        _close_dead(holder, experiment, run_id)
        yield
    finally:
        lock.release()


def _close_dead(holder: str, experiment: str, run_id: str) -> None:
    """While we hold the lock, a run that held it before and is still RUNNING is dead, as are its children."""
    client = tracking.client()

    def running(condition: str) -> list[Run]:
        found: list[Run] = client.search_runs([experiment], f"attributes.status = 'RUNNING' and {condition}")
        return [run for run in found if run.info.run_id != run_id]

    for parent in running(f"tags.`{LOCK_TAG}` = '{holder}'"):
        for run in [*running(f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'"), parent]:
            client.set_terminated(run.info.run_id, "KILLED")
        note(f"Note: run {parent.info.run_id} had died and is closed as KILLED; what it finished is taken over.")
