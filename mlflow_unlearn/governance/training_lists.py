"""The list of training ids of each version: which one counts, and that it is in the index."""

import hashlib
import sqlite3
import tempfile
from pathlib import Path
from typing import Protocol

import mlflow
from mlflow.entities import LoggedModel
from mlflow.exceptions import MlflowException

from mlflow_unlearn.console import first_line
from mlflow_unlearn.data.manifest import Manifest
from mlflow_unlearn.data.spec import without_options
from mlflow_unlearn.errors import NoAnswer, UnlearnError
from mlflow_unlearn.governance.location import Location
from mlflow_unlearn.governance.manifest_index import ManifestIndex, Read
from mlflow_unlearn.governance.model_folder import MLMODEL
from mlflow_unlearn.registry.artifacts import stored_file
from mlflow_unlearn.registry.versions import (
    MANIFEST_FILE,
    MANIFEST_PATH,
    METADATA_KEY,
    Record,
    TrainedOn,
    artifact,
    fetched,
    read_mlmodel,
    trained_on,
)
from mlflow_unlearn.registry.walk import Registry

SUPPLY = "record what it was trained on with `manifest`"
_NO_LIST = f"what it was trained on was never recorded: {SUPPLY}"


class Entry(Protocol):
    """A version, or a LoggedModel."""

    @property
    def uri(self) -> str:
        """Of it."""

    @property
    def registered(self) -> object:
        """As the registry has it."""

    @property
    def model_id(self) -> str | None:
        """Of the LoggedModel with its files."""

    @property
    def location(self) -> Location:
        """Where these lie."""


class TrainingLists:
    """Read once each; nothing more is asked of a store that does not answer.

    A list that came with a model counts before one that `manifest` has recorded. The tag of a version of ours says
    which list came with it, and is believed where that list was read before: `verify` holds the tag against the files.

    Attributes:
        away: the stores that do not answer, and why; the tracking server by an empty name.
    """

    def __init__(self, registry: Registry, index: ManifestIndex) -> None:
        """Read nothing yet."""
        self.away = {"": registry.unanswered} if registry.unanswered is not None else {}
        self._registry, self._index = registry, index
        self._store = hashlib.sha256(mlflow.get_tracking_uri().encode()).hexdigest()[:12]
        self._found: dict[str, TrainedOn | str] = {}

    def of(self, entry: Entry) -> TrainedOn | str:
        """The list of a version, which is in the index then; why there is none, in words."""
        if entry.uri not in self._found:
            self._found[entry.uri] = self._read(entry)
        return self._found[entry.uri]

    def _read(self, entry: Entry) -> TrainedOn | str:
        model = self._registry.by_model_id.get(entry.model_id or "")
        told = trained_on(entry.registered.tags)  # type: ignore[attr-defined]
        store = entry.location.store if model is not None else ""
        try:
            if told is None or told.run_id is not None:
                told = self._of_its_files(entry, model, store) or told
            if told is None:
                return _NO_LIST
            if self._index.samples(told.list_key) is None:
                self.ask(store)
                self._fetch(told, f"{entry.uri}/", model)
            return told
        except NoAnswer as error:
            self.away.setdefault(store, str(error))
            return "the server did not answer"
        except UnlearnError as error:
            return str(error)
        except sqlite3.Error:
            raise
        except Exception as error:  # whatever a store's driver raises: it hides no other version
            return f"its files cannot be read ({first_line(error)})"

    def _of_its_files(self, entry: Entry, model: LoggedModel | None, store: str) -> TrainedOn | None:
        """What its own files say, whose tags say nothing."""
        key, files = self._key(entry), f"{entry.uri}/"
        found = self._index.read(key)
        listed = found is not None and found.digest is not None
        if found is None or (listed and self._index.samples(_trained_on(found).list_key) is None):
            self.ask(store)
            found = self._read_files(files, model)
            self._index.remember(key, found)
        return _trained_on(found) if found.digest is not None else None

    def _read_files(self, files: str, model: LoggedModel | None) -> Read:
        """Its list; that it has none is believed where its MLmodel can be read.

        Raises:
            UnlearnError: its files cannot be read.
        """
        try:
            manifest = _stored_manifest(files, model)
        except (MlflowException, OSError) as error:
            try:
                _metadata(files, model)
            except (MlflowException, OSError, ValueError):
                raise UnlearnError(f"its files cannot be read ({first_line(error)})") from error
            return Read(None)
        self._index.add(manifest)
        source = _recorded_source(files, model)
        about = (source.source, source.source_sha256) if source is not None else (None, None)
        return Read(manifest.digest, manifest.salt, *about)

    def _fetch(self, told: TrainedOn, files: str, model: LoggedModel | None) -> None:
        """Read the list that a tag names.

        Raises:
            UnlearnError: it is not there, or is another one.
        """
        try:
            if told.run_id is not None:
                with artifact(told.run_id, MANIFEST_PATH) as path:
                    manifest = Manifest.from_csv(path)
            else:
                manifest = _stored_manifest(files, model)
        except (MlflowException, OSError) as error:
            raise UnlearnError(f"its list of training ids cannot be read ({first_line(error)})") from error
        if manifest.list_key != told.list_key:
            raise UnlearnError("its list of training ids is not the one that its tag names: see `verify`")
        self._index.add(manifest)

    def _key(self, entry: Entry) -> str:
        """Of what was read of a model, in the index of all stores."""
        if entry.uri.count("/") == 1:
            return f"{self._store} {entry.model_id}"
        version = entry.registered
        return f"{self._store} {version.name}/{version.version}/{version.creation_timestamp}"  # type: ignore[attr-defined]

    def ask(self, store: str = "") -> None:
        """Before a request.

        Raises:
            NoAnswer: that store did not answer before.
        """
        if store in self.away:
            raise NoAnswer(self.away[store])


def own_manifest(uri: str) -> Manifest | None:
    """The list that came with a version; None where none did.

    Raises:
        UnlearnError: its files cannot be read.
    """
    try:
        return _stored_manifest(f"{uri}/", None)
    except (MlflowException, OSError) as error:
        try:
            _metadata(f"{uri}/", None)
        except (MlflowException, OSError, ValueError):
            raise UnlearnError(f"the files of {uri} cannot be read ({first_line(error)})") from error
        return None


def _trained_on(found: Read) -> TrainedOn:
    return TrainedOn(
        samples=0,
        source=found.source or "",
        source_sha256=found.source_sha256 or "",
        manifest_sha256=found.digest or "",
        salt=found.salt,
    )


def _stored_manifest(files: str, model: LoggedModel | None) -> Manifest:
    """The list in a model's files: in one request, where it is known where they lie."""
    path = f"extra_files/{MANIFEST_FILE}"
    if model is None:
        with fetched(f"{files}{path}") as local:
            return Manifest.from_csv(local)
    with tempfile.TemporaryDirectory(prefix="mlflow-unlearn-") as folder:
        return Manifest.from_csv(stored_file(model.artifact_location, path, Path(folder)))


def _metadata(files: str, model: LoggedModel | None) -> dict[str, object]:
    """Of the MLmodel."""
    if model is None:
        with fetched(f"{files}{MLMODEL}") as path:
            return read_mlmodel(path).metadata or {}
    with tempfile.TemporaryDirectory(prefix="mlflow-unlearn-") as folder:
        return read_mlmodel(stored_file(model.artifact_location, MLMODEL, Path(folder))).metadata or {}


def _recorded_source(files: str, model: LoggedModel | None) -> TrainedOn | None:
    """The data source of an earlier release's version, by its MLmodel."""
    try:
        record = Record.model_validate(_metadata(files, model)[METADATA_KEY])
    except (MlflowException, OSError, KeyError, TypeError, ValueError):
        return None
    if record.trained_on is not None:
        return record.trained_on
    return TrainedOn(samples=0, source=without_options(record.data), source_sha256="", manifest_sha256="", salt=None)
