"""`retire`: remove a version's files for good, in an order in which nothing that is served is ever touched."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import mlflow
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.tracking import MlflowClient
from mlflow.utils.file_utils import local_file_uri_to_path

from mlflow_unlearn import config
from mlflow_unlearn.console import first_line
from mlflow_unlearn.errors import Refused, UnlearnError
from mlflow_unlearn.governance.holders import (
    VersionExposure,
    cached,
    checkpoints,
    exposure_of,
    logged_models,
    model_of,
    sharing,
)
from mlflow_unlearn.governance.location import FILE
from mlflow_unlearn.registry import tracking
from mlflow_unlearn.registry.identity import whoami
from mlflow_unlearn.registry.versions import RETIRED_TAG, can_be_read, registered_version, retired

_AGAIN = "look for the files there, and start the same command again"


@dataclass(frozen=True)
class Retirement:
    """What is to be removed.

    Attributes:
        entries: the version and its copies, which share its files.
        aliases: NAME@ALIAS, to be removed first.
        model_id: the LoggedModel.
        location: where the files lie.
        cached: outputs and checkpoints on this machine.
    """

    entries: Sequence[VersionExposure]
    aliases: Sequence[str]
    model_id: str | None
    location: str
    cached: Sequence[Path]

    def steps(self) -> list[str]:
        """In words, in order."""
        return [
            *(f"remove the alias {alias}" for alias in self.aliases),
            *(f"mark {entry.uri} as retired" for entry in self.entries),
            *([f"delete the LoggedModel {self.model_id}"] if self.model_id is not None else []),
            f"delete all files at {self.location}",
            *(f"delete {path} from this machine's cache" for path in self.cached),
        ]


def retire(options: config.Retire) -> None:
    """Print what would be removed; with ``yes`` remove it, prove it, and record it.

    Raises:
        Refused: an alias or an endpoint still serves the version, or a copy of it, or it cannot be told apart from
            what is to stay.
    """
    if not options.yes:
        with tracking.read_only_client() as client:
            retirement = _retirement(client, options)
        print("\n".join(f"would {step}" for step in retirement.steps()))
        print("Nothing was done: --yes true does it, for good.")
        return
    with tracking.run("retire", options) as run_id:
        client = tracking.client()
        retirement = _retirement(client, options)
        person = whoami()
        at = datetime.now(UTC).isoformat(timespec="seconds")
        mark = {"at": at, "by": person.display_name(), "run_id": run_id, "reason": options.reason}
        record: dict[str, Any] = {**mark, "versions": [p.uri for p in retirement.entries], "steps": retirement.steps()}
        # Before the first deletion: if this cannot be written, nothing is lost.
        mlflow.log_dict({**record, "done": False}, "evidence/retirement.json")
        for entry in retirement.entries:
            for alias in entry.registered.aliases:
                _remove_alias(client, entry, alias)
        for entry in retirement.entries:
            client.set_model_version_tag(entry.registered.name, entry.registered.version, RETIRED_TAG, json.dumps(mark))
        if retirement.model_id is not None:
            _delete_logged_model(client, retirement.model_id)
        _delete_files(retirement.location)
        for path in retirement.cached:
            path.unlink(missing_ok=True)
        if left := [entry.uri for entry in retirement.entries if can_be_read(entry.uri)]:
            raise UnlearnError(
                f"{', '.join(left)} can still be read after the deletion of {retirement.location}; {_AGAIN}"
            )
        mlflow.log_dict({**record, "done": True}, "evidence/retirement.json")
        for step in retirement.steps():
            print(f"done: {step}")
        print("None of these URIs can be read any more.")
        if retirement.model_id is not None:
            print("What remains of the LoggedModel's entry goes with `mlflow gc` on the server.")


def _retirement(client: MlflowClient, options: config.Retire) -> Retirement:
    version = registered_version(client, options.model_uri)
    uri = f"models:/{version.name}/{version.version}"
    # One that was interrupted is done again.
    if (how := retired(version)) is not None and not can_be_read(uri):
        raise UnlearnError(f"{uri} was {how}; there is nothing left to remove")
    models = logged_models(client)
    target = exposure_of(client, version, models)
    _check_location(target)
    found = sharing(client, target, models)
    model_id = model_of(client, target, models)
    named = [alias.strip() for alias in (options.aliases or "").split(",") if alias.strip()]
    named = [alias if "@" in alias else f"{version.name}@{alias}" for alias in named]
    there = [f"{entry.registered.name}@{alias}" for entry in found for alias in entry.registered.aliases]
    if unknown := [alias for alias in named if alias not in there]:
        raise UnlearnError(f"aliases: {unknown[0]} does not point to {uri} or to a copy of it")
    serving = [alias for alias in there if alias not in named]
    serving += [f"the endpoint {name} ({url})" for entry in found for name, url in entry.endpoints.items()]
    if serving:
        raise Refused(
            f"{uri} is still served by {', '.join(serving)}: move the alias with `promote`, or name it in aliases=; "
            "of an endpoint remove the tag once it serves another version"
        )
    return Retirement(found, there, model_id, target.location.uri, [*cached(found), *checkpoints(found)])


def _check_location(target: VersionExposure) -> None:
    """Only what MLflow itself deletes there and nowhere else is deleted.

    Raises:
        Refused: it would delete nothing, or another folder.
    """
    location, doubt = target.location, target.location.doubt
    if location.store == FILE:
        path = local_file_uri_to_path(location.uri)
        if unquote(path) != path:
            doubt = f"MLflow reads the % in {path!r} once more when it deletes"
        elif os.path.islink(path):
            doubt = f"{path!r} is a symbolic link"
    elif location.store == "runs://":
        doubt = f"the run of {location.uri} is gone"
    if doubt:
        raise Refused(
            f"{target.uri} cannot be retired: {doubt}; register its files by another URI, and delete this entry "
            "(`delete_model_version` leaves the files)"
        )


def _remove_alias(client: MlflowClient, entry: VersionExposure, alias: str) -> None:
    """Unless somebody has moved it to another version since these steps were drawn up."""
    registered = entry.registered
    now = client.get_registered_model(registered.name).aliases.get(alias)
    if now is not None and str(now) != str(registered.version):
        raise Refused(f"{registered.name}@{alias} was moved to version {now} meanwhile: look at the plan again")
    client.delete_registered_model_alias(registered.name, alias)


def _delete_logged_model(client: MlflowClient, model_id: str) -> None:
    try:
        client.delete_logged_model(model_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":  # else an interrupted command has done it
            raise


def _delete_files(location: str) -> None:
    """All of them, which the store has to confirm.

    Raises:
        UnlearnError: it cannot delete them, or lists some still.
    """
    repository = get_artifact_repository(location)
    try:
        repository.delete_artifacts()
        left = repository.list_artifacts()
    except (NotImplementedError, MlflowException, OSError) as error:
        reason = first_line(error)
        raise UnlearnError(f"the files at {location} cannot be deleted ({reason}); {_AGAIN}") from error
    if left:
        raise UnlearnError(f"{len(left)} entries are left at {location}; {_AGAIN}")
