"""The Optuna study: its storage, its leader, and its trials as slots that workers take.

The leader of a study queues its trials; a worker takes a waiting one and never makes one, so that many workers run
exactly as many as were asked for. The leader holds a lock that ends with its process: when it dies, another worker of
the study, or a later command, takes over.
"""

import hashlib
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from filelock import FileLock, Timeout
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError, ProgrammingError

from mlflow_unlearn.console import first_line, hidden_password, note
from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.spelling import spelled

HEARTBEAT_SECONDS, GRACE_SECONDS = 5, 30
RETRIES = 1
_ATTEMPTS = 4
_CONNECT_SECONDS = 10
_JOURNAL = "journal:"
_DRIVERS = {"postgresql": 'pip install "mlflow-unlearn[postgres]"', "mysql": "pip install pymysql"}
COUNTED = (TrialState.WAITING, TrialState.RUNNING, TrialState.COMPLETE, TrialState.PRUNED)
"""States of trials that are, or may yet be, one of those asked for."""


class QueueEmpty(Exception):
    """No trial is left in the queue."""


class _Journal(JournalStorage):
    """A trial that was not queued is not made."""

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        if template_trial is None:
            raise QueueEmpty
        return super().create_new_trial(study_id, template_trial)


class _Database(RDBStorage):
    """Likewise; and a trial changes its state once, with a sign of life before it runs."""

    changes: AbstractContextManager[Any] = nullcontext()

    def _create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> FrozenTrial:
        # Optuna's own cache in front of a database comes in here, and so does `create_new_trial`.
        if template_trial is None:
            raise QueueEmpty
        return super()._create_new_trial(study_id, template_trial)

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Any = None) -> bool:
        if state == TrialState.RUNNING:
            # A process that dies between the claim and the first heartbeat would never be missed.
            self.record_heartbeat(trial_id)
        # SQLite has no row locks: two processes would both read the old state, and both change it.
        with self.changes:
            return super().set_trial_state_values(trial_id, state, values)


def open_storage(url: str, on_dead: Callable[[optuna.Study, FrozenTrial], None]) -> BaseStorage:
    """Optuna's storage by its URL; ``on_dead`` gets each trial whose process has died.

    Raises:
        UnlearnError: it cannot be reached, has no driver here, or is MLflow's own.
    """
    if url.startswith(_JOURNAL):
        return _open_journal(url)
    shown = hidden_password(url)
    try:
        dialect = make_url(url).get_backend_name()
    except (ArgumentError, ValueError) as error:
        raise UnlearnError(
            f"{spelled('storage', shown)} is not a database URL: give one such as sqlite:///optuna.db or "
            "postgresql://user@host/database"
        ) from error
    if dialect == "sqlite" and make_url(url).database in (None, "", ":memory:"):
        raise UnlearnError(f"{spelled('storage', shown)} lives in memory, and ends with this process: give a file")
    if dialect not in ("sqlite", *_DRIVERS):
        raise UnlearnError(f"{spelled('storage', shown)}: use sqlite, postgresql, mysql, or journal:PATH")
    # SQLite: wait for others' transactions; the others: for a server that does not answer.
    patience = {"sqlite": {"timeout": 60}}.get(dialect, {"connect_timeout": _CONNECT_SECONDS})
    for attempt in range(_ATTEMPTS):
        try:
            if _is_mlflows(url, patience):
                raise UnlearnError(
                    f"{spelled('storage', shown)} is a database of MLflow's: Optuna needs another one, e.g. sqlite:///optuna.db"
                )
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                storage = _Database(
                    url,
                    engine_kwargs={"connect_args": patience, "pool_pre_ping": True},
                    heartbeat_interval=HEARTBEAT_SECONDS,
                    grace_period=GRACE_SECONDS,
                    heartbeat_stale_trial_callback=on_dead,
                )
            break
        except UnlearnError:
            raise
        except ImportError as error:
            raise UnlearnError(
                f"{spelled('storage', shown)} needs a driver ({error}): {_DRIVERS.get(dialect, '')}"
            ) from error
        except Exception as error:  # SQLAlchemy's, alembic's and the drivers' own.
            raced = isinstance(error, IntegrityError | ProgrammingError) or "already exists" in str(error)
            if raced and attempt + 1 < _ATTEMPTS:
                time.sleep(0.5)  # another command makes the tables at this moment
                continue
            raise UnlearnError(
                f"{spelled('storage', shown)} cannot be opened ({_reason(error)}): is the server running, does the "
                "database exist, and is it Optuna's alone?"
            ) from error
    if dialect == "sqlite":
        storage.changes = FileLock(_lock_file(url, "changes"))
    return storage


def _open_journal(url: str) -> BaseStorage:
    path = Path(url.removeprefix(_JOURNAL))
    note("Note: a journal file has no heartbeats: the trial of a worker that dies is not retried.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return _Journal(JournalFileBackend(str(path)))
    except (OSError, ValueError) as error:
        raise UnlearnError(
            f"{spelled('storage', url)} cannot be read or written ({error}): give another path"
        ) from error


def _is_mlflows(url: str, patience: Mapping[str, int]) -> bool:
    """By its tables, whatever it is called: Optuna would add its own, and then find MLflow's ``alembic_version``."""
    engine = sqlalchemy.create_engine(url, connect_args=dict(patience))
    try:
        return sqlalchemy.inspect(engine).has_table("experiments")
    finally:
        engine.dispose()


class LeaderLock:
    """Held by the leader of a study: a lock of the database session or of a file, which ends with its process."""

    def __init__(self, url: str, study: optuna.Study) -> None:
        """Hold nothing yet."""
        self.held = False
        self._engine: sqlalchemy.Engine | None = None
        self._connection: sqlalchemy.Connection | None = None
        dialect = "file" if url.startswith(_JOURNAL) else make_url(url).get_backend_name()
        # The lock of a file lies beside it, by whatever path its URL names it: a worker's is absolute.
        database = "" if dialect in ("file", "sqlite") else make_url(url).database
        name = f"mlflow-unlearn {database} {study.study_name}"
        number = int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "big")
        if dialect == "postgresql":
            self._question = f"SELECT pg_try_advisory_lock({number})"
        elif dialect == "mysql":
            self._question = f"SELECT GET_LOCK('mlflow-unlearn-{number:x}', 0)"
        else:
            self._file = FileLock(_lock_file(url, f"{number:x}"))
            return
        self._dialect = dialect
        self._engine = sqlalchemy.create_engine(
            url,
            isolation_level="AUTOCOMMIT",
            poolclass=sqlalchemy.NullPool,
            connect_args={"connect_timeout": _CONNECT_SECONDS},
        )

    def take(self) -> bool:
        """Whether this process leads, now or already."""
        if self.held and self._still_connected():
            return True
        if self._engine is None:
            try:
                self._file.acquire(timeout=0)
            except Timeout:
                return False
            self.held = True
            return True
        connection = self._engine.connect()
        if self._dialect == "postgresql":
            # So that the server lets go of the lock within minutes when this machine vanishes.
            for setting, seconds in (("idle", 60), ("interval", 10), ("count", 3)):
                connection.execute(sqlalchemy.text(f"SET tcp_keepalives_{setting} = {seconds}"))
        self.held = bool(connection.scalar(sqlalchemy.text(self._question)))
        if self.held:
            self._connection = connection  # the lock is this session's
        else:
            connection.close()
        return self.held

    def _still_connected(self) -> bool:
        """Whether the session that holds the lock is alive; a lost one has lost it."""
        if self._connection is None:
            return True
        try:
            self._connection.execute(sqlalchemy.text("SELECT 1"))
        except DBAPIError:
            self._connection.invalidate()
            self._connection, self.held = None, False
        return self.held

    def release(self) -> None:
        """Let another lead."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        elif self.held:
            self._file.release()
        self.held = False


def _lock_file(url: str, what: str) -> Path:
    """Beside the journal or the database file: processes that share the one share the other."""
    path = url.removeprefix(_JOURNAL) if url.startswith(_JOURNAL) else make_url(url).database or ""
    return Path(f"{os.path.realpath(path)}.{what}.lock")


def has_heartbeats(url: str) -> bool:
    """Whether a dead worker's trials are noticed."""
    return not url.startswith(_JOURNAL)


def retry(study: optuna.Study, trial: FrozenTrial) -> bool:
    """Queue a trial again whose process has died, unless that has happened `RETRIES` times before."""
    history = [*trial.system_attrs.get("retry_history", []), trial.number]
    if len(history) > RETRIES:
        return False
    # The names are those of Optuna's own callback, which would hand on the dead trial's run as well.
    queue_again(study, trial, {"failed_trial": history[0], "retry_history": history})
    return True


def queue_again(study: optuna.Study, trial: FrozenTrial, more: Mapping[str, Any] | None = None) -> None:
    """Queue a trial with the hyperparameters of one that was not finished."""
    study.add_trial(
        optuna.create_trial(
            state=TrialState.WAITING,
            params=trial.params,
            distributions=trial.distributions,
            system_attrs={**trial.system_attrs, **(more or {})},
        )
    )


def queue_trials(
    study: optuna.Study, n_trials: int, first: Sequence[dict[str, Any]], grid: Sequence[dict[str, Any]] | None = None
) -> None:
    """Queue what is missing to ``n_trials``.

    Args:
        study: to which the trials belong.
        n_trials: how many are to be done in all, waiting or running.
        first: parameters of the study's very first ones.
        grid: points that are queued, each once, in the place of trials that the sampler draws; may be fewer.
    """
    if not study.get_trials(deepcopy=False):
        for params in first[:n_trials]:
            study.enqueue_trial(params)
    missing = n_trials - count(study, *COUNTED)
    for point in grid or ():
        known = len(study.get_trials(deepcopy=False))
        if missing > 0:
            study.enqueue_trial(point, skip_if_exists=True)
            missing -= len(study.get_trials(deepcopy=False)) - known
    if grid is None:
        for _ in range(missing):
            # Without fixed parameters, which samplers would take for the user's choice.
            study.add_trial(optuna.create_trial(state=TrialState.WAITING))


def count(study: optuna.Study, *states: TrialState) -> int:
    """How many trials are in one of ``states``."""
    return sum(trial.state in states for trial in study.get_trials(deepcopy=False))


@contextmanager
def storage_errors(url: str) -> Iterator[None]:
    """Turn a database's errors during the work into a sentence.

    Raises:
        UnlearnError: the database failed.
    """
    try:
        yield
    except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        raise UnlearnError(
            f"{spelled('storage', hidden_password(url))} failed ({_reason(error)}); finished trials are kept: start "
            f"the same command again with {spelled('study')}"
        ) from error


def _reason(error: BaseException) -> str:
    return first_line(error.__cause__ or error)  # Optuna's own sentence is the same for everything
