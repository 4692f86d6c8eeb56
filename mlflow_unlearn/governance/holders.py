"""`exposure`: where forgotten data still lives, as far as the tracking server and this machine can tell."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from mlflow.tracking import MlflowClient

from mlflow_unlearn import cache
from mlflow_unlearn.data.manifest import Manifest
from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.registry import forget_requests
from mlflow_unlearn.registry.versions import MANIFEST_FILE, can_be_read, fetched, retired

ENDPOINT_TAG = "unlearn.endpoint."
"""A version's tag ``unlearn.endpoint.<name>`` = URL says where it is served: MLflow itself does not know."""
WEIGHTS_TAG = "unlearn.weights_sha256"

ExposureState = Literal["contains", "unlearned", "never contained", "unknown", "retired"]
"""What a version is to samples that were to be forgotten."""


@dataclass(frozen=True)
class VersionExposure:
    """One registered version, and whether it contains what was to be forgotten.

    Attributes:
        registered: as the registry has it.
        state: whether the samples are in what it was trained on.
        why: how that is known.
        model_id: its LoggedModel, None where it came from a plain path or its files are gone.
    """

    registered: ModelVersion
    state: ExposureState
    why: str
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


def version_exposures(client: MlflowClient, forgotten: Sequence[Forgotten]) -> list[VersionExposure]:
    """Of every registered version of any name."""
    found = [_exposure(version, forgotten) for version in _all_versions(client)]
    # A copy shares its LoggedModel, its weights or its files with what contains the samples.
    shared = {mark: entry.uri for entry in found if entry.state == "contains" for mark in _marks(entry)}
    return [
        replace(entry, state="contains", why=f"the same model as {shared[mark]}")
        if entry.state not in ("contains", "retired") and (mark := next(iter(_marks(entry) & shared.keys()), ""))
        else entry
        for entry in found
    ]


def sharing(client: MlflowClient, target: VersionExposure) -> list[VersionExposure]:
    """The version itself and every other that has the same files: whoever deletes these deletes all of them."""
    location = files_of(client, target.registered)
    return [exposure_of(version) for version in _all_versions(client) if files_of(client, version) == location]


def files_of(client: MlflowClient, version: ModelVersion) -> str:
    """URI of the folder with a version's files, which a copy by `copy_model_version` shares."""
    return str(client.get_model_version_download_uri(version.name, version.version)).rstrip("/")


def exposure_of(version: ModelVersion) -> VersionExposure:
    """A version, its LoggedModel looked up, which MLflow's own entity does not tell on every store."""
    try:
        model_id = Model.load(f"models:/{version.name}/{version.version}").model_id
    except (MlflowException, OSError):
        model_id = None  # its files are gone
    return VersionExposure(version, "unknown", "", model_id)


def unregistered(client: MlflowClient, found: Sequence[VersionExposure]) -> list[str]:
    """LoggedModels of the runs that logged a holder, which no version names."""
    registered = {entry.model_id for entry in found}
    runs = {entry.registered.run_id for entry in found if entry.state == "contains"} - {None, ""}
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    logged = _pages(lambda token: client.search_logged_models(experiments, page_token=token))
    return [m.model_id for m in logged if m.source_run_id in runs and m.model_id not in registered]


def cached(holders: Sequence[VersionExposure]) -> list[Path]:
    """Entries of this machine's cache with outputs of these models."""
    digests = {entry.registered.tags.get(WEIGHTS_TAG) for entry in holders} - {None}
    return [path for path, facts in cache.entries("outputs") if facts.get("weights") in digests]


def _all_versions(client: MlflowClient) -> Iterator[ModelVersion]:
    for version in _pages(lambda token: client.search_model_versions(max_results=1000, page_token=token)):
        # Only here the aliases are filled in.
        yield client.get_model_version(version.name, version.version)


def _pages(page: Callable[[str | None], Any]) -> Iterator[Any]:
    token = None
    while True:
        items = page(token)
        yield from items
        token = items.token
        if not token:
            return


def _exposure(version: ModelVersion, forgotten: Sequence[Forgotten]) -> VersionExposure:
    uri = f"models:/{version.name}/{version.version}"
    if (told := retired(version)) is not None and not can_be_read(uri):
        return VersionExposure(version, "retired", told)
    model_id = exposure_of(version).model_id
    done = set(version.tags.get("unlearn.request_ids", "").split(","))
    about = [request.id for request in forgotten if request.of == uri]
    if about:
        return VersionExposure(version, "contains", f"request {', '.join(about)} is about it", model_id)
    if WEIGHTS_TAG not in version.tags:
        if version.name in {request.of.split("/")[1] for request in forgotten}:
            return VersionExposure(version, "unknown", "nobody recorded what it was trained on", model_id)
        return VersionExposure(version, "never contained", "another model", model_id)
    training = _training_manifest(uri)
    if training is None:
        return VersionExposure(version, "unknown", "its training manifest cannot be read", model_id)
    kept = {r.id: int(training.mask(r.ids).sum()) for r in forgotten if r.ids is not None}
    if any(kept.values()):
        told = ", ".join(f"{count} samples of request {name}" for name, count in kept.items() if count)
        return VersionExposure(version, "contains", f"{told} in its training manifest", model_id)
    if done & {request.id for request in forgotten}:
        return VersionExposure(version, "unlearned", f"carried out {', '.join(sorted(done))}", model_id)
    if any(request.ids is None for request in forgotten):
        return VersionExposure(
            version, "unknown", "the request's ids are hashed, and it did not carry it out", model_id
        )
    return VersionExposure(version, "never contained", "none of the samples is in its training manifest", model_id)


def _training_manifest(uri: str) -> Manifest | None:
    try:
        with fetched(f"{uri}/extra_files/{MANIFEST_FILE}") as path:
            return Manifest.from_csv(path)
    except (MlflowException, OSError, UnlearnError):
        return None


def _marks(entry: VersionExposure) -> set[str]:
    """What two versions have in common when one is a copy of the other."""
    return {mark for mark in (entry.model_id, entry.registered.tags.get(WEIGHTS_TAG), entry.registered.source) if mark}
