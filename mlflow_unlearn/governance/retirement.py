"""What `retire` is about to do: to which version, its copies, its aliases and its files, or why it must not."""

import os
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion, RegisteredModel
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from mlflow.utils.file_utils import local_file_uri_to_path

from mlflow_unlearn import config
from mlflow_unlearn.console import one_line, storable
from mlflow_unlearn.errors import AlreadyDone, Refused, UnlearnError, shortlist
from mlflow_unlearn.governance.checkpoints import Removal, by_run, listed, listings, of_training, removal, users_of
from mlflow_unlearn.governance.deletion import RetirementRecord
from mlflow_unlearn.governance.files import Logged, logged_models
from mlflow_unlearn.governance.holders import (
    VersionExposure,
    cached,
    checkpoints,
    exposure_of,
    model_of,
    references,
    sharing,
)
from mlflow_unlearn.governance.location import FILE
from mlflow_unlearn.governance.model_folder import MLMODEL, ModelFolder, entries_at, is_gone, model_folder
from mlflow_unlearn.parsing import load_json
from mlflow_unlearn.registry.dead import killed
from mlflow_unlearn.registry.lock import ModelLock
from mlflow_unlearn.registry.uris import in_ranges
from mlflow_unlearn.registry.versions import RETIRED_TAG, read_artifact, registered_version, retired, unfinished
from mlflow_unlearn.spelling import spelled

RECORD = "evidence/retirement.json"


@dataclass(frozen=True)
class Retirement:
    """What is to be removed.

    Attributes:
        target: the version.
        entries: it and its copies, which share its files.
        aliases: NAME@ALIAS, to be removed first.
        files: names of what lies at its location.
        model_id: the LoggedModel.
        cached: outputs and checkpoints on this machine.
        references: runs with outputs of models that audits have trained on halves of what it knows.
        checkpoints: of trainings, and which of them stay.
        models: every LoggedModel of the store.
        known: where the files of each registered version are.
        trained_as: what tells the version's training from others; None where it came of none of ours.
        before: what an earlier command has recorded of the same files, before it was interrupted or found more of them.
        again: whether everything is done, and only the proof is missing.
    """

    target: VersionExposure
    entries: Sequence[VersionExposure]
    aliases: Sequence[str]
    files: Sequence[str]
    model_id: str | None
    cached: Sequence[Path]
    references: Sequence[Run]
    checkpoints: Removal
    models: Sequence[Logged]
    known: dict[str, str]
    trained_as: str | None = None
    before: RetirementRecord | None = None
    again: bool = False

    @property
    def location(self) -> str:
        """Where the files lie."""
        return self.target.location.uri

    def record(self) -> RetirementRecord:
        """What is known before the first step."""
        if self.again and self.before is not None:
            return self.before
        record = RetirementRecord(
            versions=tuple(entry.uri for entry in self.entries),
            steps=tuple(self.steps()),
            location=self.location,
            files=tuple(self.files),
            references=tuple(run.info.run_id for run in self.references),
            checkpoints=self.checkpoints.remove,
            checkpoints_kept=self.checkpoints.keep,
            checkpoints_left=self.checkpoints.left,
            trained_as=self.trained_as,
            model_id=self.model_id,
        )
        if (before := self.before) is None:
            return record
        references = dict.fromkeys((*before.references, *record.references))
        checkpoints = {(one.run_id, one.path): one for one in (*before.checkpoints, *record.checkpoints)}
        return record.model_copy(
            update={
                "references": tuple(references),
                "checkpoints": tuple(checkpoints.values()),
                "checkpoints_left": tuple(dict.fromkeys((*before.checkpoints_left, *record.checkpoints_left))),
                "trained_as": record.trained_as or before.trained_as,
                "model_id": record.model_id or before.model_id,
            }
        )

    def steps(self) -> list[str]:
        """In words, in order."""
        steps = [
            *(f"remove the alias {alias}" for alias in self.aliases),
            *(f"mark {entry.uri} as retired" for entry in self.entries),
            *([f"delete the LoggedModel {self.model_id}"] if self.model_id is not None else []),
            *([f"delete all files at {self.location}"] if self.files else []),
            *(f"delete {path} from this machine's cache" for path in self.cached),
            *(f"delete the outputs of the reference of run {run.info.run_id}" for run in self.references),
            *(f"delete {count} of run {run_id}" for run_id, count in by_run(self.checkpoints.remove)),
        ]
        return [one_line(step) for step in steps]

    def check(self, client: MlflowClient, locks: Mapping[str, ModelLock], aliases: Collection[str]) -> None:
        """Draw it up again: before each deletion, since not everybody asks for a lock.

        Args:
            client: of the registry.
            locks: those that are held, by the name of the registered model.
            aliases: those that may be there.

        Raises:
            Refused: there are others, or an endpoint, or other versions have the files now.
        """

        def registered(name: str) -> RegisteredModel:
            return locks[name].check() if name in locks else client.get_registered_model(name)

        entries = sharing(client, self.target, self.models, self.known, registered)
        serving = _serving(entries, aliases)
        new = {entry.uri for entry in entries} ^ {entry.uri for entry in self.entries}
        if self.checkpoints.remove:
            self._check_checkpoints(client)
        if serving or new:
            what = f"it is served by {', '.join(serving)}" if serving else f"{', '.join(sorted(new))} came or went"
            raise self.other(what)

    def _check_checkpoints(self, client: MlflowClient) -> None:
        """None of them is listed by another version now.

        Raises:
            Refused: one is.
        """
        going, runs = {entry.uri for entry in self.entries}, {one.run_id for one in self.checkpoints.remove}
        users = users_of(listings(client, self.known, going, runs))
        for one in self.checkpoints.remove:
            if found := users.get((one.run_id, one.path)):
                raise self.other(f"runs:/{one.run_id}/{one.path} is listed by {', '.join(in_ranges(found))}")

    def check_before_deletion(self, client: MlflowClient, locks: Mapping[str, ModelLock]) -> None:
        """As `check`, and also what lies there.

        Raises:
            Refused: likewise, or there are other files.
        """
        self.check(client, locks, ())
        if added := {*entries_at(self.target.location)} - {*self.files}:
            raise self.other(f"{shortlist(sorted(added))} came to {self.location}")

    def other(self, what: str) -> Refused:
        """The error about what came meanwhile."""
        return Refused(f"{self.target.uri} has changed since this plan: {what}; look at the new plan")


def _serving(entries: Sequence[VersionExposure], aliases: Collection[str]) -> list[str]:
    """Aliases but for those that are named, and endpoints."""
    serving = [alias for alias in _aliases(entries) if alias not in aliases]
    return serving + [f"the endpoint {name} ({url})" for entry in entries for name, url in entry.endpoints.items()]


def _aliases(entries: Sequence[VersionExposure]) -> list[str]:
    return [f"{entry.registered.name}@{alias}" for entry in entries for alias in entry.registered.aliases]


def begun(entries: Sequence[VersionExposure]) -> list[str]:
    """The aliases that an interrupted command has removed, or was about to."""
    marks = [unfinished(entry.registered) or [] for entry in entries]
    return [alias for mark in marks for alias in mark]


def drawn_up(client: MlflowClient, options: config.Retire) -> Retirement:
    """What the options ask for, as things are now; nothing is changed.

    Raises:
        UnlearnError: there is nothing to retire, or not what the options name.
        Refused: an alias or an endpoint still serves the version, or it cannot be told apart from what is to stay.
        AlreadyDone: the same command has done so, before it was killed.
    """
    version = registered_version(client, options.model_uri)
    uri = f"models:/{version.name}/{version.version}"
    models, known = logged_models(client), dict[str, str]()
    target = exposure_of(client, version, models)
    # One that was interrupted is done again.
    if (how := retired(version)) is not None and unfinished(version) is None and is_gone(uri, target.location):
        before = _record_of(target)
        if before is not None and before.done and before.telling and not (before.proof and before.proof.proven):
            found = sharing(client, target, models, known)
            return Retirement(target, found, (), (), None, (), (), Removal(), models, known, before=before, again=True)
        if _by_a_killed_command(version):
            raise AlreadyDone(f"{uri} was {how}: this command had done so before it was killed.", before)
        raise UnlearnError(f"{uri} was {how}; there is nothing left to remove", before)
    _check_location(target)
    folder = model_folder(target.location)
    found = sharing(client, target, models, known)
    model_id = model_of(client, target, models, folder.model_id)
    _check_folder(target, folder)
    named = [alias.strip() for alias in (options.aliases or "").split(",") if alias.strip()]
    named = [alias if "@" in alias else f"{version.name}@{alias}" for alias in named]
    if unknown := [alias for alias in named if alias not in (*_aliases(found), *begun(found))]:
        raise UnlearnError(f"aliases: {unknown[0]} does not point to {uri} or to a copy of it")
    if serving := _serving(found, named):
        raise Refused(
            f"{uri} is still served by {', '.join(serving)}: move the alias with `promote`, or name it in "
            f"{spelled('aliases')}; of an endpoint remove the tag once it serves another version"
        )
    training = of_training(folder.record)
    here = [*cached(found), *checkpoints(found, trained_as=training)]
    trained = references(client, found)
    before = _record_of(target) if unfinished(version) is not None else None
    kept = before.checkpoints if before is not None and not folder.is_model else listed(folder.record)
    ours = bool(kept) or folder.record is not None
    going = removal(client, known, [entry.registered for entry in found], kept) if ours else Removal()
    return Retirement(
        target,
        found,
        _aliases(found),
        folder.entries,
        model_id,
        here,
        trained,
        going,
        models,
        known,
        training,
        before,
    )


def _by_a_killed_command(version: ModelVersion) -> bool:
    """Whether a command of ours, which was killed as it ended, has retired a version."""
    with suppress(ValueError, KeyError, TypeError):  # the tag was edited
        return killed(load_json(version.tags[RETIRED_TAG])["run_id"])
    return False


def _check_location(target: VersionExposure) -> None:
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
        elif os.path.exists(path) and not os.path.isdir(path):
            doubt = f"{path!r} is not a folder"
    elif location.store == "runs://":
        doubt = f"the run of {location.uri} is gone"
    if doubt:
        raise Refused(
            f"{target.uri} cannot be retired: {doubt}; register its files by another URI, and delete this entry "
            "(`delete_model_version` leaves the files)"
        )


def _check_folder(target: VersionExposure, folder: ModelFolder) -> None:
    """Only a model is deleted: not a folder of others, and nothing that lies beside its files.

    Raises:
        Refused: something is no part of it.
    """
    if folder.is_model:
        foreign, whose = {*folder.foreign}, f"its {MLMODEL} does not name"
    else:  # maybe an interrupted command has deleted that
        foreign, whose = {*folder.foreign} - _left(target), f"without an {MLMODEL} beside it there is"
    if foreign:
        raise Refused(
            f"{target.uri} cannot be retired: not all at {target.location.uri} is a model's: {whose} "
            f"{shortlist(sorted(foreign))}; move elsewhere what is to stay, or delete the version's entry "
            "(`delete_model_version` leaves the files)"
        )


def _left(target: VersionExposure) -> set[str]:
    """What a command that was interrupted was about to delete there."""
    if unfinished(target.registered) is None:
        return set()
    record = _record_of(target)
    return {*record.files} if record is not None and not record.done else set()


def _record_of(target: VersionExposure) -> RetirementRecord | None:
    """What the run that a version's mark names has recorded of it; None where that is about other files, or edited."""
    try:
        run_id = str(load_json(target.registered.tags[RETIRED_TAG])["run_id"])
        record = RetirementRecord.model_validate(load_json(read_artifact(run_id, RECORD)))
    except (MlflowException, OSError, ValueError, KeyError, TypeError):  # edited, or of an earlier release
        return None
    same = record.location == storable(target.location.uri) and target.uri in record.versions
    return record if same else None
