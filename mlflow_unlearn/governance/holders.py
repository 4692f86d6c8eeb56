"""`exposure`: where forgotten data still lives, as far as the tracking server and this machine can tell."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion, RegisteredModel
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from mlflow_unlearn import cache
from mlflow_unlearn.data.spec import without_options
from mlflow_unlearn.errors import Refused, UnlearnError
from mlflow_unlearn.evidence.audit import REFERENCE_FILE, REFERENCE_TAG
from mlflow_unlearn.evidence.review import MODEL_URI_TAG
from mlflow_unlearn.governance.files import Logged, files_of
from mlflow_unlearn.governance.locating import Wanted, endpoints
from mlflow_unlearn.governance.location import Location, locate, relation
from mlflow_unlearn.registry import forget_requests
from mlflow_unlearn.registry.clients import pages
from mlflow_unlearn.registry.network import persistently
from mlflow_unlearn.registry.versions import WEIGHTS_TAG
from mlflow_unlearn.registry.walk import PAGE, runs_where


class Holder(Protocol):
    """A version, or a LoggedModel, that was trained on what is to be forgotten."""

    @property
    def uri(self) -> str:
        """``models:/NAME/VERSION``."""

    @property
    def registered(self) -> Any:
        """As the registry has it."""


@dataclass(frozen=True)
class VersionExposure:
    """One registered version, and where its files are.

    Attributes:
        registered: as the registry has it.
        location: where its files lie.
        model_id: the LoggedModel that has these files by the store's word, None where there is none or it is deleted.
    """

    registered: ModelVersion
    location: Location
    model_id: str | None = None

    @property
    def uri(self) -> str:
        """``models:/NAME/VERSION``."""
        return f"models:/{self.registered.name}/{self.registered.version}"

    @property
    def endpoints(self) -> dict[str, str]:
        """Name → URL, by its tags."""
        return endpoints(self.registered.tags)


def forgotten_by(client: MlflowClient, target: ModelVersion) -> list[Wanted]:
    """What the version's requests name, or those that it has carried out.

    Raises:
        UnlearnError: there are none.
    """
    ids = [key.removeprefix(forget_requests.TAG) for key in target.tags if key.startswith(forget_requests.TAG)]
    ids += [part for part in target.tags.get("unlearn.request_ids", "").split(",") if part]
    if not ids:
        raise UnlearnError(
            f"models:/{target.name}/{target.version} has no forget request and has carried out none: "
            "file one with `request`"
        )
    return [named_by(client, request_id) for request_id in dict.fromkeys(ids)]


def named_by(client: MlflowClient, request_id: str) -> Wanted:
    """What a request names, as it was filed.

    Raises:
        UnlearnError: its files are gone, or were changed since.
        Refused: several runs claim to be it.
    """
    samples, details = forget_requests.read_request(client, request_id)
    spec = str(details["data"]) if details.get("data") else None
    return Wanted(
        samples,
        source=without_options(spec) if spec is not None else None,
        source_sha256=details.get("source_sha256"),
        about=frozenset([details["of"]]),
        requests=frozenset([request_id]),
    )


def sharing(
    client: MlflowClient,
    target: VersionExposure,
    models: Sequence[Logged],
    known: dict[str, str] | None = None,
    registered: Callable[[str], RegisteredModel] | None = None,
) -> list[VersionExposure]:
    """The version itself and every other that has the same files: deleting these deletes all of them.

    Args:
        client: of the registry.
        target: the version.
        models: every LoggedModel.
        known: where the files of versions are, by URI; what is looked up here is added, so that to look again takes
            one request.
        registered: gives a registered model, and with it the aliases; default: the registry.

    Raises:
        Refused: the files of another version lie inside or around these, or that cannot be decided.
    """
    found, known = [], {} if known is None else known
    here = locate(known[target.uri]) if target.uri in known else target.location  # its links may lead elsewhere now
    for version in _all_versions(client):
        uri = f"models:/{version.name}/{version.version}"
        location = locate(known[uri]) if uri in known else files_of(client, version, models)
        how = relation(location, here)
        if how == "same":
            aliases = (registered or client.get_registered_model)(version.name).aliases.items()
            version.aliases = [alias for alias, number in aliases if str(number) == str(version.version)]
            found.append(_exposure_at(version, location, models))
        elif how != "apart":
            raise Refused(f"{target.uri} cannot be retired: {_overlap(uri, location, target)}")
        known[uri] = location.uri
    return found


def exposure_of(client: MlflowClient, version: ModelVersion, models: Sequence[Logged]) -> VersionExposure:
    """A version with its files, and the LoggedModel that the store knows at the same entry."""
    return _exposure_at(version, files_of(client, version, models), models)


def _exposure_at(version: ModelVersion, location: Location, models: Sequence[Logged]) -> VersionExposure:
    there = [model.id for model in models if relation(model.location, location) == "same"]
    return VersionExposure(version, location, there[0] if there else None)


def model_of(
    client: MlflowClient, target: VersionExposure, models: Sequence[Logged], by_file: str | None
) -> str | None:
    """The LoggedModel that goes with a version's files: the one that has them by the store's word.

    Args:
        client: of the registry.
        target: the version.
        models: every LoggedModel.
        by_file: that the version's MLmodel names, where anyone who may write its files may have named any other.

    Raises:
        Refused: the MLmodel or the registry names another one, or files of another one lie inside or around these.
    """
    for model in models:
        how = relation(model.location, target.location)
        if how != "apart" and (how != "same" or model.id != target.model_id):
            reason = _overlap(f"the LoggedModel {model.id}", model.location, target)
            raise Refused(f"{target.uri} cannot be retired: {reason}")
    registered = target.registered
    named = {
        "its MLmodel": by_file,
        "its source": str(registered.source or "").removeprefix("models:/"),
        "the registry": registered.model_id,
    }
    for who, model_id in named.items():
        if model_id == target.model_id or not re.fullmatch("m-[0-9a-f]{32}", model_id or ""):
            continue
        try:
            other = client.get_logged_model(model_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            continue  # deleted, by a command that was interrupted, or another server's
        raise Refused(
            f"{target.uri} cannot be retired: {who} names the LoggedModel {model_id}, whose files lie at "
            f"{other.artifact_location}, and its own files, at {target.location.uri}, belong to "
            f"{target.model_id or 'none'}; correct the one that is wrong, and start again"
        )
    return target.model_id


def cached(holders: Sequence[Holder]) -> list[Path]:
    """Entries of this machine's cache with outputs of these models."""
    return [path for path, facts in cache.entries("outputs") if facts.get("weights") in _digests(holders)]


def references(client: MlflowClient, holders: Sequence[Holder]) -> list[Run]:
    """Runs with outputs of models that audits have trained on halves of what these versions know."""
    # Also by URI: versions of other tools do not state the digest of their weights.
    digests, uris = _digests(holders), {holder.uri for holder in holders}
    runs = [
        run
        for run in runs_where(client, f"tags.`{REFERENCE_TAG}` LIKE '%'")
        if run.data.tags[REFERENCE_TAG] in digests or run.data.tags.get(MODEL_URI_TAG) in uris
    ]
    # A file and no folder: whoever may tag a run may have put anything there.
    listed = {run.info.run_id: persistently(partial(client.list_artifacts, run.info.run_id)) for run in runs}
    files = {run_id: [f.path for f in found if not f.is_dir] for run_id, found in listed.items()}
    return [run for run in runs if REFERENCE_FILE in files[run.info.run_id]]


def checkpoints(holders: Sequence[Holder], *, trained_as: str | None = None, of_train: bool = False) -> list[Path]:
    """What commands that were killed have left in the cache of trainings that began with these models, or made them.

    Args:
        holders: versions.
        trained_as: what tells their training from others.
        of_train: also those of `train`, which began before there was a version: any of them may hold the data.
    """
    found, digests = cache.entries(cache.CHECKPOINTS), _digests(holders) | ({trained_as} - {None})
    return [
        path
        for path, facts in found
        if {facts.get("weights"), facts.get("of")} & digests or (of_train and facts.get("command") == "train")
    ]


def _digests(holders: Sequence[Holder]) -> set[str | None]:
    return {entry.registered.tags.get(WEIGHTS_TAG) for entry in holders} - {None}


def _all_versions(client: MlflowClient) -> Iterator[ModelVersion]:
    """Without their aliases, which a search leaves out."""
    yield from pages(lambda token: client.search_model_versions(max_results=PAGE, page_token=token))


def _overlap(other: str, location: Location, target: VersionExposure) -> str:
    """Why files may not be deleted, and what helps."""
    ours, how = target.location, relation(location, target.location)
    if how == "unclear":
        why = location.doubt or ours.doubt or f"{location.uri} and {ours.uri} end alike"
        problem = f"it cannot be decided whether {other} has the same files ({why})"
    else:
        lie = "are" if how == "same" else f"lie {how}"
        problem = f"the files of {other}, at {location.uri}, {lie} its own, at {ours.uri}"
    return f"{problem}; delete the entry that is wrong (`delete_model_version` leaves the files), and start again"
