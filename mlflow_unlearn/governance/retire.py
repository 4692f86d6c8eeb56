"""`retire`: remove a version's files for good, in an order in which nothing that is served is ever touched."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import mlflow
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.tracking import MlflowClient

from mlflow_unlearn import config, tracking
from mlflow_unlearn.errors import Refused, UnlearnError
from mlflow_unlearn.governance.exposure import Place, cached, place_of, sharing
from mlflow_unlearn.governance.people import whoami
from mlflow_unlearn.registry import RETIRED_TAG, registered_version, retired


@dataclass(frozen=True)
class Plan:
    """What is to be removed.

    Attributes:
        places: the version and its copies, which share its files.
        aliases: (name, alias), to be removed first.
        model_id: the LoggedModel.
        location: where the files lie.
        cached: outputs on this machine.
    """

    places: Sequence[Place]
    aliases: Sequence[tuple[str, str]]
    model_id: str | None
    location: str
    cached: Sequence[Path]

    def steps(self) -> list[str]:
        """In words, in order."""
        return [
            *(f"remove the alias {name}@{alias}" for name, alias in self.aliases),
            *(f"mark {place.uri} as retired" for place in self.places),
            *([f"delete the LoggedModel {self.model_id}"] if self.model_id is not None else []),
            f"delete all files at {self.location}",
            *(f"delete {path} from this machine's cache" for path in self.cached),
        ]


def retire(options: config.Retire) -> None:
    """Print the plan; with ``yes`` carry it out, prove it, and record it.

    Raises:
        Refused: an alias or an endpoint still serves the version, or a copy of it.
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
        for name, alias in plan.aliases:
            client.delete_registered_model_alias(name, alias)
        for place in plan.places:
            client.set_model_version_tag(place.registered.name, place.registered.version, RETIRED_TAG, json.dumps(mark))
        if plan.model_id is not None:
            client.delete_logged_model(plan.model_id)
        get_artifact_repository(plan.location).delete_artifacts()
        for path in plan.cached:
            path.unlink(missing_ok=True)
        left = [place.uri for place in plan.places if _can_be_read(place.uri)]
        if left:
            raise UnlearnError(
                f"{', '.join(left)} can still be read after the deletion of {plan.location}: look for the files there, "
                "and start the same command again"
            )
        mlflow.log_dict({**record, "done": True}, "evidence/retirement.json")
        for step in plan.steps():
            print(f"done: {step}")
        print("None of these URIs can be read any more.")
        if plan.model_id is not None:
            print("What remains of the LoggedModel's entry goes with `mlflow gc` on the server.")


def _plan(client: MlflowClient, options: config.Retire) -> Plan:
    version = registered_version(client, options.model_uri)
    uri = f"models:/{version.name}/{version.version}"
    if (told := retired(version)) is not None:
        raise UnlearnError(f"{uri} was {told}; there is nothing left to remove")
    target = place_of(version)
    found = sharing(client, target)
    named = [alias.strip() for alias in (options.aliases or "").split(",") if alias.strip()]
    there = [(place.registered.name, alias) for place in found for alias in place.registered.aliases]
    if unknown := [alias for alias in named if alias not in {alias for _, alias in there}]:
        raise UnlearnError(f"aliases = {unknown[0]!r}: no such alias points to {uri} or to a copy of it")
    serving = [f"{name}@{alias}" for name, alias in there if alias not in named]
    serving += [f"the endpoint {name} ({url})" for place in found for name, url in place.endpoints.items()]
    if serving:
        raise Refused(
            f"{uri} is still served by {', '.join(serving)}: move the alias with `promote`, or name it in aliases=; "
            "of an endpoint remove the tag once it serves another version"
        )
    location = version.source
    if target.model_id is not None:
        location = client.get_logged_model(target.model_id).artifact_location
    return Plan(found, there, target.model_id, location, cached(found))


def _can_be_read(uri: str) -> bool:
    try:
        folder = mlflow.artifacts.download_artifacts(f"{uri}/MLmodel")
    except (MlflowException, OSError):
        return False
    shutil.rmtree(folder, ignore_errors=True)
    return True
