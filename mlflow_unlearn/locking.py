"""One command of a kind at a time in an experiment, by a lock that dies with its process."""

import hashlib
import platform
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mlflow
from filelock import FileLock, Timeout
from mlflow.entities import Run

from mlflow_unlearn import tracking
from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.progress import note

HOST_TAG = "unlearn.host"


@contextmanager
def alone(command: str, run_id: str) -> Iterator[None]:
    """Hold the experiment's lock, which dies with its process, and close what a dead process has left running.

    Raises:
        UnlearnError: another process holds it.
    """
    experiment = mlflow.get_run(run_id).info.experiment_id
    digest = hashlib.sha256(f"{mlflow.get_tracking_uri()} {experiment}".encode()).hexdigest()[:16]
    lock = FileLock(Path(tempfile.gettempdir()) / f"mlflow-unlearn-{command}-{digest}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise UnlearnError(
            f"another {command} is running in experiment {experiment} of this tracking store: wait until it is done, "
            "or set MLFLOW_EXPERIMENT_NAME to another one"
        ) from error
    except OSError as error:
        raise UnlearnError(f"the lock {lock.lock_file!r} cannot be taken ({error.strerror}): set TMPDIR") from error
    try:
        mlflow.set_tag(HOST_TAG, platform.node())
        _close_dead(command, experiment, run_id)
        yield
    finally:
        lock.release()


def _close_dead(command: str, experiment: str, run_id: str) -> None:
    """With the lock in our hands, a command of this machine that still says RUNNING is dead, as are its children."""
    client = tracking.client()

    def running(condition: str) -> list[Run]:
        found: list[Run] = client.search_runs([experiment], f"attributes.status = 'RUNNING' and {condition}")
        return [run for run in found if run.info.run_id != run_id]

    mine = f"tags.`unlearn.command` = '{command}' and tags.`{HOST_TAG}` = '{platform.node()}'"
    for parent in running(mine):
        for run in [*running(f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'"), parent]:
            client.set_terminated(run.info.run_id, "KILLED")
        note(f"Note: run {parent.info.run_id} had died and is closed as KILLED; what it finished is taken over.")
