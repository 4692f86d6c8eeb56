"""Whether a deletion has deleted: what a version's files were, and where the same bytes are still stored."""

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial

from mlflow.entities import Experiment, ViewType
from mlflow.tracking import MlflowClient
from mlflow.utils.file_utils import local_file_uri_to_path
from pydantic import BaseModel, ConfigDict

from mlflow_unlearn.answer import CommandResult
from mlflow_unlearn.console import counted, first_line
from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.evidence.record import FOLDER
from mlflow_unlearn.governance.holders import VersionExposure
from mlflow_unlearn.governance.location import FILE, Location, locate
from mlflow_unlearn.governance.model_folder import is_gone
from mlflow_unlearn.governance.storage import StoredFile, Unseen, stored_files
from mlflow_unlearn.registry.clients import experiments, pages, quoted
from mlflow_unlearn.registry.network import persistently
from mlflow_unlearn.registry.versions import RETIRED_TAG, WEIGHTS_TAG, retired, unfinished
from mlflow_unlearn.registry.walk import uri_of

_SMALLEST = 1024
"""Bytes. Smaller files may equal others by chance, and hold no weights."""
_TEXT = (".txt", ".yaml", ".yml", ".json", ".csv", ".md", ".html", ".py", ".lock", ".toml", ".whl", ".sig", "MLmodel")
"""Ends of names of files that are the same for many models: requirements, code, examples, lists of samples."""


class Content(BaseModel):
    """A file of the version, as it was before the deletion; with its digest if it tells this model from others."""

    model_config = ConfigDict(frozen=True)

    path: str
    size: int | None
    sha256: str | None = None


class StoredCheckpoint(BaseModel):
    """A checkpoint of a training that went with the version; without a digest if its bytes are in one that stays too.

    Attributes:
        run_id: in whose artifacts it was.
        path: there.
        size: in bytes.
        sha256: of the file.
    """

    model_config = ConfigDict(frozen=True)

    run_id: str
    path: str
    size: int | None = None
    sha256: str | None = None


class StoredPlace(BaseModel):
    """A file, a version or a folder, and what is the matter with it."""

    model_config = ConfigDict(frozen=True)

    place: str
    why: str

    def __str__(self) -> str:
        """As it is printed."""
        return f"{self.place} ({self.why})"


class Proof(BaseModel):
    """What was found when all that can be looked at was looked at.

    Attributes:
        at: when.
        proven: whether everything was looked at and nothing was found.
        looked_at: the roots.
        files: how many files are stored there.
        not_looked_at: what was not, and why.
        found: where the weights still are, and the way out.
        checkpoints: that no version lists and nothing tells from those of its training, and the way out.
    """

    model_config = ConfigDict(frozen=True)

    at: str
    proven: bool
    looked_at: tuple[str, ...]
    files: int
    not_looked_at: tuple[StoredPlace, ...]
    found: tuple[StoredPlace, ...]
    checkpoints: tuple[StoredPlace, ...] = ()

    def summary(self) -> str:
        """In one sentence."""
        looked = f"{counted(self.files, 'file')} in {counted(len(self.looked_at), 'artifact root')}"
        if self.proven:
            return f"Proven: none of {looked} has its weights."
        why = " and ".join(
            ([f"{counted(len(self.found), 'copy')} {_were(len(self.found))} found"] if self.found else [])
            + (["checkpoints are left"] if self.checkpoints else [])
            + (["not everything could be looked at"] if self.not_looked_at else [])
        )
        return f"Not proven, since {why}: {looked} {_were(self.files)} looked at."


def _were(number: int) -> str:
    return "was" if number == 1 else "were"


class RetirementRecord(CommandResult):
    """What `retire` has done, or would do: ``evidence/retirement.json`` of its run.

    Attributes:
        at: when; None in a plan.
        by: who.
        run_id: of the command that looked last.
        reason: as it was given.
        versions: that had these files.
        steps: in words, in order.
        location: where the files were.
        files: names at its top.
        contents: all of them.
        references: runs whose outputs of references went with them.
        checkpoints: of trainings that went with them, which no version that stays lists.
        checkpoints_kept: those that stay, and which versions list them.
        checkpoints_left: those that stay although no version lists them, and why.
        trained_as: what tells its training from others; None of what came of no training of ours.
        model_id: the LoggedModel.
        same_weights: other versions whose tag names the same weights, before the first step.
        done: whether all steps are done.
        proof: None until that was looked for.
        gc: the command that removes what is left of the LoggedModel's entry; None where nothing is.
        out_of_reach: what no command can remove from here.
    """

    # Written by other releases too.
    model_config = ConfigDict(frozen=True, extra="ignore")

    at: str | None = None
    by: str | None = None
    run_id: str | None = None
    reason: str | None = None
    versions: tuple[str, ...]
    steps: tuple[str, ...]
    location: str
    files: tuple[str, ...]
    contents: tuple[Content, ...] = ()
    references: tuple[str, ...] = ()
    checkpoints: tuple[StoredCheckpoint, ...] = ()
    checkpoints_kept: tuple[StoredPlace, ...] = ()
    checkpoints_left: tuple[StoredPlace, ...] = ()
    trained_as: str | None = None
    model_id: str | None = None
    same_weights: tuple[str, ...] = ()
    done: bool = False
    proof: Proof | None = None
    gc: str | None = None
    out_of_reach: tuple[str, ...] = ()

    @property
    def telling(self) -> tuple[Content | StoredCheckpoint, ...]:
        """The files that tell this model from others, and its training from other ones."""
        files = tuple(content for content in self.contents if content.sha256 is not None)
        return files + tuple(checkpoint for checkpoint in self.checkpoints if checkpoint.sha256 is not None)


def contents_of(location: Location) -> tuple[Content, ...]:
    """A version's files, and digests of those that tell it from others: read in full, before anything is deleted.

    Raises:
        UnlearnError: they cannot be listed or read.
    """
    found = []
    for file in stored_files(location):
        if isinstance(file, Unseen):
            if file.older:
                continue  # named when the deletion is proven
            raise UnlearnError(
                f"what is stored at {file.place} cannot be looked at ({file.why}), so that its deletion could not be "
                "proven: get access to it, and start again"
            )
        if file.older is None:
            found.append(Content(path=file.path, size=file.size, sha256=_digest(file) if _tells(file) else None))
    return tuple(found)


def _digest(file: StoredFile) -> str:
    try:
        return file.digest()
    except Exception as error:  # what a store's client raises
        raise UnlearnError(
            f"{file.place} cannot be read ({first_line(error)}), so that its copies could not be found: "
            "get access to it, and start again"
        ) from error


def _tells(file: StoredFile) -> bool:
    return (
        (file.size is None or file.size >= _SMALLEST)
        and not file.path.endswith(_TEXT)
        and not file.path.startswith((f"{FOLDER}/", "code/"))
    )


def same_weights(client: MlflowClient, entries: Sequence[VersionExposure], known: Mapping[str, str]) -> list[str]:
    """Other versions whose tag names the same weights, but for those that are gone.

    Args:
        client: of the registry.
        entries: the version, and those that have its files.
        known: where the files of each registered version are.
    """
    own, digests = {entry.uri for entry in entries}, {entry.registered.tags.get(WEIGHTS_TAG) for entry in entries}
    found = []
    for digest in sorted(filter(None, digests)):
        search = partial(client.search_model_versions, f"tags.`{WEIGHTS_TAG}` = {quoted(digest)}")
        for version in pages(lambda token, search=search: search(page_token=token)):  # type: ignore[misc]
            uri = uri_of(version)
            ended = retired(version) is not None and unfinished(version) is None
            if uri not in own and not (ended and uri in known and is_gone(uri, locate(known[uri]))):
                found.append(uri)
    return found


def prove(
    client: MlflowClient,
    record: RetirementRecord,
    entries: Sequence[VersionExposure],
    known: Mapping[str, str],
    kept: Sequence[Unseen],
    left: Sequence[StoredPlace | Unseen] = (),
) -> Proof:
    """Look for a version's weights in every artifact root and in the registry.

    Only files of the same size are read.

    Args:
        client: of both.
        record: of the retirement, with the files as they were.
        entries: the version, and those that had its files.
        known: where the files of each registered version are.
        kept: what a bucket has kept of its files.
        left: checkpoints that nothing tells from those of its training, and where that could not be looked at.
    """
    versions = {uri: locate(source) for uri, source in known.items()}
    roots, unseen = _roots(client, versions, {entry.uri for entry in entries} | _retired(client))
    looked_at, files, found, owned = list[str](), 0, dict[str, StoredPlace](), set[str]()
    for root in roots if record.telling else ():
        looked = True
        for file in stored_files(root):
            if isinstance(file, Unseen):
                unseen.append(file)
                looked &= file.place != root.uri
                continue
            files += 1
            try:
                path = _equal(file, record.telling)
            except FileNotFoundError:  # deleted meanwhile
                continue
            except Exception as error:  # what a store's client raises
                unseen.append(Unseen(file.place, first_line(error)))
                continue
            if path is not None:
                owners = _owners(file, versions)
                owned.update(owners)
                found[file.place] = StoredPlace(
                    place=file.place, why=f"the same bytes as {path}: {_way_out(file, owners)}"
                )
        if looked:
            looked_at.append(root.uri)
    if not record.telling:
        why = f"no file of it that is not text has {_SMALLEST} bytes, so that copies were not looked for"
        unseen.append(Unseen(f"copies of {entries[0].uri}", why))
    unseen += [each for each in left if isinstance(each, Unseen)] + [each for each in kept if each.older]
    checkpoints = tuple(each for each in left if isinstance(each, StoredPlace))
    found |= {each.place: StoredPlace(place=each.place, why=each.why) for each in kept if not each.older}
    for uri in same_weights(client, entries, known):
        if uri not in owned:
            found[uri] = StoredPlace(place=uri, why="its tag names the same weights: retire it too")
    return Proof(
        at=datetime.now(UTC).isoformat(timespec="seconds"),
        proven=not (found or unseen or checkpoints),
        looked_at=tuple(looked_at),
        files=files,
        not_looked_at=tuple(StoredPlace(place=each.place, why=each.why) for each in dict.fromkeys(unseen)),
        found=tuple(found.values()),
        checkpoints=checkpoints,
    )


def _retired(client: MlflowClient) -> set[str]:
    """The versions whose retirement is finished."""
    search = partial(client.search_model_versions, f"tags.`{RETIRED_TAG}` LIKE '%'")
    found = pages(lambda token: search(page_token=token))
    return {uri_of(version) for version in found if unfinished(version) is None}


def out_of_reach(location: Location) -> tuple[str, ...]:
    """What no command can remove from here, and what may be there."""
    kept = "snapshots of the file system" if location.store == FILE else f"what {location.store} replicates elsewhere"
    if location.store != FILE and not location.store.startswith("s3://"):
        kept = f"older versions of objects behind {location.store}, if it keeps some"
    return (
        "experiments that this user may not read",
        "backups of the tracking database and of the artifacts",
        kept,
        "downloads, exports, and caches of other machines",
    )


def _equal(file: StoredFile, telling: Sequence[Content | StoredCheckpoint]) -> str | None:
    """The path of the file of the version that has the same bytes; only one of the same size is read."""
    alike = [content for content in telling if None in (file.size, content.size) or file.size == content.size]
    digest = file.digest() if alike else None
    return next((content.path for content in alike if content.sha256 == digest), None)


def _owners(file: StoredFile, versions: Mapping[str, Location]) -> list[str]:
    """The registered versions with that file, which nobody reads where it is only an older version of an object."""
    here = locate(file.uri)
    holders = (
        uri for uri, each in versions.items() if not each.doubt and each.store == here.store and each.contains(here)
    )
    return sorted(holders) if file.older is None else []


def _way_out(file: StoredFile, owners: Sequence[str]) -> str:
    if file.older is not None:
        return "delete this version of the object"
    return f"retire {' and '.join(owners)} too" if owners else "delete it"


def _roots(
    client: MlflowClient, versions: Mapping[str, Location], gone: Collection[str]
) -> tuple[list[Location], list[Unseen]]:
    """Where artifacts are: of experiments, deleted ones too, and of versions that are stored elsewhere.

    Args:
        client: of both.
        versions: where the files of each registered version are.
        gone: those whose files were deleted by us.

    Returns:
        Folders of which none is inside another, and those that are not on this machine although something was stored.
    """
    found: list[tuple[Location, Callable[[], bool], bool]] = [
        *((locate(e.artifact_location), partial(_is_used, client, e), True) for e in experiments(client)),
        *((at, partial(_is_elsewhere, at) if uri in gone else lambda: True, False) for uri, at in versions.items()),
    ]
    roots: dict[tuple[str, tuple[str, ...]], Location] = {}
    hidden: dict[tuple[str, tuple[str, ...]], Unseen] = {}
    for location, was_used, of_experiment in sorted(found, key=lambda each: len(each[0].parts)):
        key = (location.uri if location.doubt else location.store, location.parts)
        around = {(key[0], location.parts[:length]) for length in range(len(location.parts) + 1)}
        if not around.isdisjoint(hidden):
            continue
        inside = not around.isdisjoint(roots)
        if inside and not of_experiment:  # an experiment's may have been moved out of one that is still there
            continue
        if _holds_nothing(location):
            if was_used():
                hidden[key] = Unseen(location.uri, "there is no such folder on this machine, or nothing is in it")
        elif not inside:
            roots[key] = location
    return list(roots.values()), list(hidden.values())


def _holds_nothing(location: Location) -> bool:
    """Whether a folder of this machine is not there, or is as empty as where nothing is mounted."""
    if location.doubt or location.store != FILE:
        return False
    try:
        with os.scandir(local_file_uri_to_path(location.uri)) as entries:
            return next(entries, None) is None
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:  # it is there, and is named when it is looked at
        return False


def _is_elsewhere(deleted: Location) -> bool:
    """Whether a folder from which we have deleted everything may be another machine's."""
    return not os.path.isdir("/" + "/".join(deleted.parts[:-1]))


def _is_used(client: MlflowClient, experiment: Experiment) -> bool:
    """Whether something may have been stored in an experiment's folder: whether it has runs or LoggedModels."""
    ids = [experiment.experiment_id]
    runs = partial(client.search_runs, ids, run_view_type=ViewType.ALL, max_results=1)
    return bool(persistently(runs) or persistently(partial(client.search_logged_models, ids, max_results=1)))
