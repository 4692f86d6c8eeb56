"""The files of a case: read byte by byte from runs and versions, with the reason where one is missing."""

import hashlib
import json
from collections.abc import Callable
from contextlib import suppress
from typing import Any
from urllib.parse import quote

from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from pydantic import BaseModel, ConfigDict, ValidationError

from mlflow_unlearn.console import without_passwords
from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.evidence.record import Person
from mlflow_unlearn.governance.integrity import hidden
from mlflow_unlearn.parsing import load_json
from mlflow_unlearn.registry.forget_requests import TAG, ForgetRequest
from mlflow_unlearn.registry.versions import MANIFEST_FILE, fetched, read_artifact
from mlflow_unlearn.registry.walk import uri_of

_MODEL_FILES = ("MLmodel", f"extra_files/{MANIFEST_FILE}")
"""Of which a dossier names the digests: what the model is, and what it was trained on."""


class _Read(BaseModel):
    """Of a record that anybody may have written: what is read of it, by its types."""

    model_config = ConfigDict(strict=True)


class FiledRecord(_Read):
    """``request.json``."""

    of: str
    filed: str | None = None
    samples: int
    requester: str | None = None
    reason: str | None = None
    due: str | None = None
    case: str | None = None
    source_sha256: str | None = None


class PromotionFile(_Read):
    """``promotion.json``."""

    at: str
    by: str
    override: str | None = None


class RetirementFile(_Read):
    """``retirement.json``."""

    at: str
    by: str
    versions: list[str]
    done: bool
    reason: str | None = None


class CaseFiles:
    """What was found and what was not, by path in a dossier."""

    def __init__(self) -> None:
        """Nothing yet."""
        self.files: dict[str, bytes] = {}
        self.missing: dict[str, str] = {}

    def add(self, path: str, where: str, read: Callable[[], bytes]) -> bytes | None:
        """One file, byte by byte, or why it is not there."""
        try:
            content = read()
        except (MlflowException, OSError) as error:
            self.missing[path] = why(where, error)
            return None
        text = content.decode("utf-8", "replace")
        if without_passwords(text) != text:
            self.missing[path] = f"it holds a password, and stays in {where}"
            return None
        self.files[path] = content
        return content

    def artifact(self, path: str, run_id: str, name: str) -> bytes | None:
        """One file of a run, likewise."""
        return self.add(path, f"run {run_id}", lambda: read_artifact(run_id, name))

    def record(self, path: str, run_id: str, name: str, shape: type[_Read]) -> dict[str, Any]:
        """A record of a run, with what it has besides; empty where it is missing, or is not such a record.

        Args:
            path: in the dossier.
            run_id: of the run.
            name: of its file.
            shape: of the record.
        """
        self.missing.pop(path, None)
        content = self.artifact(path, run_id, name)
        found = mapping(content)
        try:
            shape.model_validate(found)
        except ValidationError:
            if content is not None:
                self.edited(path)
            return {}
        return found

    def edited(self, path: str) -> None:
        """Note of a file that it is not the record that it should be."""
        self.missing[path] = "it is there, and was edited: it is no longer such a record"


def why(where: str, error: BaseException) -> str:
    """Why a file is missing, in words that are the same on every machine."""
    return f"this user may not read {where}" if hidden(error) else f"it is no longer in {where}"


def model_digests(uri: str) -> dict[str, str]:
    """Digests of some files of a version as it is stored now; those that cannot be read are left out."""
    digests = {}
    for name in _MODEL_FILES:
        try:
            with fetched(f"{uri}/{name}") as path:
                digests[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        except (MlflowException, OSError):  # another tool's version has no manifest, a deleted one nothing
            continue
    return digests


def folder_of(uri: str) -> str:
    """Where a dossier has what belongs to a version."""
    name, _, version = uri.removeprefix("models:/").rpartition("/")
    return f"versions/{component(name)}-{component(version)}"


def component(text: str) -> str:
    """A text as one name in a path, on every system: not of dots alone, nor too long."""
    safe = quote(text, safe="").replace(".", "%2E").replace("~", "%7E").replace("*", "%2A")
    return safe if len(safe) <= 80 else f"{safe[:60]}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def mapping(content: str | bytes | None) -> dict[str, Any]:
    """A mapping; empty for what is none, or has text that no file can have."""
    try:
        found = load_json(content) if content is not None else None
        json.dumps(found, ensure_ascii=False).encode()  # half a character is written as an escape
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def person(value: object) -> str:
    """The name of a person, as a record has it."""
    try:
        return Person.model_validate(value).display_name()
    except ValidationError:
        return "not recorded"


def command_of(client: MlflowClient, run_id: str) -> str | None:
    """Which command a run is of; None where it is gone, or hidden, which is said of its files."""
    try:
        return str(client.get_run(run_id).data.tags.get("unlearn.command", ""))
    except MlflowException:
        return None


def as_tagged(client: MlflowClient, request_id: str) -> ForgetRequest | None:
    """A request as the version that it is about has it; None where there is no such tag, or none that can be read."""
    key = TAG + request_id
    for version in client.search_model_versions(f"tags.`{key}` LIKE '%'"):
        with suppress(UnlearnError):  # it was edited, which the check of a dossier finds
            request = ForgetRequest.from_tag(key, version.tags[key])
            if request.of == uri_of(version):  # else it is a copy
                return request
    return None
