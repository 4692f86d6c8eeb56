"""`exposure`: where forgotten data still lives, as far as the tracking server and this machine can tell."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from mlflow.entities import Run, ViewType
from mlflow.entities.model_registry import ModelVersion, RegisteredModel
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.store.artifact.runs_artifact_repo import RunsArtifactRepository
from mlflow.tracking import MlflowClient

from mlflow_unlearn import cache
from mlflow_unlearn.data.manifest import Manifest
from mlflow_unlearn.errors import Refused, UnlearnError
from mlflow_unlearn.evidence.audit import REFERENCE_FILE, REFERENCE_TAG
from mlflow_unlearn.evidence.review import MODEL_URI_TAG
from mlflow_unlearn.governance.location import Location, locate, relation
from mlflow_unlearn.governance.model_folder import is_gone
from mlflow_unlearn.registry import forget_requests
from mlflow_unlearn.registry.clients import experiment_ids, quoted, registry_client
from mlflow_unlearn.registry.versions import MANIFEST_FILE, fetched, retired

ENDPOINT_TAG = "unlearn.endpoint."
"""A version's tag ``unlearn.endpoint.<name>`` = URL says where it is served: MLflow itself does not know."""
WEIGHTS_TAG = "unlearn.weights_sha256"

ExposureState = Literal["contains", "unlearned", "never contained", "unknown", "retired"]


@dataclass(frozen=True)
class VersionExposure:
    """One registered version.

    Attributes:
        registered: as the registry has it.
        state: whether it was trained on the samples.
        why: how that is known.
        location: where its files lie.
        model_id: the LoggedModel that has these files by the store's word, None where there is none or it is deleted.
    """

    registered: ModelVersion
    state: ExposureState
    why: str
    location: Location
    model_id: str | None = None

    @property
    def uri(self) -> str:
        """``models:/NAME/VERSION``."""
        return f"models:/{self.registered.name}/{self.registered.version}"

    @property
    def endpoints(self) -> dict[str, str]:
        """Name → URL, by its tags."""
        tags = self.registered.tags.items()
        return {key.removeprefix(ENDPOINT_TAG): value for key, value in tags if key.startswith(ENDPOINT_TAG)}


@dataclass(frozen=True)
class Logged:
    """One LoggedModel of the store, with its name in the run that logged it."""

    id: str
    name: str
    run_id: str | None
    location: Location


@dataclass(frozen=True)
class Forgotten:
    """What one request names; no ids where they are stored hashed."""

    id: str
    of: str
    samples: int
    ids: tuple[str, ...] | None


def forgotten_by(client: MlflowClient, target: ModelVersion) -> list[Forgotten]:
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
    found = []
    for request_id in dict.fromkeys(ids):
        run_id = forget_requests.run_of(client, request_id)
        details, manifest = forget_requests.read_details(run_id), forget_requests.read_manifest_of(run_id)
        plain = manifest.ids if manifest.salt is None else None
        found.append(Forgotten(request_id, details["of"], len(manifest.ids), plain))
    return found


def version_exposures(
    client: MlflowClient, forgotten: Sequence[Forgotten], models: Sequence[Logged]
) -> list[VersionExposure]:
    """Every registered version of any name, and whether it holds what was to be forgotten."""
    found = [
        _exposure(client, client.get_model_version(version.name, version.version), forgotten, models)
        for version in _all_versions(client)
    ]
    holders = [entry for entry in found if entry.state == "contains"]
    return [_compared(entry, holders) for entry in found]


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
        location = locate(known[uri]) if uri in known else _location(client, version, models)
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
    return _exposure_at(version, _location(client, version, models), models)


def _exposure_at(version: ModelVersion, location: Location, models: Sequence[Logged]) -> VersionExposure:
    there = [model.id for model in models if relation(model.location, location) == "same"]
    return VersionExposure(version, "unknown", "", location, there[0] if there else None)


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


def logged_models(client: MlflowClient) -> list[Logged]:
    """Every LoggedModel of the store that is not deleted."""
    ids = experiment_ids(client)
    found = _pages(lambda token: client.search_logged_models(ids, page_token=token))
    return [Logged(m.model_id, m.name, m.source_run_id, locate(m.artifact_location.rstrip("/"))) for m in found]


def unregistered(models: Sequence[Logged], found: Sequence[VersionExposure]) -> list[str]:
    """LoggedModels of the runs that logged a holder, which no version names."""
    registered = {entry.model_id for entry in found}
    runs = {entry.registered.run_id for entry in found if entry.state == "contains"} - {None, ""}
    return [model.id for model in models if model.run_id in runs and model.id not in registered]


def cached(holders: Sequence[VersionExposure]) -> list[Path]:
    """Entries of this machine's cache with outputs of these models."""
    return [path for path, facts in cache.entries("outputs") if facts.get("weights") in _digests(holders)]


def references(client: MlflowClient, holders: Sequence[VersionExposure]) -> list[Run]:
    """Runs with outputs of models that audits have trained on halves of what these versions know."""
    # Also by URI: versions of other tools do not state the digest of their weights.
    asked = [f"tags.`{REFERENCE_TAG}` = {quoted(digest)}" for digest in sorted(filter(None, _digests(holders)))]
    asked += [f"tags.`{REFERENCE_TAG}` LIKE '%' and tags.`{MODEL_URI_TAG}` = {quoted(h.uri)}" for h in holders]
    search = partial(client.search_runs, experiment_ids(client), run_view_type=ViewType.ALL)
    found = (run for where in asked for run in _pages(partial(_page_of, search, where)))
    runs = {run.info.run_id: run for run in found}.values()
    # A file and no folder: whoever may tag a run may have put anything there.
    files = {run.info.run_id: [f.path for f in client.list_artifacts(run.info.run_id) if not f.is_dir] for run in runs}
    return [run for run in runs if REFERENCE_FILE in files[run.info.run_id]]


def _page_of(search: Callable[..., Any], where: str, token: str | None) -> Any:
    return search(where, page_token=token)


def checkpoints(holders: Sequence[VersionExposure], *, of_train: bool = False) -> list[Path]:
    """What commands that were killed have left in the cache of trainings that began with these models.

    Args:
        holders: versions.
        of_train: also those of `train`, which began before there was a version: any of them may hold the data.
    """
    found, digests = cache.entries(cache.CHECKPOINTS), _digests(holders)
    return [
        p for p, facts in found if facts.get("weights") in digests or (of_train and facts.get("command") == "train")
    ]


def _digests(holders: Sequence[VersionExposure]) -> set[str | None]:
    return {entry.registered.tags.get(WEIGHTS_TAG) for entry in holders} - {None}


def _all_versions(client: MlflowClient) -> Iterator[ModelVersion]:
    """Without their aliases, which a search leaves out."""
    yield from _pages(lambda token: client.search_model_versions(max_results=1000, page_token=token))


def _pages(page: Callable[[str | None], Any]) -> Iterator[Any]:
    token = None
    while True:
        items = page(token)
        yield from items
        token = items.token
        if not token:
            return


def _exposure(
    client: MlflowClient, version: ModelVersion, forgotten: Sequence[Forgotten], models: Sequence[Logged]
) -> VersionExposure:
    entry = exposure_of(client, version, models)
    state, why = _state(entry, forgotten)
    return replace(entry, state=state, why=why)


def _state(entry: VersionExposure, forgotten: Sequence[Forgotten]) -> tuple[ExposureState, str]:
    version, uri = entry.registered, entry.uri
    if (how := retired(version)) is not None and is_gone(uri, entry.location):
        return "retired", how
    done = set(version.tags.get("unlearn.request_ids", "").split(","))
    about = [request.id for request in forgotten if request.of == uri]
    if about:
        return "contains", f"request {', '.join(about)} is about it"
    if WEIGHTS_TAG not in version.tags:
        if version.name in {request.of.removeprefix("models:/").partition("/")[0] for request in forgotten}:
            return "unknown", "no one recorded what it was trained on"
        return "never contained", "another model"
    training = _training_manifest(uri)
    if training is None:
        return "unknown", "its training manifest cannot be read"
    kept = {r.id: int(training.mask(r.ids).sum()) for r in forgotten if r.ids is not None}
    if any(kept.values()):
        samples = ", ".join(f"{count} samples of request {name}" for name, count in kept.items() if count)
        return "contains", f"{samples} in its training manifest"
    if done & {request.id for request in forgotten}:
        return "unlearned", f"carried out {', '.join(sorted(done))}"
    if any(request.ids is None for request in forgotten):
        return "unknown", "the request's ids are hashed, and it did not carry it out"
    return "never contained", "none of the samples is in its training manifest"


def _compared(entry: VersionExposure, holders: Sequence[VersionExposure]) -> VersionExposure:
    """A copy shares its LoggedModel, its weights or its files with what holds the samples."""
    if entry.state in ("contains", "retired"):
        return entry
    relations = {holder.uri: relation(entry.location, holder.location) for holder in holders}
    for holder in holders:
        if relations[holder.uri] == "same" or _marks(entry) & _marks(holder):
            return replace(entry, state="contains", why=f"the same model as {holder.uri}")
    for uri, how in relations.items():
        if how in ("inside", "around"):
            return replace(entry, state="contains", why=f"its files lie {how} those of {uri}")
    if entry.state == "never contained" and (unclear := [uri for uri, how in relations.items() if how == "unclear"]):
        return replace(entry, state="unknown", why=f"whether it has the files of {unclear[0]} cannot be decided")
    return entry


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


def _location(client: MlflowClient, version: ModelVersion, models: Sequence[Logged]) -> Location:
    """The folder with a version's files, which a copy by `copy_model_version` shares."""
    uri = str(registry_client(client).get_model_version_download_uri(version.name, version.version)).rstrip("/")
    if not RunsArtifactRepository.is_runs_uri(uri):
        return locate(uri)
    # MLflow looks for these in the run, and in the LoggedModel that the run has logged under that name.
    try:
        run_id, path = RunsArtifactRepository.parse_runs_uri(uri)
        name, slash, rest = (path or "").partition("/")
        found = [f"{m.location.uri}{slash}{rest}" for m in models if (m.run_id, m.name) == (run_id, name)]
        of_run = RunsArtifactRepository.get_underlying_uri(uri)
        if not found or get_artifact_repository(of_run).list_artifacts():
            found.append(of_run)
    except (MlflowException, OSError) as error:
        if getattr(error, "error_code", "") == "RESOURCE_DOES_NOT_EXIST":
            return locate(uri)  # the run is gone for good, and with it the way to any files
        return Location(uri, doubt=f"{uri} cannot be followed ({error})")
    return locate(found[0]) if len(found) == 1 else Location(uri, doubt=f"{uri} may mean {' or '.join(found)}")


def _training_manifest(uri: str) -> Manifest | None:
    try:
        with fetched(f"{uri}/extra_files/{MANIFEST_FILE}") as path:
            return Manifest.from_csv(path)
    except (MlflowException, OSError, UnlearnError):
        return None


def _marks(entry: VersionExposure) -> set[str]:
    """What two versions have in common when one is a copy of the other."""
    return {mark for mark in (entry.model_id, entry.registered.tags.get(WEIGHTS_TAG)) if mark}
