"""Checkpoints of trainings hold data as versions do: who lists them, and which of them have seen some samples."""

import tempfile
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from pydantic import ValidationError

from mlflow_unlearn.console import first_line
from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.evidence.checkpoints import CHECKPOINTS_TAG, Kept
from mlflow_unlearn.governance.deletion import StoredCheckpoint, StoredPlace
from mlflow_unlearn.governance.model_folder import MLMODEL
from mlflow_unlearn.parsing import load_yaml
from mlflow_unlearn.registry.artifacts import run_file, stored_file
from mlflow_unlearn.registry.checkpoints import stored_checkpoints
from mlflow_unlearn.registry.clients import pages
from mlflow_unlearn.registry.digests import file_digest
from mlflow_unlearn.registry.uris import in_ranges
from mlflow_unlearn.registry.versions import METADATA_KEY, Record, retired
from mlflow_unlearn.registry.walk import PAGE, uri_of


@dataclass(frozen=True)
class Removal:
    """What of a version's checkpoints goes with it.

    Attributes:
        remove: files that no version that stays lists.
        keep: files that one does.
    """

    remove: tuple[StoredCheckpoint, ...] = ()
    keep: tuple[StoredPlace, ...] = ()


def record_at(location: str) -> Record:
    """What a model records of itself, by its MLmodel.

    Raises:
        UnlearnError: it cannot be read, or is not one of ours.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="mlflow-unlearn-") as folder:
            return record_in(stored_file(location, MLMODEL, Path(folder)))
    except (MlflowException, OSError) as error:
        raise UnlearnError(f"the MLmodel at {location} cannot be read ({first_line(error)})") from error


def record_in(mlmodel: Path) -> Record:
    """What a model records of itself, in its MLmodel.

    Raises:
        UnlearnError: it cannot be read, or is not one of ours.
    """
    try:
        return Record.model_validate(load_yaml(mlmodel.read_bytes())["metadata"][METADATA_KEY])
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise UnlearnError(f"its MLmodel is not one that records a training ({first_line(error)})") from error


def listed(record: Any) -> tuple[Kept, ...]:
    """The checkpoints that a stored record lists; none where there is none.

    Raises:
        UnlearnError: they cannot be read.
    """
    found = record.get("checkpoints", ()) if isinstance(record, dict) else ()
    try:
        return tuple(Kept.model_validate(one) for one in found)
    except (ValidationError, TypeError) as error:
        raise UnlearnError(f"its list of checkpoints cannot be read ({first_line(error)})") from error


def removal(
    client: MlflowClient,
    known: Mapping[str, str],
    entries: Sequence[ModelVersion],
    kept: Iterable[Kept | StoredCheckpoint],
) -> Removal:
    """Which checkpoints go with versions: those that they list, and what else their own runs keep.

    Args:
        client: of the registry.
        known: where the files of each registered version are.
        entries: versions that go, which have the same files.
        kept: what they list.

    Raises:
        UnlearnError: what a version that stays lists cannot be read.
    """
    sha256 = {(one.run_id, one.path): one.sha256 for one in kept}
    runs = {run_id for run_id, _ in sha256} | {str(version.run_id) for version in entries if version.run_id}
    stored = {(run_id, path): size for run_id in sorted(runs) for path, size in stored_checkpoints(run_id).items()}
    own = {version.run_id for version in entries}
    mine = [key for key in stored if key in sha256 or key[0] in own]
    if not mine:
        return Removal()
    others = _listed_by_others(client, known, {uri_of(version) for version in entries})
    alike = {one.sha256 for listing in others.values() for one in listing}
    users: dict[tuple[str, str], list[str]] = {}
    for uri, listing in others.items():
        for one in listing:
            users.setdefault((one.run_id, one.path), []).append(uri)
    # Whoever may write a version's files may list what a training that has no version yet has stored.
    foreign = {run_id for run_id, _ in mine} - own
    at_work = {run_id for run_id in foreign if client.get_run(run_id).info.status == "RUNNING"}
    remove, keep = [], []
    for key in mine:
        run_id, path = key
        if key in users:
            why = f"listed by {', '.join(in_ranges(users[key]))}"
            keep.append(StoredPlace(place=f"runs:/{run_id}/{path}", why=why))
            continue
        if run_id in at_work:
            keep.append(StoredPlace(place=f"runs:/{run_id}/{path}", why="its run has not ended"))
            continue
        digest = sha256.get(key) or _digest(run_id, path)
        # The same stage of the same shard comes out of two trainings with the same bits.
        told = None if digest in alike else digest
        remove.append(StoredCheckpoint(run_id=run_id, path=path, size=stored[key], sha256=told))
    return Removal(tuple(remove), tuple(keep))


def _listed_by_others(
    client: MlflowClient, known: Mapping[str, str], own: Collection[str]
) -> dict[str, tuple[Kept, ...]]:
    """Version that stays → the checkpoints that it lists.

    Raises:
        UnlearnError: one cannot be read.
    """
    search = partial(client.search_model_versions, f"tags.`{CHECKPOINTS_TAG}` LIKE '%'", max_results=PAGE)
    found = {}
    for version in pages(lambda token: search(page_token=token)):
        if (uri := uri_of(version)) in own:
            continue
        location = known.get(uri) or str(client.get_model_version_download_uri(version.name, version.version))
        try:
            found[uri] = record_at(location).checkpoints
        except UnlearnError as error:
            if retired(version) is None:
                raise UnlearnError(
                    f"which checkpoints {uri} lists is not known: {error}; restore it, or delete its entry "
                    "(`delete_model_version`), and start again"
                ) from error
    return found


def _digest(run_id: str, path: str) -> str:
    with tempfile.TemporaryDirectory(prefix="mlflow-unlearn-") as folder:
        return file_digest(run_file(run_id, path, Path(folder)))


def by_run(checkpoints: Iterable[StoredCheckpoint]) -> Iterator[tuple[str, str]]:
    """Run → how many of them it has, in words."""
    for run_id, count in sorted(Counter(one.run_id for one in checkpoints).items()):
        yield run_id, f"{count} checkpoint{'' if count == 1 else 's'}"
