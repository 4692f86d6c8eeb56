"""How a version of another tool is read: what a request was given once is kept on the version, as a tag.

A version of ours records it in its own files, which go before the tag.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path

import mlflow
import platformdirs
from mlflow.tracking import MlflowClient
from pydantic import BaseModel, ConfigDict, ValidationError

from mlflow_unlearn.console import first_line, note, storable
from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.parsing import load_json
from mlflow_unlearn.registry.clients import registry_client
from mlflow_unlearn.registry.lock import model_lock

INPUTS_TAG = "unlearn.inputs"
"""Of a version without a record: `Inputs` as JSON."""


class Inputs(BaseModel):
    """How a version and its data are read; None: not known.

    Attributes:
        data: spec of the data source, its paths absolute.
        architecture: rebuilds the module of a version in pt2 format.
        transform: spec of the input transform.
        classes: names in the order of the outputs.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: str | None = None
    architecture: str | None = None
    transform: str | None = None
    classes: tuple[str, ...] | None = None

    @property
    def to_confirm(self) -> dict[str, str]:
        """Which of them run code or read files of this machine when they are used: field → spec."""
        found = {}
        if self.transform is not None and self.transform.startswith("python:"):
            found["transform"] = self.transform
        if self.data is not None and not re.fullmatch("digits(,(seed|train)=[^,/]*)*", self.data):
            found["data"] = self.data
        # Not asked of the engine, since commands that load no model would wait for torch.
        if ":" in (self.architecture or "") and not str(self.architecture).startswith(("timm:", "torchvision:")):
            found["architecture"] = str(self.architecture)
        return found

    def over(self, other: "Inputs") -> "Inputs":
        """These, and the other's where these are not known."""
        return Inputs(**{**other.model_dump(exclude_none=True), **self.model_dump(exclude_none=True)})


def kept_inputs(uri: str, tags: Mapping[str, str]) -> tuple[Inputs, Inputs]:
    """What the tag of a version says, and what of it is code or a file that nobody has named on this machine.

    Whoever may tag a version could name any function or file there: it is not used before a user has named it, too.

    Raises:
        UnlearnError: the tag was edited.
    """
    kept = _read(uri, tags)
    unconfirmed = {name: spec for name, spec in kept.to_confirm.items() if not _mark(uri, name, spec).exists()}
    return kept.model_copy(update=dict.fromkeys(unconfirmed)), Inputs(**unconfirmed)


def _read(uri: str, tags: Mapping[str, str]) -> Inputs:
    """What the tag says.

    Raises:
        UnlearnError: it was edited.
    """
    if INPUTS_TAG not in tags:
        return Inputs()
    try:
        return Inputs.model_validate(load_json(tags[INPUTS_TAG]))
    except ValueError as error:  # pydantic's as well
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else first_line(error)
        raise UnlearnError(f"the tag {INPUTS_TAG} of {uri} was edited ({reason}): correct it, or remove it") from error


def keep_inputs(client: MlflowClient, name: str, version: str, given: Inputs) -> Inputs:
    """Keep on a version what is given, and what was before of all that is not; code and files may be used from now on.

    Args:
        client: of the registry.
        name: of the registered model.
        version: its number.
        given: checked.

    Returns:
        What is kept now, as far as it may be used here.

    Raises:
        UnlearnError: the tag was edited.
    """
    uri = f"models:/{name}/{version}"
    for field, spec in given.to_confirm.items():
        mark = _mark(uri, field, spec)
        try:
            mark.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            mark.touch()
        except OSError as error:
            note(f"Note: {str(mark.parent)!r} cannot be written ({first_line(error)}): {spec} has to be given again.")
    with model_lock(client, name):
        tags = client.get_model_version(name, version).tags
        before = _read(uri, tags)
        for field, value in given.model_dump(exclude_none=True).items():
            if (old := getattr(before, field)) not in (None, value):
                note(f"Note: {uri} was read with the {field} {_shown(old)}, and is from now on with {_shown(value)}.")
        text = json.dumps(storable(given.over(before).model_dump(mode="json", exclude_none=True)))
        if tags.get(INPUTS_TAG, "{}") != text:
            registry_client(client).set_model_version_tag(name, version, INPUTS_TAG, text)
    return kept_inputs(uri, {INPUTS_TAG: text})[0]


def _shown(value: object) -> str:
    return ",".join(value) if isinstance(value, tuple) else str(value)


def _mark(uri: str, field: str, spec: str) -> Path:
    """The file that says that this user has named this code for this version."""
    what = json.dumps([mlflow.get_registry_uri(), uri, field, spec])
    return platformdirs.user_state_path("mlflow-unlearn") / "inputs" / hashlib.sha256(what.encode()).hexdigest()
