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

from mlflow_unlearn import config, tracking
from mlflow_unlearn.errors import Refused, UnlearnError
from mlflow_unlearn.governance.exposure import Place, cached, logged_models, model_of, place_of, sharing
from mlflow_unlearn.governance.location import FILE
from mlflow_unlearn.governance.people import whoami
from mlflow_unlearn.registry import RETIRED_TAG, can_be_read, registered_version, retired

_AGAIN = "look for the files there, and start the same command again"


@dataclass(frozen=True)
class Plan:
    """What is to be removed.

    Attributes:
        places: the version and its copies, which share its files.
        aliases: NAME@ALIAS, to be removed first.
        model_id: the LoggedModel.
        location: where the files lie.
        cached: outputs on this machine.
    """

    places: Sequence[Place]
    aliases: Sequence[str]
    model_id: str | None
    location: str
    cached: Sequence[Path]

    def steps(self) -> list[str]:
        """In words, in order."""
        return [
            *(f"remove the alias {alias}" for alias in self.aliases),
            *(f"mark {place.uri} as retired" for place in self.places),
            *([f"delete the LoggedModel {self.model_id}"] if self.model_id is not None else []),
            f"delete all files at {self.location}",
            *(f"delete {path} from this machine's cache" for path in self.cached),
        ]


def retire(options: config.Retire) -> None:
    """Print the plan; with ``yes`` carry it out, prove it, and record it.

    Raises:
        Refused: an alias or an endpoint still serves the version, or a copy of it, or it cannot be told apart from
            what is to stay.
    """
    if not options.yes:
        with tracking.looking() as client:
            plan = _plan(client, options)
        print("\n".join(f"would {step}" for step in plan.steps()))
        print("Nothing was done: --yes true does it, for good.")
        return
    with tracking.run("retire", options) as run_id:
        client = tracking.client()
        plan = _plan(client, options)
        person = whoami()
        at = datetime.now(UTC).isoformat(timespec="seconds")
        mark = {"at": at, "by": person.told(), "run_id": run_id, "reason": options.reason}
        record: dict[str, Any] = {**mark, "versions": [p.uri for p in plan.places], "steps": plan.steps()}
        # Before the first deletion: if this cannot be written, nothing is lost.
        mlflow.log_dict({**record, "done": False}, "evidence/retirement.json")
        for place in plan.places:
            for alias in place.registered.aliases:
                _remove_alias(client, place, alias)
        for place in plan.places:
            client.set_model_version_tag(place.registered.name, place.registered.version, RETIRED_TAG, json.dumps(mark))
        if plan.model_id is not None:
            _delete_logged_model(client, plan.model_id)
        _delete_files(plan.location)
        for path in plan.cached:
            path.unlink(missing_ok=True)
        if left := [place.uri for place in plan.places if can_be_read(place.uri)]:
            raise UnlearnError(f"{', '.join(left)} can still be read after the deletion of {plan.location}; {_AGAIN}")
        mlflow.log_dict({**record, "done": True}, "evidence/retirement.json")
        for step in plan.steps():
            print(f"done: {step}")
        print("None of these URIs can be read any more.")
        if plan.model_id is not None:
            print("What remains of the LoggedModel's entry goes with `mlflow gc` on the server.")


def _plan(client: MlflowClient, options: config.Retire) -> Plan:
    version = registered_version(client, options.model_uri)
    uri = f"models:/{version.name}/{version.version}"
    # One that was interrupted is done again.
    if (told := retired(version)) is not None and not can_be_read(uri):
        raise UnlearnError(f"{uri} was {told}; there is nothing left to remove")
    models = logged_models(client)
    target = place_of(client, version, models)
    _check_location(target)
    found = sharing(client, target, models)
    model_id = model_of(client, target, models)
    named = [alias.strip() for alias in (options.aliases or "").split(",") if alias.strip()]
    named = [alias if "@" in alias else f"{version.name}@{alias}" for alias in named]
    there = [f"{place.registered.name}@{alias}" for place in found for alias in place.registered.aliases]
    if unknown := [alias for alias in named if alias not in there]:
        raise UnlearnError(f"aliases: {unknown[0]} does not point to {uri} or to a copy of it")
    serving = [alias for alias in there if alias not in named]
    serving += [f"the endpoint {name} ({url})" for place in found for name, url in place.endpoints.items()]
    if serving:
        raise Refused(
            f"{uri} is still served by {', '.join(serving)}: move the alias with `promote`, or name it in aliases=; "
            "of an endpoint remove the tag once it serves another version"
        )
    return Plan(found, there, model_id, target.location.uri, cached(found))


def _check_location(target: Place) -> None:
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


def _remove_alias(client: MlflowClient, place: Place, alias: str) -> None:
    """Unless somebody has moved it to another version since the plan was made."""
    registered = place.registered
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
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UnlearnError(f"the files at {location} cannot be deleted ({reason}); {_AGAIN}") from error
    if left:
        raise UnlearnError(f"{len(left)} entries are left at {location}; {_AGAIN}")
