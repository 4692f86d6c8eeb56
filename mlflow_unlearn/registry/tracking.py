"""The MLflow run of a command: connection, options, system, and how it ends."""

import os
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlflow
import yaml
from mlflow.entities import Metric, Param, RunTag, ViewType
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from mlflow_unlearn.config import Command
from mlflow_unlearn.console import STARTED, first_line, hidden_password, without_passwords
from mlflow_unlearn.distributed.launch import RUN_FILE_VARIABLE
from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.registry.system import system_facts
from mlflow_unlearn.registry.uris import absolute_uri, hidden_spec

ERROR_TAG = "unlearn.error"
COMMAND_VARIABLE = "MLFLOW_UNLEARN_COMMAND"
"""In the environment while a command works."""

_TAG_LIMIT = 8000
PATIENCE = 25.0
"""Seconds in which a tracking store has to answer."""


def client() -> MlflowClient:
    """A client of the store that `run` has connected to."""
    return MlflowClient()


def registry(client: MlflowClient) -> Any:
    """The registry's own client: `MlflowClient` asks with a second request, each time, whether a name is a prompt's."""
    return getattr(client, "_get_registry_client", lambda: client)()


def experiment_ids(client: MlflowClient) -> list[str]:
    """Of all experiments that this user may read, deleted ones too: a search comes in pages."""
    found: list[str] = []
    token = None
    while True:
        page = client.search_experiments(view_type=ViewType.ALL, page_token=token)
        found += [experiment.experiment_id for experiment in page]
        if not (token := page.token):
            return found


def connect(patience: float = PATIENCE) -> MlflowClient:
    """A client whose store answers; relative SQLite URIs are made absolute for us and our children.

    Raises:
        UnlearnError: the store cannot be opened or reached; the message has its URI.
    """
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    # The check would ask the package index; the requirements that we log are explicit.
    os.environ.setdefault("MLFLOW_SKIP_PIP_REQUIREMENTS_CHECK", "true")
    uri = absolute_uri(mlflow.get_tracking_uri())
    os.environ["MLFLOW_TRACKING_URI"] = uri
    mlflow.set_tracking_uri(uri)
    if hidden_password(uri) != uri:
        # MLflow's "View run … at" at the end of each run would show it.
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    try:
        store = MlflowClient()
    except Exception as error:  # MLflow's, SQLAlchemy's, or a driver's that is not installed
        raise UnlearnError(
            f"the tracking store {hidden_password(uri)} cannot be opened ({first_line(error)}): set "
            "MLFLOW_TRACKING_URI to a server or a database, such as https://mlflow.example.com or sqlite:////data/mlflow.db"
        ) from error
    # MLflow itself retries for minutes, on servers and on databases: try once, with a short timeout.
    failures: list[Exception] = []

    def probe() -> None:
        try:
            store.search_experiments(max_results=1)
        except Exception as error:  # SQLAlchemy, requests and MLflow each raise their own.
            failures.append(error)

    asking = threading.Thread(target=probe, daemon=True)
    with _environment(MLFLOW_HTTP_REQUEST_MAX_RETRIES="1", MLFLOW_HTTP_REQUEST_TIMEOUT="10"):
        asking.start()
        asking.join(patience)
    if asking.is_alive() or failures:
        reason = first_line(failures[0]) if failures else f"no answer within {patience:g} seconds"
        raise UnlearnError(
            f"the tracking store {hidden_password(uri)} cannot be reached ({reason}): "
            "start it, or set MLFLOW_TRACKING_URI to one that runs"
        ) from (failures[0] if failures else None)
    return store


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


@contextmanager
def run(name: str, config: Command) -> Iterator[str]:
    """One MLflow run for one command: yields its id; FINISHED, FAILED with the sentence as a tag, or KILLED after.

    Under ``mlflow run`` this is the project's own run.

    Raises:
        UnlearnError: also in the place of errors of MLflow and of the file system.
    """
    connect()
    resumed = os.environ.get("MLFLOW_RUN_ID")  # start_run takes it out
    try:
        active = mlflow.start_run(run_name=name)
    except MlflowException as error:
        hint = (
            " (MLFLOW_RUN_ID is set: if it was made by `mlflow run`, give that an absolute tracking URI, "
            f"since a relative one is read here from {Path.cwd()})"
        )
        raise UnlearnError(f"no run can be started: {first_line(error)}{hint if resumed else ''}") from error
    run_id: str = active.info.run_id
    if RUN_FILE_VARIABLE in os.environ:
        Path(os.environ[RUN_FILE_VARIABLE]).write_text(run_id)
    values = recorded_options(config)
    # For the run-context provider of plugins/mlflow_unlearn_plugins: it tags runs that start meanwhile with ours.
    with active, _environment(**{"MLFLOW_UNLEARN_RUN_ID": run_id, COMMAND_VARIABLE: name}):
        try:
            client().log_batch(  # at once, since on some servers each request takes its time
                run_id,
                [Metric("seconds.start", time.monotonic() - STARTED, int(time.time() * 1000), 0)],
                [Param(f"unlearn.{key}", str(value)) for key, value in values.items()],
                [RunTag(key, value) for key, value in {"unlearn.command": name, **system_facts()}.items()],
            )
            # Also the first write to the artifact store: if it is full or read-only, no training is lost.
            mlflow.log_text(yaml.safe_dump({name: values}, sort_keys=False, allow_unicode=True), "config.yaml")
            yield run_id
        except UnlearnError as error:
            # The message may list sample ids.
            hidden = values.get("hash_ids") and "the sentence was only printed, since hash_ids is set"
            _tag_or_note(run_id, hidden or str(error), error)
            raise
        except (MlflowException, OSError) as error:
            sentence = _as_sentence(error)
            _tag_or_note(run_id, sentence, error)
            raise UnlearnError(sentence) from error
        except Exception as error:
            _tag_or_note(run_id, f"{type(error).__name__}: {first_line(error)}", error)
            raise
        except BaseException as error:
            # Ctrl-C and SIGTERM: MLflow itself would set FAILED.
            _tag_or_note(run_id, "stopped by a signal", error)
            mlflow.end_run("KILLED")
            raise


@contextmanager
def read_only_client() -> Iterator[MlflowClient]:
    """For commands that make no run: a client, and a sentence in the place of errors of MLflow and the file system.

    Raises:
        UnlearnError: with that sentence.
    """
    try:
        yield connect()
    except (MlflowException, OSError) as error:
        raise UnlearnError(_as_sentence(error)) from error


def _as_sentence(error: MlflowException | OSError) -> str:
    if isinstance(error, OSError):
        return f"a file cannot be read or written ({first_line(error)}): check space and permissions"
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
    existing: dict[str, str] = {}
    if parent is not None and active is not None and parent != active.info.run_id:
        # MLflow's own start_run refuses a parent that is not the active run.
        tags = {MLFLOW_PARENT_RUN_ID: parent}
        existing["run_id"] = client().create_run(active.info.experiment_id, tags=tags, run_name=name).info.run_id
    with mlflow.start_run(**existing, run_name=name, nested=True) as nested:
        run_id: str = nested.info.run_id
        try:
            yield run_id
        except BaseException as error:
            if isinstance(error, UnlearnError):
                tag_error(run_id, str(error))
            mlflow.end_run("FAILED" if isinstance(error, Exception) else "KILLED")
            raise


def recorded_options(config: Command, *names: str) -> dict[str, Any]:
    """The options (or those named) as they are recorded: of a forget spec only its kind with ``hash_ids``."""
    values = config.model_dump(by_alias=True)
    if values.get("hash_ids") and values.get("forget"):
        values["forget"] = hidden_spec(values["forget"])
    if values.get("storage"):
        values["storage"] = hidden_password(values["storage"])
    return {name: values[name] for name in names or values}


def _tag_or_note(run_id: str, sentence: str, error: BaseException) -> None:
    """Tag the run; where the store has failed too, the first error is still the one that counts."""
    try:
        tag_error(run_id, sentence)
    except Exception as second:  # Whatever the store raises.
        error.add_note(f"The run could not be tagged either: {second}")


def fail_lost_run(run_id: str) -> None:
    """Close the run of a command one of whose processes was killed, unless the command has closed it."""
    store = connect()
    if store.get_run(run_id).info.status == "RUNNING":
        tag_error(run_id, "a process of this command was killed")
        store.set_terminated(run_id, "FAILED")


def tag_error(run_id: str, sentence: str) -> None:
    """Leave the sentence of an error on its run."""
    MlflowClient().set_tag(run_id, ERROR_TAG, without_passwords(sentence)[:_TAG_LIMIT])


@contextmanager
def scratch() -> Iterator[Path]:
    """A temporary folder of this command."""
    with tempfile.TemporaryDirectory(prefix="mlflow-unlearn-") as folder:
        yield Path(folder)
