"""What lies at a version's location: a model that MLflow saved and nothing else is what may be deleted there."""

import posixpath
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from mlflow_unlearn.console import first_line
from mlflow_unlearn.errors import NoAnswer, UnlearnError
from mlflow_unlearn.evidence.record import FOLDER
from mlflow_unlearn.governance.location import Location
from mlflow_unlearn.parsing import load_yaml
from mlflow_unlearn.registry.network import persistently
from mlflow_unlearn.registry.versions import METADATA_KEY, can_be_read

MLMODEL = "MLmodel"
_UNNAMED = (
    # What MLflow writes beside a model of any flavor, and of transformers; and the evidence. What a flavor's own files
    # are called, such as data, code and extra_files, the MLmodel says.
    *(MLMODEL, "conda.yaml", "python_env.yaml", "requirements.txt", "constraints.txt", "original_requirements.txt"),
    *("input_example*", "serving_input_example.json", "environment_variables.txt", "registered_model_meta"),
    *("uv.lock", "pyproject.toml", ".python-version", "wheels"),
    *("components", "processor", "model_card.md", "model_card_data.yaml", "LICENSE.txt"),
    FOLDER,
)
"""Patterns of names at the top of a model's folder that its MLmodel need not name."""


@dataclass(frozen=True)
class ModelFolder:
    """What lies at a location.

    Attributes:
        entries: names at its top.
        is_model: whether one of them is a file MLmodel.
        foreign: those that are no part of that model; without it, all of them.
        model_id: the LoggedModel that the MLmodel names, whether there is one or not.
        record: what our MLmodel records of itself, as it is stored; None of others.
    """

    entries: tuple[str, ...]
    is_model: bool
    foreign: tuple[str, ...]
    model_id: str | None = None
    record: Any = None


def entries_at(location: Location) -> tuple[str, ...]:
    """Names at the top of a folder: none where it is gone, or is a file.

    Raises:
        UnlearnError: its store does not tell.
    """
    return tuple(_listed(location))


def is_gone(uri: str, location: Location) -> bool:
    """Whether nothing is left of a version's files; False where that cannot be known."""
    if location.doubt:
        return not can_be_read(uri)
    try:
        return not entries_at(location)
    except UnlearnError:
        return False


def model_folder(location: Location) -> ModelFolder:
    """What lies at a location, by its own list and by its MLmodel.

    Raises:
        UnlearnError: its store does not tell, or the MLmodel cannot be read.
    """
    listed = _listed(location)
    entries = tuple(listed)
    if listed.get(MLMODEL) is not False:
        return ModelFolder(entries, False, entries)
    try:
        with tempfile.TemporaryDirectory(prefix="mlflow-unlearn-") as folder:
            repository = get_artifact_repository(location.uri)
            content = load_yaml(Path(persistently(lambda: repository.download_artifacts(MLMODEL, folder))).read_bytes())
        if not (isinstance(content, dict) and isinstance(content.get("flavors"), dict)):
            raise ValueError("it names no flavors")
    except (MlflowException, OSError, ValueError) as error:
        raise UnlearnError(f"the MLmodel at {location.uri} cannot be read ({first_line(error)}): restore it") from error
    names = set(_first_names([content["flavors"], content.get("saved_input_example_info")]))
    foreign = (each for each in entries if each not in names and not any(fnmatchcase(each, p) for p in _UNNAMED))
    metadata = content.get("metadata")
    record = metadata.get(METADATA_KEY) if isinstance(metadata, dict) else None
    return ModelFolder(entries, True, tuple(foreign), str(content.get("model_id")), record)


def _listed(location: Location) -> dict[str, bool]:
    """Name → whether it is a folder."""
    try:
        found = persistently(lambda: get_artifact_repository(location.uri).list_artifacts())
    except NoAnswer:
        raise
    except Exception as error:  # a store's client raises whatever it likes, also that it is not installed
        if getattr(error, "error_code", "") == "RESOURCE_DOES_NOT_EXIST":
            return {}
        raise UnlearnError(f"what lies at {location.uri} cannot be listed ({first_line(error)})") from error
    return {str(entry.path).strip("/"): bool(entry.is_dir) for entry in found}


def _first_names(value: Any) -> Iterator[str]:
    """Where the paths in a part of an MLmodel begin; what is no path names nothing that is there."""
    if isinstance(value, str):
        yield posixpath.normpath(value).partition("/")[0]
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _first_names(inner)
