"""One command of a kind at a time in an experiment, by a lock that dies with its process."""

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mlflow
from filelock import FileLock, Timeout

from mlflow_unlearn.errors import UnlearnError


@contextmanager
def experiment_lock(command: str, run_id: str) -> Iterator[None]:
    """Hold the experiment's lock, which dies with its process.

    Raises:
        UnlearnError: another process holds it.
    """
    experiment = mlflow.get_run(run_id).info.experiment_id
    scheme, slashes, path = mlflow.get_tracking_uri().partition(":///")
    store = f"{scheme}{slashes}{os.path.realpath(path)}" if scheme == "sqlite" else mlflow.get_tracking_uri()
    digest = hashlib.sha256(f"{store} {experiment}".encode()).hexdigest()[:16]
    lock = FileLock(Path(tempfile.gettempdir()).resolve() / f"mlflow-unlearn-{command}-{digest}.lock")
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
        yield
    finally:
        lock.release()
