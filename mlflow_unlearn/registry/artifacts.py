"""Stored files with as few requests as can be: a server that checks a password's hash takes its time for each one.

MLflow's client lists a folder twice before it reads its files, lists each file to see whether it is a folder, and asks
for a run to learn where its files lie. None of these answers tells more than another one that is there already.
"""

import posixpath
import re
import tempfile
from collections.abc import Iterable
from pathlib import Path

import mlflow
from mlflow.entities import FileInfo, Run, ViewType
from mlflow.environment_variables import MLFLOW_MULTIPART_DOWNLOAD_CHUNK_SIZE
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repo import ArtifactRepository
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.store.artifact.mlflow_artifacts_repo import MlflowArtifactsRepository
from mlflow.tracking import MlflowClient

from mlflow_unlearn.registry.clients import quoted, registry_client
from mlflow_unlearn.registry.network import persistently

_locations: dict[tuple[str, str], str] = {}
"""Where the files of runs lie, by tracking URI and run: they stay there."""


class _ServedFolder(MlflowArtifactsRepository):  # type: ignore[misc]
    """A folder behind a server, listed once for one download."""

    def __init__(self, uri: str) -> None:
        super().__init__(uri)
        self._listed: dict[str | None, list[FileInfo]] = {}
        self._largest = 0  # of the files so far: threads fetch them while other folders are listed

    def list_artifacts(self, path: str | None = None) -> list[FileInfo]:
        if path not in self._listed:
            self._listed[path] = super().list_artifacts(path)
            self._largest = max(self._largest, *(file.file_size or 0 for file in self._listed[path]), 0)
        return self._listed[path]

    def _is_multipart_download_enabled(self) -> bool:
        """Parts of one file are fetched at once from where the server keeps it; a small one has only one part."""
        large = self._largest > MLFLOW_MULTIPART_DOWNLOAD_CHUNK_SIZE.get()
        return large and bool(super()._is_multipart_download_enabled())


class _ServedFile(_ServedFolder):
    """One whose files are asked for by name: the server is not asked whether they are folders."""

    def _is_directory(self, artifact_path: str) -> bool:
        return False


def download_model(uri: str, folder: Path) -> Path:
    """Fetch the files of ``models:/NAME/VERSION``, ``models:/m-…`` or ``runs:/RUN/NAME`` into a folder."""
    # Other characters MLflow's own reading of the URI takes for something else.
    version = re.fullmatch("models:/([^/@:?#%]+)/([1-9][0-9]*)", uri)
    if version is not None and mlflow.get_tracking_uri().startswith("http"):
        # MLflow asks with a second request, each time, whether the name is a prompt's.
        location = registry_client(MlflowClient()).get_model_version_download_uri(version[1], version[2])
        repository = _repository(str(location), _ServedFolder)
        if isinstance(repository, _ServedFolder):
            return Path(repository.download_artifacts("", str(folder)))
    return Path(mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=str(folder)))


def run_file(run_id: str, path: str, folder: Path) -> Path:
    """Fetch one of a run's files into a folder."""
    repository = _repository(_location_of(run_id), _ServedFile)
    return Path(persistently(lambda: repository.download_artifacts(path, str(folder))))


def stored_file(location: str, path: str, folder: Path) -> Path:
    """Fetch one file below a location into a folder."""
    repository = _repository(location, _ServedFile)
    return Path(persistently(lambda: repository.download_artifacts(path, str(folder))))


def run_folder(run_id: str, path: str, folder: Path) -> Path:
    """Fetch one of a run's folders into a folder."""
    repository = _repository(_location_of(run_id), _ServedFolder)
    return Path(persistently(lambda: repository.download_artifacts(path, str(folder))))


def run_files(run_id: str, path: str) -> list[FileInfo]:
    """What lies in one of a run's folders, each with its path in the run; nothing where there is no such folder."""
    try:
        repository = _repository(_location_of(run_id), _ServedFolder)
        return list(persistently(lambda: repository.list_artifacts(path)))
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":  # the folder, or the run itself is purged
            raise
        return []


def delete_run_file(run_id: str, path: str) -> None:
    """Delete one of a run's files."""
    persistently(lambda: get_artifact_repository(_location_of(run_id)).delete_artifacts(path))


def store_text(run_id: str, text: str, path: str) -> None:
    """Store a text as one of a run's files."""
    repository = _repository(_location_of(run_id), _ServedFolder)
    if not isinstance(repository, _ServedFolder):
        MlflowClient().log_text(run_id, text, path)
        return
    with tempfile.TemporaryDirectory(prefix="mlflow-unlearn-") as folder:
        file = Path(folder) / posixpath.basename(path)
        file.write_text(text, encoding="utf-8")
        repository.log_artifact(str(file), posixpath.dirname(path) or None)


def locate(client: MlflowClient, run_ids: Iterable[str], experiments: list[str]) -> None:
    """Learn where the files of several runs lie by one request; of those that this user may not read, nothing."""
    unknown = sorted({run_id for run_id in run_ids if (mlflow.get_tracking_uri(), run_id) not in _locations})
    if len(unknown) > 1:
        where = f"attributes.run_id IN ({', '.join(map(quoted, unknown))})"
        remember(persistently(lambda: client.search_runs(experiments, where, run_view_type=ViewType.ALL)))


def remember(runs: Iterable[Run]) -> None:
    """Keep where the files of runs lie that were read already."""
    for run in runs:
        _locations[mlflow.get_tracking_uri(), run.info.run_id] = str(run.info.artifact_uri)


def _location_of(run_id: str) -> str:
    key = mlflow.get_tracking_uri(), run_id
    if key not in _locations:
        remember([persistently(lambda: MlflowClient().get_run(run_id))])
    return _locations[key]


def _repository(location: str, served: type[_ServedFolder]) -> ArtifactRepository:
    """Of a location: ``served`` where it is behind MLflow's own server, else what MLflow takes."""
    repository = get_artifact_repository(location)
    return served(location) if type(repository) is MlflowArtifactsRepository else repository
