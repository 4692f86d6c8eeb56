"""One command of a kind at a time: in an experiment on one machine, and on a registered model between machines.

**The lock of a registered model** is made of its tags, which everyone has who may decide about it, on every store that
shows a finished write to all later reads. Who wants the lock sets a tag of its own, its *flag*, and then reads all
flags; it has the lock if there is no other. Of two that want it, one wrote its flag first, and the other one, which
read after that, saw it: both can never enter. Who sees an earlier flag (by time and id, a total order) takes its own
down and waits; who sees only later ones waits with its flag up, until the others have taken theirs down or are done.
So the first in that order always gets on, and clocks that differ only change who is first.

A flag whose process has ended counts no more: at once on the machine where it ran, elsewhere once it has not changed
for `PATIENCE` seconds by the watcher's own clock. Who holds the lock renews its flag every `BEAT` seconds, and never
after `LEASE` seconds without having done so: then the lock counts as lost, and `ModelLock.check`, which is asked before
each step that cannot be undone, ends the command. A process that is stopped between that check and its next request
for longer than `PATIENCE` is not caught: MLflow's stores cannot refuse a write by its age.
"""

import hashlib
import json
import os
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import mlflow
from filelock import FileLock, Timeout
from mlflow.entities.model_registry import RegisteredModel
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from mlflow_unlearn.console import first_line, note
from mlflow_unlearn.errors import NoAnswer, UnlearnError
from mlflow_unlearn.parsing import load_json
from mlflow_unlearn.registry.clients import registry_client
from mlflow_unlearn.registry.dead import COMMAND_VARIABLE, died, this_process
from mlflow_unlearn.registry.identity import local_user
from mlflow_unlearn.registry.network import persistently

LOCK_TAG = "unlearn.lock"
"""How the flags' names begin."""
BEAT, LEASE, PATIENCE = 20.0, 60.0, 90.0
"""Seconds: between two renewals of a flag, until an unrenewed one counts as lost, until others remove it."""
WAIT, WAIT_VARIABLE = 180.0, "MLFLOW_UNLEARN_WAIT"
"""Seconds that a command waits for a lock, and the environment variable that says otherwise."""
_GRACE = 5.0
"""Seconds in which one that does not want to wait still lets later ones take their flags down."""
_POLL, _SILENT = 0.3, 2.0
"""Seconds between two looks at the flags, and until a note says for whom the command waits."""


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
            f"the lock {lock.lock_file!r} cannot be taken ({error.strerror}): does it belong to another user?"
        ) from error
    try:
        yield
    finally:
        lock.release()


@dataclass(frozen=True, config=ConfigDict(extra="forbid", strict=True))
class Flag:
    """What the tag of one process says that holds a lock or wants it.

    Attributes:
        since: when it first wanted it, ISO time in UTC.
        id: of the flag; with ``since`` the order in which flags go first.
        command: what it does.
        who: the user.
        process: host, place, number and start of the process, as on its run.
        beat: renewals.
    """

    since: str
    id: str
    command: str = "an unknown command"
    who: str = "an unknown user"
    process: str = "an unknown machine – 0 None"
    beat: int = 0

    @classmethod
    def ours(cls) -> "Flag":
        """A new one of this process."""
        return cls(
            datetime.now(UTC).isoformat(timespec="milliseconds"),
            uuid.uuid4().hex[:12],
            os.environ.get(COMMAND_VARIABLE, "python"),
            os.environ.get("MLFLOW_TRACKING_USERNAME") or local_user(),
            this_process(),
        )

    @classmethod
    def from_tag(cls, id: str, value: str) -> "Flag":
        """What a tag says; one that says anything else belongs to nobody known, and ends as that of a dead process."""
        try:
            return cls(**load_json(value) | {"id": id})
        except (ValueError, TypeError):  # pydantic's own is a ValueError
            return cls("", id)

    @property
    def ended(self) -> bool:
        """Whether its process is known to have ended."""
        return died(self.process)

    def __str__(self) -> str:
        """For the sentence that says who is in the way."""
        where, pid, _ = (*self.process.rsplit(" ", 2), "", "")[:3]
        since = f", since {self.since}" if self.since else ""
        return f"`{self.command}` of {self.who} on {where.rpartition(' ')[0]} (process {pid}){since}"


def _now() -> float:
    """Seconds that go on while the machine sleeps."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class ModelLock:
    """The lock of one registered model for one purpose, held inside `model_lock`."""

    def __init__(self, client: MlflowClient, name: str, what: str, purpose: str) -> None:
        """Of ``what`` it is about, for people; nothing is written yet."""
        self.name, self.what = name, what
        self._registry, self._flag = registry_client(client), Flag.ours()
        self._prefix = f"{LOCK_TAG}.{purpose}."
        self._key = self._prefix + self._flag.id
        self._renewed = 0.0
        self._watched: dict[str, tuple[str, float]] = {}
        """Flags of others → what they said, and since when, by our clock."""
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._beat, name=f"lock of {what}", daemon=True)

    def check(self) -> RegisteredModel:
        """The registered model as it is now, if the lock is still ours: before each step that cannot be undone.

        Raises:
            UnlearnError: it is not, since this process was stopped for long, or somebody removed its flag.
        """
        model = self._read()
        if self._late() or self._key not in model.tags:
            raise UnlearnError(
                f"the lock of {self.what} was lost, since this process was suspended for more than {LEASE:g} seconds "
                "or its tag was removed; start the same command again"
            )
        return model

    def acquire(self, wait: float) -> RegisteredModel:
        """Wait until the lock is ours; the registered model as it was read then.

        Raises:
            UnlearnError: it was another's all the time.
        """
        begun, up, told, others = _now(), False, False, list[Flag]()
        try:
            while True:
                if not up and not others:
                    self._renewed, up = self._write(), True
                model = self._read()
                others = self._others(model)
                if up and (self._key not in model.tags or self._late()):  # removed, while this process was stopped
                    self._remove(self._key)
                    up = False
                    if _now() - begun > wait + _GRACE:
                        raise UnlearnError(f"{self.what} cannot be locked: its tag {self._key} cannot be set")
                elif up and not others:
                    self._thread.start()
                    return model
                if not others:
                    continue
                first = min(others, key=lambda flag: (flag.since, flag.id))
                if up and (first.since, first.id) < (self._flag.since, self._flag.id):
                    self._remove(self._key)
                    up = False
                waited = _now() - begun
                if waited >= wait + (_GRACE if up else 0):
                    raise UnlearnError(
                        f"{self.what} is in use by {first}: start this command again when that one is done, or let it "
                        f"wait that long with {WAIT_VARIABLE}=SECONDS"
                    )
                if not told and waited > _SILENT and wait:
                    note(f"Waiting: {self.what} is in use by {first}.")
                    told = True
                if up and _now() - self._renewed > BEAT:
                    self._renewed = self._write()
                time.sleep(_POLL)
        except BaseException:
            if up:
                self.release()
            raise

    def release(self) -> None:
        """Take the flag down; where that fails, it ends as that of a dead process."""
        self._released.set()
        if self._thread.is_alive():
            self._thread.join(_GRACE)
        try:
            self._remove(self._key)
        except (MlflowException, NoAnswer) as error:
            if getattr(error, "error_code", "") != "RESOURCE_DOES_NOT_EXIST":  # else the model is gone with its tags
                note(
                    f"Note: the lock of {self.what} could not be given back ({first_line(error)}); it ends by itself "
                    f"within {PATIENCE:g} seconds after this command."
                )

    def _others(self, model: RegisteredModel) -> list[Flag]:
        """The flags of others that count; those that do not are removed."""
        found, now = [], _now()
        for key, value in model.tags.items():
            if not key.startswith(self._prefix) or key == self._key:
                continue
            flag = Flag.from_tag(key.removeprefix(self._prefix), value)
            before, since = self._watched.get(key, (value, now))
            self._watched[key] = (value, since if before == value else now)
            if flag.ended or now - self._watched[key][1] >= PATIENCE:
                note(f"Note: {flag} has ended without giving back the lock of {self.what}: it is taken over.")
                self._remove(key)
            else:
                found.append(flag)
        return found

    def _write(self) -> float:
        """Set or renew our flag; when that was begun."""
        begun = _now()
        values = {key: value for key, value in asdict(self._flag).items() if value}
        persistently(lambda: self._registry.set_registered_model_tag(self.name, self._key, json.dumps(values)))
        self._flag = replace(self._flag, beat=self._flag.beat + 1)
        return begun

    def _remove(self, key: str) -> None:
        persistently(lambda: self._registry.delete_registered_model_tag(self.name, key))

    def _read(self) -> RegisteredModel:
        model: RegisteredModel = persistently(lambda: self._registry.get_registered_model(self.name))
        return model

    def _late(self) -> bool:
        return _now() - self._renewed > LEASE

    def _beat(self) -> None:
        """Renew the flag while the lock is held; one that others may have removed in between goes again."""
        while not self._released.wait(BEAT) and not self._late():
            try:
                begun = self._write()
                if self._late() or self._released.is_set():
                    self._remove(self._key)
                else:
                    self._renewed = begun
            except Exception as error:  # whatever the store raises: the next beat may get through
                note(f"Note: the lock of {self.what} could not be renewed ({first_line(error)}).")


def take_down_ended(client: MlflowClient, name: str) -> None:
    """Remove the flags on a registered model whose process is known to have ended, for one that wants no lock of it."""
    registry = registry_client(client)
    for key, value in persistently(lambda: registry.get_registered_model(name)).tags.items():
        if key.startswith(f"{LOCK_TAG}.") and Flag.from_tag(key.rpartition(".")[2], value).ended:
            persistently(partial(registry.delete_registered_model_tag, name, key))


@contextmanager
def model_lock(
    client: MlflowClient, name: str, *, version: str | None = None, wait: float = WAIT
) -> Iterator[tuple[ModelLock, RegisteredModel]]:
    """Hold the lock of a registered model inside the block: what is read and written there is one step for all others.

    Args:
        client: of the registry.
        name: of the registered model.
        version: for the lock of the work on one version, which is another one than that of decisions about the model.
        wait: seconds after which it is given up, unless the environment says otherwise.

    Yields:
        The lock, and the registered model as it was read when the lock was had.

    Raises:
        UnlearnError: another command held it all the time.
    """
    what, purpose = (f"models:/{name}", "model") if version is None else (f"models:/{name}/{version}", f"v{version}")
    lock = ModelLock(client, name, what, purpose)
    model = lock.acquire(_seconds(wait))
    try:
        yield lock, model
    finally:
        lock.release()


def _seconds(default: float) -> float:
    given = os.environ.get(WAIT_VARIABLE)
    try:
        seconds = float(given) if given else default
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise UnlearnError(f"{WAIT_VARIABLE} = {given!r} is not a number of seconds ≥ 0: unset it, or correct it")
    return seconds
