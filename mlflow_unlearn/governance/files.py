"""Where the files of versions and LoggedModels lie, by the word of the store."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mlflow.entities import LoggedModel
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.store.artifact.runs_artifact_repo import RunsArtifactRepository
from mlflow.tracking import MlflowClient

from mlflow_unlearn.governance.location import Location, locate
from mlflow_unlearn.registry.clients import experiment_ids, pages, registry_client
from mlflow_unlearn.registry.walk import PAGE


@dataclass(frozen=True)
class Logged:
    """One LoggedModel of the store, with its name in the run that logged it."""

    id: str
    name: str
    run_id: str | None
    location: Location


def logged_models(client: MlflowClient) -> list[Logged]:
    """Every LoggedModel of the store that is not deleted."""
    ids = experiment_ids(client)
    return located(pages(lambda token: client.search_logged_models(ids, max_results=PAGE, page_token=token)))


def located(models: Iterable[LoggedModel]) -> list[Logged]:
    """LoggedModels with the folders of their files."""
    return [Logged(m.model_id, m.name, m.source_run_id, locate(m.artifact_location.rstrip("/"))) for m in models]


def files_of(client: MlflowClient, version: ModelVersion, models: Sequence[Logged]) -> Location:
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
