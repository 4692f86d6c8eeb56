"""The MLflow run of a command: connection, parameters, system facts, inputs, and how it ends."""

import importlib.metadata
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlflow
import yaml
from mlflow.data.dataset_source import DatasetSource
from mlflow.data.meta_dataset import MetaDataset
from mlflow.entities import LoggedModelInput
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from mlflow_unlearn import STARTED
from mlflow_unlearn.config import Command
from mlflow_unlearn.errors import UnlearnError, without_passwords
from mlflow_unlearn.errors import hidden_password as hidden_password
from mlflow_unlearn.launch import RUN_FILE_VARIABLE

ERROR_TAG = "unlearn.error"
_PACKAGES = ("mlflow-unlearn", "mlflow", "torch", "torchvision", "timm", "numpy", "scikit-learn", "optuna")
_TAG_LIMIT = 8000
_PATIENCE_SECONDS = 25


def client() -> MlflowClient:
    """A client of the store that `run` has connected to."""
    return MlflowClient()


def connect() -> MlflowClient:
    """A client whose store answers; relative SQLite URIs are made absolute for us and our children.

    Raises:
        UnlearnError: the store cannot be reached; says its URI.
    """
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    # The check would ask the package index; the requirements that we log are explicit.
    os.environ.setdefault("MLFLOW_SKIP_PIP_REQUIREMENTS_CHECK", "true")
    uri = absolute_uri(mlflow.get_tracking_uri())
    os.environ["MLFLOW_TRACKING_URI"] = uri
    mlflow.set_tracking_uri(uri)
    if hidden_password(uri) != uri:
        # MLflow's "View run … at" at the end of each run would tell it.
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    try:
        store = MlflowClient()
    except Exception as error:  # MLflow's, SQLAlchemy's, or a driver's that is not installed
        raise UnlearnError(
            f"the tracking store {hidden_password(uri)} cannot be opened ({_first_line(error)}): set "
            "MLFLOW_TRACKING_URI to a server or a database, such as https://mlflow.example.com or sqlite:////data/mlflow.db"
        ) from error
    # MLflow's own patience is minutes, for servers and for databases: ask once, briefly, and wait no longer.
    brief = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
    before = {name: os.environ.get(name) for name in brief}
    os.environ.update(brief)
    failures: list[Exception] = []

    def probe() -> None:
        try:
            store.search_experiments(max_results=1)
        except Exception as error:  # SQLAlchemy, requests and MLflow each raise their own.
            failures.append(error)

    asking = threading.Thread(target=probe, daemon=True)
    try:
        asking.start()
        asking.join(_PATIENCE_SECONDS)
        if asking.is_alive() or failures:
            reason = _first_line(failures[0]) if failures else f"no answer within {_PATIENCE_SECONDS} seconds"
            raise UnlearnError(
                f"the tracking store {hidden_password(uri)} cannot be reached ({reason}): "
                "start it, or set MLFLOW_TRACKING_URI to one that runs"
            ) from (failures[0] if failures else None)
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
        os.environ.update({name: value for name, value in before.items() if value is not None})
    return store


def absolute_uri(uri: str) -> str:
    """``sqlite:///relative.db`` made absolute against the working directory; everything else as it is.

    >>> absolute_uri("sqlite:////data/mlflow.db")
    'sqlite:////data/mlflow.db'
    """
    prefix = "sqlite:///"
    path = uri.removeprefix(prefix)
    if not uri.startswith(prefix) or path in ("", ":memory:") or Path(path).is_absolute():
        return uri
    return prefix + str(Path(path).resolve())


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
        hint = ""
        if resumed:
            hint = (
                " (MLFLOW_RUN_ID is set: if it was made by `mlflow run`, give that an absolute tracking URI, "
                f"since a relative one is read here from {Path.cwd()})"
            )
        raise UnlearnError(f"no run can be started: {_first_line(error)}{hint}") from error
    run_id: str = active.info.run_id
    if RUN_FILE_VARIABLE in os.environ:
        Path(os.environ[RUN_FILE_VARIABLE]).write_text(run_id)
    values = recorded_options(config)
    with active, _told_to_plugins(run_id, name):
        try:
            mlflow.set_tags({"unlearn.command": name, **system_facts()})
            mlflow.log_params({f"unlearn.{key}": value for key, value in values.items()})
            # Also the first write to the artifact store: if it is full or read-only, no training is lost.
            mlflow.log_text(yaml.safe_dump({name: values}, sort_keys=False, allow_unicode=True), "config.yaml")
            mlflow.log_metric("seconds.start", time.monotonic() - STARTED)
            yield run_id
        except UnlearnError as error:
            # Such a sentence may list sample ids.
            hidden = values.get("hash_ids") and "the sentence was only printed, since hash_ids is set"
            _tag_or_note(run_id, hidden or str(error), error)
            raise
        except (MlflowException, OSError) as error:
            sentence = _as_sentence(error)
            _tag_or_note(run_id, sentence, error)
            raise UnlearnError(sentence) from error
        except Exception as error:
            _tag_or_note(run_id, f"{type(error).__name__}: {_first_line(error)}", error)
            raise
        except BaseException as error:
            # Ctrl-C and SIGTERM: MLflow itself would say FAILED.
            _tag_or_note(run_id, "stopped by a signal", error)
            mlflow.end_run("KILLED")
            raise


@contextmanager
def _told_to_plugins(run_id: str, command: str) -> Iterator[None]:
    """For the run-context provider of plugins/mlflow_unlearn_plugins: runs started meanwhile are tagged with ours."""
    told = {"MLFLOW_UNLEARN_RUN_ID": run_id, "MLFLOW_UNLEARN_COMMAND": command}
    os.environ.update(told)
    try:
        yield
    finally:
        for name in told:
            os.environ.pop(name, None)


@contextmanager
def looking() -> Iterator[MlflowClient]:
    """For commands that make no run: a client, and a sentence in the place of errors of MLflow and the file system."""
    try:
        yield connect()
    except (MlflowException, OSError) as error:
        raise UnlearnError(_as_sentence(error)) from error


def _as_sentence(error: MlflowException | OSError) -> str:
    if isinstance(error, OSError):
        return f"a file cannot be read or written ({_first_line(error)}): check space and permissions"
    if error.error_code == "PERMISSION_DENIED" or "status code 403" in str(error).lower():
        user = os.environ.get("MLFLOW_TRACKING_USERNAME", "this user")
        return (
            f"the tracking server does not permit this to {user} ({_first_line(error)}): ask for the permission on the "
            "model or the experiment, or name an experiment of your own with MLFLOW_EXPERIMENT_NAME"
        )
    return f"{type(error).__name__}: {_first_line(error)}"


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
    known: dict[str, str] = {}
    if parent is not None and active is not None and parent != active.info.run_id:
        # MLflow's own start_run refuses a parent that is not the active run.
        tags = {MLFLOW_PARENT_RUN_ID: parent}
        known["run_id"] = client().create_run(active.info.experiment_id, tags=tags, run_name=name).info.run_id
    with mlflow.start_run(**known, run_name=name, nested=True) as nested:
        run_id: str = nested.info.run_id
        try:
            yield run_id
        except BaseException as error:
            if isinstance(error, UnlearnError):
                tag_error(run_id, str(error))
            mlflow.end_run("FAILED" if isinstance(error, Exception) else "KILLED")
            raise


def recorded_options(config: Command, *names: str) -> dict[str, Any]:
    """The options (or those named) as they are recorded: with ``hash_ids`` a forget spec is told by its kind alone."""
    values = config.model_dump(by_alias=True)
    if values.get("hash_ids") and values.get("forget"):
        values["forget"] = hidden_spec(values["forget"])
    if values.get("storage"):
        values["storage"] = hidden_password(values["storage"])
    return {name: values[name] for name in names or values}


def hidden_spec(spec: str) -> str:
    """What may be told of a forget spec whose ids are to be hidden.

    >>> hidden_spec("group:patient=17"), hidden_spec("ids.csv")
    ('group:…', 'file')
    """
    scheme, colon, _ = spec.partition(":")
    return f"{scheme}:…" if colon and scheme in ("random", "request", "class", "group") else "file"


def _tag_or_note(run_id: str, sentence: str, error: BaseException) -> None:
    """Tag the run; where the store has failed too, the first error is still the one that counts."""
    try:
        tag_error(run_id, sentence)
    except Exception as second:  # Whatever the store raises.
        error.add_note(f"The run could not be tagged either: {second}")


def tag_error(run_id: str, sentence: str) -> None:
    """Leave the sentence of an error on its run."""
    MlflowClient().set_tag(run_id, ERROR_TAG, without_passwords(sentence)[:_TAG_LIMIT])


def system_facts() -> dict[str, str]:
    """What a rerun would need to know: versions, processor, threads, and the commit of this code."""
    facts = {
        "unlearn.system.python": platform.python_version(),
        "unlearn.system.platform": platform.platform(),
        "unlearn.system.host": platform.node(),
        "unlearn.system.pid": str(os.getpid()),
    }
    # Who only decides about a version has not loaded it, and has no threads.
    if (torch := sys.modules.get("torch")) is not None:
        facts["unlearn.system.threads"] = str(torch.get_num_threads())
        cuda = torch.cuda.is_available()
        facts["unlearn.system.accelerator"] = torch.cuda.get_device_name(0) if cuda else "none"
    for package in _PACKAGES:
        try:
            facts[f"unlearn.system.{package}"] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            # Under conda the project runs from its folder and is not installed.
            facts[f"unlearn.system.{package}"] = "not installed"
    commit, dirty = code_commit()
    return {**facts, "unlearn.git.commit": commit, "unlearn.git.dirty": dirty}


def code_commit() -> tuple[str, str]:
    """Commit of the checkout that this package runs from and whether it has changes, or "unknown" twice."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-C", str(here), *arguments], capture_output=True, text=True, check=True).stdout

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)
        return git("rev-parse", "HEAD").strip(), str(bool(git("status", "--porcelain").strip())).lower()
    except (OSError, subprocess.CalledProcessError):
        # No git here, or an installed package, whose version is among the facts.
        return "unknown", "unknown"


class ManifestSource(DatasetSource):  # type: ignore[misc]
    """Names a data source in MLflow's dataset inputs; it is never loaded from there."""

    def __init__(self, spec: str) -> None:
        """Keep the source's spec string."""
        self._spec = spec

    @staticmethod
    def _get_source_type() -> str:
        return "mlflow_unlearn"

    def load(self) -> Any:
        """The source itself, by its spec."""
        from mlflow_unlearn.data.sources import load_source

        return load_source(self._spec)

    @staticmethod
    def _can_resolve(raw_source: Any) -> bool:
        return False

    @classmethod
    def _resolve(cls, raw_source: Any) -> "ManifestSource":
        raise NotImplementedError("a manifest is logged by mlflow-unlearn, never resolved from a raw source")

    def to_dict(self) -> dict[str, Any]:
        """What MLflow stores."""
        return {"spec": self._spec}

    @classmethod
    def from_dict(cls, source_dict: Mapping[str, Any]) -> "ManifestSource":
        """The inverse of `to_dict`."""
        return cls(source_dict["spec"])


def log_manifests(spec: str, digests: Mapping[str, str], counts: Mapping[str, int]) -> None:
    """The sets of a run as dataset inputs: context ``forget``, ``retain``, … with digest and size, never with names."""
    datasets = [
        MetaDataset(ManifestSource(spec), name=f"{role} ({counts[role]} samples)", digest=digest[:36])
        for role, digest in digests.items()
    ]
    for last in (False, False, True):
        try:
            mlflow.log_inputs(datasets, contexts=list(digests), tags_list=[None] * len(datasets))
            return
        except MlflowException:
            # MLflow keeps one row for each set of an experiment, and looks before it inserts: another command that does
            # so at the same moment makes the insertion fail, and the row is there the next time.
            if last:
                raise


def log_source_model(client: MlflowClient, run_id: str, model_id: str | None) -> None:
    """The source version's LoggedModel as an input of the run: the first of three places of lineage."""
    if model_id is not None:
        client.log_inputs(run_id, models=[LoggedModelInput(model_id=model_id)])


@contextmanager
def scratch() -> Iterator[Path]:
    """A temporary folder of this command."""
    with tempfile.TemporaryDirectory(prefix="mlflow-unlearn-") as folder:
        yield Path(folder)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    # The HTTP client's sentences hold its whole stack of objects; half a password would not be known as one.
    return without_passwords(lines[0])[:200] if lines else type(error).__name__
