"""The files of a case: read byte by byte from runs and versions, with the reason where one is missing."""

import hashlib
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from pydantic import ValidationError

from mlflow_unlearn.console import without_passwords
from mlflow_unlearn.evidence.record import Person
from mlflow_unlearn.governance.integrity import hidden
from mlflow_unlearn.parsing import load_json
from mlflow_unlearn.registry.versions import MANIFEST_FILE, fetched, read_artifact

_MODEL_FILES = ("MLmodel", f"extra_files/{MANIFEST_FILE}")
"""Of which a dossier names the digests: what the model is, and what it was trained on."""


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

    def edited(self, path: str) -> None:
        """Note of a file that it is not the record that it should be."""
        self.missing[path] = "it is there, and was edited: it is not such a record any more"


def why(where: str, error: BaseException) -> str:
    """Why a file is missing, in words that are the same on every machine."""
    return f"this user may not read {where}" if hidden(error) else f"it is not in {where} any more"


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
    """A mapping; empty for what is none."""
    try:
        found = load_json(content) if content is not None else None
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def text(value: object) -> str | None:
    """A text; None for what is none."""
    return value if isinstance(value, str) and value else None


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
