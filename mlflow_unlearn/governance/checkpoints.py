"""Checkpoints of trainings hold data as versions do: who lists them, and which of them have seen some samples."""

import tempfile
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from mlflow.entities import LoggedModel, LoggedModelStatus, Run
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.store.entities import PagedList
from mlflow.tracking import MlflowClient
from pydantic import ValidationError

from mlflow_unlearn.console import first_line, note
from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.evidence.checkpoints import CHECKPOINTS_TAG, RESUME_TAG, TRAINED_AS_TAG, Kept
from mlflow_unlearn.governance.deletion import RetirementRecord, StoredCheckpoint, StoredPlace
from mlflow_unlearn.governance.location import locate, relation
from mlflow_unlearn.governance.model_folder import MLMODEL
from mlflow_unlearn.governance.storage import Unseen
from mlflow_unlearn.parsing import load_yaml
from mlflow_unlearn.registry.artifacts import remember, run_file, stored_file
from mlflow_unlearn.registry.checkpoints import delete_checkpoint, stored_checkpoints
from mlflow_unlearn.registry.clients import experiment_ids, pages, quoted
from mlflow_unlearn.registry.digests import file_digest
from mlflow_unlearn.registry.uris import in_ranges
from mlflow_unlearn.registry.versions import METADATA_KEY, Record, retired
from mlflow_unlearn.registry.walk import PAGE, runs_where, uri_of

_FOREIGN = "of another run, and its SHA-256 is not the recorded one: delete it if it is not another training's"
_RUNS = "its run has not ended: wait for that, then delete it if it is not another training's"
_SKEW = 86_400_000
"""Milliseconds between the clocks of a registry and of what has trained, at most."""


@dataclass(frozen=True)
class Removal:
    """What of a version's checkpoints goes with it.

    Attributes:
        remove: files that no version that stays lists.
        keep: files that one does.
        left: files that none does, and that are not shown to be its own.
    """

    remove: tuple[StoredCheckpoint, ...] = ()
    keep: tuple[StoredPlace, ...] = ()
    left: tuple[StoredPlace, ...] = ()


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


def of_training(record: Any) -> str | None:
    """What a stored record's training is told from others by; None where it does not say."""
    try:
        return Record.model_validate(record).trained_as
    except ValidationError:
        return None


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
        UnlearnError: what a version that stays lists, or a checkpoint, cannot be read.
    """
    recorded = {(one.run_id, one.path): one.sha256 for one in kept}
    own = {str(version.run_id) for version in entries if version.run_id}
    stored = {
        (run_id, path): size
        for run_id in sorted({run_id for run_id, _ in recorded} | own)
        for path, size in stored_checkpoints(run_id).items()
    }
    mine = [key for key in stored if key in recorded or key[0] in own]
    if not mine:
        return Removal()
    others = listings(client, known, {uri_of(version) for version in entries}, {run_id for run_id, _ in mine})
    alike, users = {one.sha256 for listing in others.values() for one in listing}, users_of(others)
    # Whoever may write a version's files may list what another training has stored, or is storing.
    at_work = {run_id for run_id, _ in mine if client.get_run(run_id).info.status == "RUNNING"}
    remove, keep, left = [], [], []
    for run_id, path in mine:
        place = f"runs:/{run_id}/{path}"
        if (run_id, path) in users:
            why = f"listed by {', '.join(in_ranges(users[run_id, path]))}"
            keep.append(StoredPlace(place=place, why=why))
            continue
        if run_id in at_work and (run_id not in own or (run_id, path) not in recorded):
            left.append(StoredPlace(place=place, why=_RUNS))
            continue
        expected = recorded.get((run_id, path))
        digest = expected if run_id in own and expected is not None else _digest(run_id, path)
        # One without a digest had, when an interrupted command has looked, the bytes of one that stays.
        if run_id not in own and (digest != expected if expected is not None else digest not in alike):
            left.append(StoredPlace(place=place, why=_FOREIGN))
            continue
        # The same stage of the same shard comes out of two trainings with the same bits.
        told = None if digest in alike else digest
        remove.append(StoredCheckpoint(run_id=run_id, path=path, size=stored[run_id, path], sha256=told))
    return Removal(tuple(remove), tuple(keep), tuple(left))


def users_of(listings: Mapping[str, Sequence[Kept]]) -> dict[tuple[str, str], list[str]]:
    """Run and path of a checkpoint → what lists it."""
    users: dict[tuple[str, str], list[str]] = {}
    for uri, listing in listings.items():
        for one in listing:
            users.setdefault((one.run_id, one.path), []).append(uri)
    return users


def remove_of_dead(client: MlflowClient, kept: Sequence[Kept], *, stays: bool = True) -> None:
    """Remove what a training that is done has kept in runs that were killed or failed amid it, and nothing lists.

    A state that is trained once more is stored once more, by the run that goes on. A store that refuses is noted:
    `retire` names what is left.

    Args:
        client: of the registry.
        kept: what the training lists.
        stays: whether a version is made of it; else these go too.
    """
    if not kept:
        return
    mine = {(one.run_id, one.path) for one in kept} if stays else set()
    try:
        where = f"attributes.run_id IN ({', '.join(map(quoted, sorted({one.run_id for one in kept})))})"
        keys = {run.data.tags[RESUME_TAG] for run in runs_where(client, where) if RESUME_TAG in run.data.tags}
        found = [run for key in sorted(keys) for run in runs_where(client, f"tags.`{RESUME_TAG}` = {quoted(key)}")]
        dead = [run.info.run_id for run in found if run.info.status in ("KILLED", "FAILED")]
        left = {(run_id, path) for run_id in dead for path in stored_checkpoints(run_id)} - mine
        if left:
            left -= {*users_of(listings(client, {}, (), {run_id for run_id, _ in left}))}
        for run_id, path in sorted(left):
            delete_checkpoint(run_id, path)
    except (MlflowException, UnlearnError, OSError) as error:
        note(f"Note: checkpoints of runs that were killed during this training are left ({first_line(error)}).")


def unlisted(client: MlflowClient, known: Mapping[str, str], record: RetirementRecord) -> list[StoredPlace | Unseen]:
    """Checkpoints that nothing tells from those of a version's training, and that no version lists.

    A training that was killed and has no version has seen what the version has, and its states may be the version's.

    Args:
        client: of both.
        known: where the files of each registered version are.
        record: of the version, which is to be retired or was.
    """
    found: list[StoredPlace | Unseen] = []
    for one in record.checkpoints_left:
        run_id, path = _key(one)
        try:
            found += [one] if path in stored_checkpoints(run_id) else []
        except UnlearnError as error:
            found.append(Unseen(one.place, first_line(error)))
    if record.trained_as is None:
        return found
    runs = {
        run.info.run_id: run
        for run in runs_where(client, f"tags.`{CHECKPOINTS_TAG}` LIKE '%'")
        if record.trained_as in run.data.tags.get(TRAINED_AS_TAG, record.trained_as).split()
    }
    remember(runs.values())
    stored = set[tuple[str, str]]()
    for run_id in runs:
        try:
            stored |= {(run_id, path) for path in stored_checkpoints(run_id)}
        except UnlearnError as error:
            found.append(Unseen(f"runs:/{run_id}/checkpoints", first_line(error)))
    # What goes with the version, or is named already.
    stored -= {*map(_key, record.checkpoints_left)} | {(one.run_id, one.path) for one in record.checkpoints}
    if stored:
        try:
            stored -= {*users_of(listings(client, known, record.versions, {run_id for run_id, _ in stored}))}
        except UnlearnError as error:
            return [*found, Unseen("checkpoints that no version lists", first_line(error))]
    counts = Counter(run_id for run_id, _ in stored)
    return found + [_left_in(runs[run_id], count) for run_id, count in sorted(counts.items())]


def _key(place: StoredPlace) -> tuple[str, str]:
    run_id, _, path = place.place.removeprefix("runs:/").partition("/")
    return run_id, path


def _left_in(run: Run, count: int) -> StoredPlace:
    alike = "was trained as it was" if TRAINED_AS_TAG in run.data.tags else "does not say what it was trained on"
    end = "its command still runs, or was killed" if run.info.status == "RUNNING" else f"it has ended {run.info.status}"
    what = "a checkpoint that no version lists" if count == 1 else f"{count} checkpoints that no version lists"
    return StoredPlace(
        place=f"{run.info.artifact_uri}/checkpoints",
        why=f"{what}, of run {run.info.run_id}, which {alike} ({end}): delete them if no command will continue "
        "with them",
    )


def listings(
    client: MlflowClient, known: Mapping[str, str], own: Collection[str], runs: Collection[str]
) -> dict[str, tuple[Kept, ...]]:
    """Version or LoggedModel that stays → the checkpoints that it lists.

    Whoever can take the tag from a version and from its LoggedModel, and has stored the model by another run, hides it.

    Args:
        client: of both.
        known: where the files of each registered version are.
        own: URIs of versions that go.
        runs: whose checkpoints matter.

    Raises:
        UnlearnError: one that has the tag cannot be read.
    """
    models = _models_listing(client, runs)
    going = [locate(known[uri]) for uri in own if uri in known]
    begun = min(client.get_run(run_id).info.start_time for run_id in runs) - _SKEW
    found: dict[str, tuple[Kept, ...]] = {}
    named = set[str]()
    for version in pages(lambda token: client.search_model_versions(max_results=PAGE, page_token=token)):
        uri, source = uri_of(version), str(version.source)
        model, tagged = models.get(source.removeprefix("models:/")), CHECKPOINTS_TAG in version.tags
        # One that was registered from files alone has no tag.
        from_files = not source.startswith("models:/m-") and version.creation_timestamp >= begun
        if uri in own or not (tagged or model is not None or from_files):
            continue
        if model is not None:
            named.add(model.model_id)
        location = known.get(uri) or str(client.get_model_version_download_uri(version.name, version.version))
        strict = retired(version) is None and (tagged or _lists(model))
        found[uri] = _listed_at(location, uri, "delete its entry (`delete_model_version`)", strict=strict)
    for model_id, model in models.items():
        here = locate(model.artifact_location.rstrip("/"))
        if model_id not in named and "same" not in {relation(here, one) for one in going}:
            uri = f"models:/{model_id}"
            found[uri] = _listed_at(here.uri, uri, "delete it (`delete_logged_model`)", strict=_lists(model))
    return found


def _models_listing(client: MlflowClient, runs: Collection[str]) -> dict[str, LoggedModel]:
    """LoggedModels that list checkpoints by their tag, and those that these runs have stored, by id."""
    experiments = experiment_ids(client)

    def search(where: str, token: str | None) -> PagedList[LoggedModel]:
        return client.search_logged_models(experiments, where, max_results=PAGE, page_token=token)

    listing, stored = f"tags.`{CHECKPOINTS_TAG}` LIKE '%'", f"source_run_id IN ({', '.join(map(quoted, sorted(runs)))})"
    return {model.model_id: model for where in (listing, stored) for model in pages(partial(search, where))}


def _lists(model: LoggedModel | None) -> bool:
    """Whether a LoggedModel says that it lists checkpoints, and all its files are stored."""
    return model is not None and CHECKPOINTS_TAG in model.tags and model.status == LoggedModelStatus.READY


def _listed_at(location: str, uri: str, way_out: str, *, strict: bool) -> tuple[Kept, ...]:
    """The checkpoints that the files at a location list; none where these are not ours, unless one has to know.

    Raises:
        UnlearnError: one has to, and they cannot be read.
    """
    try:
        return record_at(location).checkpoints
    except UnlearnError as error:
        if not strict:
            return ()
        raise UnlearnError(
            f"which checkpoints {uri} lists is not known: {error}; restore it, or {way_out}, and start again"
        ) from error


def _digest(run_id: str, path: str) -> str:
    with tempfile.TemporaryDirectory(prefix="mlflow-unlearn-") as folder:
        return file_digest(run_file(run_id, path, Path(folder)))


def by_run(checkpoints: Iterable[StoredCheckpoint]) -> Iterator[tuple[str, str]]:
    """Run → how many of them it has, in words."""
    for run_id, count in sorted(Counter(one.run_id for one in checkpoints).items()):
        yield run_id, f"{count} checkpoint{'' if count == 1 else 's'}"
