"""The MLflow run of a command: connection, options, system, and how it ends."""

import hashlib
import logging
import os
import re
import sqlite3
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import mlflow
import yaml
from mlflow import ActiveRun
from mlflow.entities import Metric, Param, Run, RunTag
from mlflow.entities.model_registry import ModelVersion
from mlflow.environment_variables import MLFLOW_EXPERIMENT_ID, MLFLOW_EXPERIMENT_NAME, MLFLOW_RUN_ID
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError

from mlflow_unlearn.config import Command
from mlflow_unlearn.console import STARTED, conceal, first_line, hidden_password, note, one_line, shortened, storable
from mlflow_unlearn.data.functions import no_exit
from mlflow_unlearn.distributed.launch import RUN_FILE_VARIABLE
from mlflow_unlearn.errors import AlreadyDone, BrokenMethod, NoAnswer, UnlearnError, shortlist
from mlflow_unlearn.evidence.registered import Registering
from mlflow_unlearn.registry.artifacts import remember, store_text
from mlflow_unlearn.registry.clients import experiment_ids
from mlflow_unlearn.registry.dead import COMMAND_VARIABLE, PROCESS_TAG, RunNote, died, notes, of_run
from mlflow_unlearn.registry.forget_requests import has_pending
from mlflow_unlearn.registry.lock import take_down_ended
from mlflow_unlearn.registry.network import once, persistently, unhurried
from mlflow_unlearn.registry.registration import registered_before, settle, take_back
from mlflow_unlearn.registry.system import system_facts
from mlflow_unlearn.registry.uris import absolute_uri, hidden_spec
from mlflow_unlearn.registry.versions import Version, find_version

ERROR_TAG = "unlearn.error"

_SQLITE = b"SQLite format 3\0"
FAILURES = (MlflowException, SQLAlchemyError, OSError, NoAnswer)
"""What a store or a file system raises: the end of a command, in a sentence."""
PATIENCE = 25.0
"""Seconds in which a tracking store has to answer."""
_hiding: list[bool] = []
"""Of the commands that run in this process, the innermost last: whether they hide ids of samples (``hash_ids``)."""


def client() -> MlflowClient:
    """A client of the store that `run` has connected to."""
    return MlflowClient()


def connect(patience: float = PATIENCE, *, new: bool = False) -> MlflowClient:
    """A client whose store answers; relative SQLite URIs are made absolute for us and our children.

    Args:
        patience: seconds until the store must have answered.
        new: a SQLite file that is not there is made.

    Raises:
        UnlearnError: the store cannot be opened or reached; the message has its URI.
    """
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    # The check would ask the package index; the requirements that we log are explicit.
    os.environ.setdefault("MLFLOW_SKIP_PIP_REQUIREMENTS_CHECK", "true")
    uri = absolute_uri(mlflow.get_tracking_uri())
    os.environ["MLFLOW_TRACKING_URI"] = uri
    mlflow.set_tracking_uri(uri)
    conceal(uri)
    conceal(mlflow.get_registry_uri())
    logging.getLogger("mlflow.store.db.utils").addFilter(_in_no_error)
    # MLflow itself retries for minutes, on servers and on databases: try once, with a short timeout.
    opened: list[MlflowClient] = []
    failures: list[Exception] = []
    registry = absolute_uri(mlflow.get_registry_uri())
    try:
        if registry != uri:
            _check_file(registry, new=new)
    except OSError as error:
        raise UnlearnError(
            f"the registry {hidden_password(registry)} cannot be opened ({first_line(error)}): correct "
            "MLFLOW_REGISTRY_URI, or leave it out"
        ) from error

    def probe() -> None:
        try:
            _check_file(uri, new=new)
            opened.append(MlflowClient())
            opened[0].search_experiments(max_results=1)
        except Exception as error:  # MLflow's, SQLAlchemy's, those of requests, or of a driver that is not installed
            failures.append(error)

    asking = threading.Thread(target=probe, daemon=True)
    with _environment(MLFLOW_HTTP_REQUEST_MAX_RETRIES="1", MLFLOW_HTTP_REQUEST_TIMEOUT="10"):
        asking.start()
        asking.join(patience)
    if failures and not opened:
        raise UnlearnError(
            f"the tracking store {hidden_password(uri)} cannot be opened ({first_line(failures[0])}): set "
            "MLFLOW_TRACKING_URI to a server or a database, such as https://mlflow.example.com or sqlite:////data/mlflow.db"
        ) from failures[0]
    if asking.is_alive() or failures:
        reason = first_line(failures[0]) if failures else f"no answer within {patience:g} seconds"
        raise UnlearnError(
            f"the tracking store {hidden_password(uri)} cannot be reached ({reason}): "
            "start it, or set MLFLOW_TRACKING_URI to one that runs"
        ) from (failures[0] if failures else None)
    return opened[0]


def _check_file(uri: str, *, new: bool) -> None:
    """Whether a SQLite file is MLflow's, or may become that: MLflow tries for minutes, or adds its tables to any other.

    Raises:
        OSError: it is not there, cannot be read, is not a database, or is another program's.
    """
    try:
        url = make_url(uri)
    except ArgumentError:
        return
    if url.get_backend_name() != "sqlite" or (url.database or ":memory:").startswith((":memory:", "file:")):
        return
    path = Path(str(url.database))
    if not path.exists():
        if not new:
            raise OSError("there is no such file")
        folder = next(folder for folder in path.absolute().parents if folder.exists())
        if not (folder.is_dir() and os.access(folder, os.W_OK)):
            raise OSError(f"no file can be made in {str(folder)!r}")
        return
    with path.open("rb") as file:
        if file.read(len(_SQLITE)) not in (b"", _SQLITE):
            raise OSError("the file is not a SQLite database")
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=1)) as database:
        with suppress(sqlite3.OperationalError):  # another process writes: it has its tables already
            tables = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
            if tables and "experiments" not in tables:
                raise OSError(f"the database is another program's, with the tables {shortlist(sorted(tables))}")


def _in_no_error(record: logging.LogRecord) -> bool:
    """MLflow prints a database's errors with their tracebacks, then raises them; the sentence is made of the latter."""
    return record.levelno < logging.WARNING


@contextmanager
def _environment(**variables: str) -> Iterator[None]:
    """Environment variables inside the block; as they were after it."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def child_environment() -> dict[str, str]:
    """The environment of a command that this process starts: with a run and patience of its own."""
    return {name: value for name, value in unhurried(os.environ).items() if name != MLFLOW_RUN_ID.name}


class CommandRun:
    """The run of a command: begun once all that its user has named is there and fits.

    What fails before makes no run, but under ``mlflow run``, which has made one already.
    """

    def __init__(self, name: str, begin: Callable[[str, str | None], str]) -> None:
        """Not begun; ``begin`` takes its name and the id of an experiment."""
        self._name, self._begin, self._id = name, begin, ""

    def begin(self, about: "str | Version | ModelVersion" = "", *, plan: bool = False) -> str:
        """Begin it, unless that was done before: its id.

        Args:
            about: the version that the command works on, in whose experiment the run is made, or a name.
            plan: it is a dry run.
        """
        if not self._id:
            words = ["plan" if plan else self._name, about if isinstance(about, str) else _short_name(about)]
            experiment = None if isinstance(about, str) else _experiment_of(about)
            self._id = self._begin(" ".join(filter(None, words)), experiment)
        return self._id


def _short_name(version: "Version | ModelVersion") -> str:
    return version.uri if version.name is None else f"{version.name} v{version.version}"


def _experiment_of(version: "Version | ModelVersion") -> str | None:
    """The experiment of the run that made a version; None where the user names one, or that cannot be used."""
    if MLFLOW_EXPERIMENT_NAME.get() or MLFLOW_EXPERIMENT_ID.get() or version.run_id is None:
        return None
    try:
        found: str = persistently(partial(client().get_run, version.run_id)).info.experiment_id
        if persistently(partial(client().get_experiment, found)).lifecycle_stage == "active":
            return found
        why = f"the experiment {found} is deleted"
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "PERMISSION_DENIED"):
            raise
        why = first_line(error)
    note(f"Note: the run is not made in the experiment of {_short_name(version)}'s own run ({why}).")
    return None


@contextmanager
def prepared(name: str, config: Command) -> Iterator[CommandRun]:
    """The MLflow run of one command, which begins it: FINISHED, FAILED with the sentence as a tag, or KILLED after.

    Under ``mlflow run`` this is the project's own run, which goes on at once.

    Raises:
        AlreadyDone: the same command did its work before, and was killed then.
        UnlearnError: also in the place of errors of MLflow and of the file system.
    """
    store, started = connect(new=config.makes_store), time.monotonic() - STARTED
    resumed = os.environ.pop(MLFLOW_RUN_ID.name, None)  # a project's run, which a later one in this process is not
    settled: list[RunNote] = []
    with ExitStack() as stack:
        stack.enter_context(_sentences())
        stack.callback(_drop, settled)
        stack.enter_context(_environment(**{COMMAND_VARIABLE: name}))
        stack.enter_context(_hidden_ids(bool(getattr(config, "hash_ids", False))))

        def begin(run_name: str, experiment: str | None) -> str:
            return stack.enter_context(_running(store, name, config, run_name, experiment, resumed, started))

        command_run = CommandRun(name, begin)
        if resumed is not None:
            command_run.begin()
        _settle_dead(store, config, name, settled)
        with no_exit("your own code"):
            yield command_run


def _drop(settled: list[RunNote]) -> None:
    for one in settled:
        one.drop()


@contextmanager
def run(name: str, config: Command) -> Iterator[str]:
    """`prepared`, and begun at once: yields its id."""
    with prepared(name, config) as command_run:
        yield command_run.begin()


@contextmanager
def _sentences() -> Iterator[None]:
    """A sentence in the place of errors of MLflow and of the file system.

    Raises:
        UnlearnError: with that sentence.
    """
    try:
        yield
    except FAILURES as error:
        raise UnlearnError(_as_sentence(error)) from error


@contextmanager
def _running(
    store: MlflowClient,
    command: str,
    config: Command,
    name: str,
    experiment: str | None,
    resumed: str | None,
    started: float,
) -> Iterator[str]:
    """The active run of a command: yields its id.

    Args:
        store: the tracking store.
        command: its name.
        config: its options.
        name: of the run.
        experiment: its id; None for the one that MLflow takes.
        resumed: id of a run that is there already.
        started: seconds from the start of the process to the command.
    """
    note_of_run = RunNote.begin(command=command, options=_digest(config))
    try:
        active = _started(store, note_of_run, run_name=name, run_id=resumed, experiment_id=experiment)
    except (MlflowException, SQLAlchemyError, NoAnswer) as error:
        if not isinstance(error, NoAnswer):  # else the run may be there: the next command looks for it
            note_of_run.drop()
        hint = (
            " (MLFLOW_RUN_ID is set: if it was made by `mlflow run`, give that an absolute tracking URI, "
            f"since a relative one is read here from {Path.cwd()})"
        )
        raise UnlearnError(f"no run can be started: {_first_reason(error)}{hint if resumed else ''}") from error
    run_id: str = active.info.run_id
    remember([active])
    note_of_run.add(run=run_id)
    if RUN_FILE_VARIABLE in os.environ:
        Path(os.environ[RUN_FILE_VARIABLE]).write_text(run_id)
    values = recorded_options(config)
    # For the run-context provider of plugins/mlflow_unlearn_plugins: it tags runs that start meanwhile with ours.
    with _ended(run_id, note_of_run) as left, _environment(MLFLOW_UNLEARN_RUN_ID=run_id):
        try:
            store.log_batch(  # at once, since on some servers each request takes its time
                run_id,
                [Metric("seconds.start", started, int(time.time() * 1000), 0)],
                # Whole in config.yaml; stores take some thousand characters of a param.
                [Param(f"unlearn.{key}", shortened(str(value))) for key, value in values.items()],
                [RunTag(key, str(value)) for key, value in {"unlearn.command": command, **system_facts()}.items()],
            )
            # Also the first write to the artifact store: if it is full or read-only, no training is lost.
            store_text(run_id, yaml.safe_dump({command: values}, sort_keys=False, allow_unicode=True), "config.yaml")
            yield run_id
        except AlreadyDone:
            raise
        except BaseException as error:
            raised = UnlearnError(_as_sentence(error)) if isinstance(error, FAILURES) else error
            if not isinstance(raised, Exception):
                sentence = "stopped by a signal"
            elif not isinstance(raised, UnlearnError | BrokenMethod):
                sentence = f"{type(raised).__name__}: {first_line(raised)}"
            else:
                sentence = recorded_reason(raised) if raised is error else str(raised)
            for uri in _tag_and_tidy(run_id, sentence, left):
                raised.add_note(f"{uri} was registered before that, and stays")
            if raised is error:
                raise
            raise raised from error


def _started(store: MlflowClient, own: RunNote, *, run_id: str | None = None, **options: Any) -> ActiveRun:
    """A new active run, or the one with this id; its tag is the name of its note."""
    start = partial(mlflow.start_run, tags={PROCESS_TAG: own.name}, **options)
    if run_id is not None:
        return persistently(partial(start, run_id=run_id))

    def created() -> ActiveRun | None:
        found = _tagged(store, own)
        return mlflow.start_run(run_id=found[0].info.run_id, nested=options.get("nested", False)) if found else None

    return once(start, created)


@contextmanager
def _ended(run_id: str, own: RunNote) -> Iterator[list[str]]:
    """When what is inside has ended, so does the active run: FINISHED, FAILED, or KILLED by Ctrl-C and SIGTERM.

    Its note goes then. What is left to be done, in the list that is
    yielded, is done by the next command, which finds the note.
    """
    status, left = "FINISHED", list[str]()
    try:
        yield left
    except AlreadyDone:
        raise
    except Exception:
        status = "FAILED"
        raise
    except BaseException:
        status = "KILLED"
        raise
    finally:
        try:
            try:
                mlflow.end_run(status)
            except FAILURES:  # for MLflow it is not active any more
                persistently(lambda: client().set_terminated(run_id, status))
        except FAILURES as error:
            left.append(f"it is still RUNNING ({first_line(error)})")
        if not left:
            own.drop()
        else:
            own.add(**({"ended": status} if status == "FINISHED" else {}))
            note(f"Note: of run {run_id}, {'; '.join(left)}: the next command on this machine takes care of it.")


def _settle_dead(store: MlflowClient, config: Command, name: str, settled: list[RunNote]) -> None:
    """Close the runs that our processes on this machine left RUNNING when they died; finish or undo their versions.

    Args:
        store: their tracking store.
        config: options of this command.
        name: of this command.
        settled: takes the notes of these runs.

    Raises:
        AlreadyDone: one of them was this very command, and its version is complete.
    """
    done = None
    for dead in [one for one in notes() if died(one.facts["process"])]:
        command, ended = dead.facts.get("command"), dead.facts.get("ended")
        try:
            runs = _runs_of(store, dead)
            version = settle(store, runs[0], dead) if runs and "name" in dead.facts else None
            for run in runs:
                if "run" in dead.facts and "name" not in dead.facts and command is not None:
                    take_back(store, run, dead)
                if run.info.status == "RUNNING":
                    if ended is None:
                        tag_error(run.info.run_id, "its process died")
                    store.set_terminated(run.info.run_id, ended or ("KILLED" if version is None else "FINISHED"))
                    if command is not None and version is None and ended is None:
                        note(f"Note: run {run.info.run_id} had died and is closed as KILLED.")
            unknown = command == name and ended is None  # to its user
            if version is not None and unknown and _same_options(store, dead, version, config):
                done = version
        except (MlflowException, UnlearnError, NoAnswer) as error:  # such as a permission that was taken away
            note(f"Note: a run of a process that died cannot be closed ({first_line(error)}).")
        else:
            settled.append(dead)
    if done is not None:
        for uri in {f"models:/{done.name}/{done.version}", done.tags.get("unlearn.source_uri", "")}:
            if (match := re.fullmatch("models:/([^/]+)/[0-9]+", uri)) is not None:
                take_down_ended(store, match.group(1))
        source = f" from {done.tags['unlearn.source_uri']}" if "unlearn.source_uri" in done.tags else ""
        raise AlreadyDone(
            f"Registered {done.name} version {done.version}{source}: this command had done so before it was killed, "
            f"in run {done.run_id}.",
            Registering(run_id=str(done.run_id), registered=registered_before(done)),
        )


def _runs_of(store: MlflowClient, dead: RunNote) -> list[Run]:
    """The run of a note; without an id, what was created in the moment before that was noted."""
    if "run" not in dead.facts:
        return _tagged(store, dead)
    try:
        return [store.get_run(dead.facts["run"])]
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return []


def _tagged(store: MlflowClient, own: RunNote) -> list[Run]:
    where = f"attributes.status = 'RUNNING' and tags.`{PROCESS_TAG}` = '{own.name}'"
    found: list[Run] = store.search_runs(experiment_ids(store), where)
    return found


def _same_options(store: MlflowClient, dead: RunNote, version: ModelVersion, config: Command) -> bool:
    """Whether the command that made ``version`` had the options of ``config``, and nothing more is to be done."""
    if dead.facts.get("options") != _digest(config):
        return False
    source = find_version(store, config.model_uri) if hasattr(config, "model_uri") else None
    if source is None:
        return True
    uri = f"models:/{source.name}/{source.version}"
    if version.tags.get("unlearn.source_uri", uri) != uri:  # the alias may have been moved since
        return False
    return getattr(config, "forget", None) is not None or not has_pending(source)  # filed since, perhaps


def _digest(config: Command) -> str:
    """Of the options, but for how it answers: by which a command knows itself."""
    return hashlib.sha256(config.model_dump_json(by_alias=True, exclude={"format"}).encode()).hexdigest()


@contextmanager
def read_only_client() -> Iterator[MlflowClient]:
    """For commands that make no run: a client, and a sentence in the place of errors of MLflow and the file system.

    Raises:
        UnlearnError: with that sentence.
    """
    with _sentences():
        yield connect()


def _first_reason(error: Exception) -> str:
    """What the database itself said, where MLflow and SQLAlchemy have put their own sentences around that."""
    found = error if isinstance(error, DBAPIError) else error.__cause__
    return first_line(found.orig if isinstance(found, DBAPIError) and found.orig is not None else error)


def _as_sentence(error: MlflowException | SQLAlchemyError | OSError | NoAnswer) -> str:
    if isinstance(error, NoAnswer):
        return f"the server did not answer, and nothing was decided ({error}): run the same command again"
    if isinstance(error, OSError):
        return f"a file cannot be read or written ({first_line(error)}): check space and permissions"
    if isinstance(error, SQLAlchemyError) or isinstance(error.__cause__, SQLAlchemyError):
        return f"the tracking store failed ({_first_reason(error)}): check its space and permissions, then start again"
    if error.error_code == "PERMISSION_DENIED" or "status code 403" in str(error).lower():
        user = os.environ.get("MLFLOW_TRACKING_USERNAME", "this user")
        return (
            f"the tracking server does not permit this to {user} ({first_line(error)}): ask for the permission on the "
            "model or the experiment, or name an experiment of your own with MLFLOW_EXPERIMENT_NAME"
        )
    return f"{type(error).__name__}: {first_line(error)}"


@contextmanager
def timed(phase: str) -> Iterator[None]:
    """Log the wall-clock time of the block as the metric ``seconds.<phase>``."""
    start = time.perf_counter()
    yield
    mlflow.log_metric(f"seconds.{phase}", time.perf_counter() - start)


@contextmanager
def nested_run(name: str, parent: str | None = None) -> Iterator[str]:
    """A run inside the command's run, or another ``parent``: yields its id.

    FINISHED after, FAILED with the sentence as a tag, or KILLED.
    """
    active = mlflow.active_run()
    own, store, created = RunNote.begin(), client(), None
    if parent is not None and active is not None and parent != active.info.run_id:
        # MLflow's own start_run refuses a parent that is not the active run.
        tags = {MLFLOW_PARENT_RUN_ID: parent, PROCESS_TAG: own.name}
        make = partial(store.create_run, active.info.experiment_id, tags=tags, run_name=name)
        created = once(make, lambda: next(iter(_tagged(store, own)), None)).info.run_id
    beside = None if active is None else active.info.experiment_id  # MLflow would take that of its environment
    run_id: str = _started(store, own, run_id=created, run_name=name, nested=True, experiment_id=beside).info.run_id
    own.add(run=run_id)
    with _ended(run_id, own):
        try:
            yield run_id
        except (UnlearnError, *FAILURES) as error:
            _tag_failed(run_id, recorded_reason(error))
            raise


@contextmanager
def _hidden_ids(hidden: bool) -> Iterator[None]:
    _hiding.append(hidden)
    try:
        yield
    finally:
        _hiding.pop()


def recorded_reason(error: Exception) -> str:
    """The sentence of an error as the running command may record it: it may list sample ids, which `hash_ids` hides."""
    hidden = _hiding and _hiding[-1] and not isinstance(error, FAILURES)
    return "the sentence was only printed, since ids are hashed here" if hidden else sentence_of(error)


def sentence_of(error: Exception) -> str:
    """An error of ours, of MLflow or of the file system as its user reads it."""
    return _as_sentence(error) if isinstance(error, FAILURES) else str(error)


def recorded_options(config: Command, *names: str) -> dict[str, Any]:
    """The options (or those named) as they are recorded: of a forget spec only its kind with ``hash_ids``."""
    values = config.model_dump(by_alias=True)
    if values.get("hash_ids") and values.get("forget"):
        values["forget"] = hidden_spec(values["forget"])
    if values.get("storage"):
        values["storage"] = hidden_password(values["storage"])
    return storable({name: values[name] for name in names or values})


def _tag_failed(run_id: str, sentence: str) -> None:
    """The first error is the one that counts: that it cannot be tagged is only noted."""
    try:
        persistently(partial(tag_error, run_id, sentence))
    except Exception as second:  # whatever the store raises
        note(f"Note: the error could not be tagged on run {run_id} ({first_line(second)}).")


def _tag_and_tidy(run_id: str, sentence: str, left: list[str]) -> list[str]:
    """Tag a failed or stopped run and take back what it left unfinished, or add to what is left; what is complete."""
    _tag_failed(run_id, sentence)
    own = of_run(run_id)
    try:
        return [] if own is None else persistently(lambda: take_back(client(), client().get_run(run_id), own))
    except Exception as second:  # whatever the store raises
        left.append(f"what it had begun to register is still there ({first_line(second)})")
        return []


def fail_lost_run(run_id: str) -> None:
    """Close the run of a command one of whose processes was killed, unless the command has closed it."""
    store = connect()
    if store.get_run(run_id).info.status == "RUNNING":
        tag_error(run_id, "a process of this command was killed")
        store.set_terminated(run_id, "FAILED")


def tag_error(run_id: str, sentence: str) -> None:
    """Leave the sentence of an error on its run."""
    MlflowClient().set_tag(run_id, ERROR_TAG, one_line(sentence))


@contextmanager
def scratch() -> Iterator[Path]:
    """A temporary folder of this command."""
    with tempfile.TemporaryDirectory(prefix="mlflow-unlearn-") as folder:
        yield Path(folder)
