"""`retire`: remove a version's files for good, in an order in which nothing that is served is ever touched."""

import json
import os
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import mlflow
from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion, RegisteredModel
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.tracking import MlflowClient
from mlflow.utils.file_utils import local_file_uri_to_path

from mlflow_unlearn import config
from mlflow_unlearn.console import first_line, one_line, storable
from mlflow_unlearn.errors import AlreadyDone, Refused, UnlearnError, shortlist
from mlflow_unlearn.evidence.audit import REFERENCE_FILE
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
from mlflow_unlearn.registry import tracking
from mlflow_unlearn.registry.clients import registry_client
from mlflow_unlearn.registry.dead import killed
from mlflow_unlearn.registry.identity import whoami
from mlflow_unlearn.registry.lock import ModelLock, model_lock
from mlflow_unlearn.registry.versions import (
    RETIRED_TAG,
    UNFINISHED,
    can_be_read,
    read_artifact,
    registered_version,
    retired,
    unfinished,
)

_RECORD = "evidence/retirement.json"
_AGAIN = "look for the files there, and start the same command again"


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
        models: every LoggedModel of the store.
        known: where the files of each registered version are.
    """

    target: VersionExposure
    entries: Sequence[VersionExposure]
    aliases: Sequence[str]
    files: Sequence[str]
    model_id: str | None
    cached: Sequence[Path]
    references: Sequence[Run]
    models: Sequence[Logged]
    known: dict[str, str]

    @property
    def location(self) -> str:
        """Where the files lie."""
        return self.target.location.uri

    def steps(self) -> list[str]:
        """In words, in order."""
        steps = [
            *(f"remove the alias {alias}" for alias in self.aliases),
            *(f"mark {entry.uri} as retired" for entry in self.entries),
            *([f"delete the LoggedModel {self.model_id}"] if self.model_id is not None else []),
            *([f"delete all files at {self.location}"] if self.files else []),
            *(f"delete {path} from this machine's cache" for path in self.cached),
            *(f"delete the outputs of the reference of run {run.info.run_id}" for run in self.references),
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
        if serving or new:
            what = f"it is served by {', '.join(serving)}" if serving else f"{', '.join(sorted(new))} came or went"
            raise self._other(what)

    def check_before_deletion(self, client: MlflowClient, locks: Mapping[str, ModelLock]) -> None:
        """As `check`, and also what lies there.

        Raises:
            Refused: likewise, or there are other files.
        """
        self.check(client, locks, ())
        if added := {*entries_at(self.target.location)} - {*self.files}:
            raise self._other(f"{shortlist(sorted(added))} came to {self.location}")

    def _other(self, what: str) -> Refused:
        return Refused(f"{self.target.uri} is not what this plan was about any more: {what}; look at it again")


def _serving(entries: Sequence[VersionExposure], aliases: Collection[str]) -> list[str]:
    """Aliases but for those that are named, and endpoints."""
    serving = [alias for alias in _aliases(entries) if alias not in aliases]
    return serving + [f"the endpoint {name} ({url})" for entry in entries for name, url in entry.endpoints.items()]


def _aliases(entries: Sequence[VersionExposure]) -> list[str]:
    return [f"{entry.registered.name}@{alias}" for entry in entries for alias in entry.registered.aliases]


def retire(options: config.Retire) -> None:
    """Print what would be removed; with ``yes`` remove it, prove it, and record it.

    Raises:
        Refused: an alias or an endpoint still serves the version, or a copy of it, or it cannot be told apart from
            what is to stay.
    """
    if not options.yes:
        with tracking.read_only_client() as client:
            retirement = _retirement(client, options)
        print("\n".join(f"would {step}" for step in retirement.steps()))
        print("Nothing was done: --yes true does it, for good.")
        return
    with tracking.run("retire", options) as run_id, ExitStack() as stack:
        client = tracking.client()
        registry = registry_client(client)
        retirement = _retirement(client, options)
        names = sorted({entry.registered.name for entry in retirement.entries})  # all wait in the same order
        locks = {name: stack.enter_context(model_lock(client, name))[0] for name in names}
        retirement.check(client, locks, retirement.aliases)
        at = datetime.now(UTC).isoformat(timespec="seconds")
        mark = {"at": at, "by": whoami().display_name(), "run_id": run_id, "reason": options.reason}
        versions = [entry.uri for entry in retirement.entries]
        record: dict[str, Any] = storable({**mark, "versions": versions, "steps": retirement.steps()})
        record |= storable({"location": retirement.location, "files": [*retirement.files]})
        # Before the first deletion: if this cannot be written, nothing is lost.
        mlflow.log_dict({**record, "done": False}, _RECORD)
        # The mark before the aliases: if this is interrupted, the same command still knows them.
        _mark(registry, retirement, {**mark, UNFINISHED: [*retirement.aliases, *_begun(retirement.entries)]})
        removed: list[tuple[ModelVersion, str]] = []
        try:
            for entry in retirement.entries:
                for alias in entry.registered.aliases:
                    _remove_alias(registry, locks[entry.registered.name], entry, alias)
                    removed.append((entry.registered, alias))
            retirement.check_before_deletion(client, locks)
        except Refused:
            _as_before(registry, retirement, removed)
            raise
        if retirement.model_id is not None:
            _delete_logged_model(client, retirement.model_id)
            retirement.check_before_deletion(client, locks)
        if retirement.files:  # else MLflow would delete a file of that name
            _delete_files(retirement.location)
        for path in retirement.cached:
            path.unlink(missing_ok=True)
        for run in retirement.references:
            _delete_reference(run)
        if left := [entry.uri for entry in retirement.entries if can_be_read(entry.uri)]:
            raise UnlearnError(
                f"{', '.join(left)} can still be read after the deletion of {retirement.location}; {_AGAIN}"
            )
        mlflow.log_dict({**record, "done": True}, _RECORD)
        _mark(registry, retirement, mark)
        for step in retirement.steps():
            print(f"done: {step}")
        print("None of these URIs can be read any more.")
        if retirement.model_id is not None:
            print("What remains of the LoggedModel's entry goes with `mlflow gc` on the server.")


def _mark(registry: Any, retirement: Retirement, mark: Mapping[str, Any]) -> None:
    for entry in retirement.entries:
        registry.set_model_version_tag(entry.registered.name, entry.registered.version, RETIRED_TAG, json.dumps(mark))


def _as_before(registry: Any, retirement: Retirement, removed: Sequence[tuple[ModelVersion, str]]) -> None:
    """Put back what this command has changed of versions that keep their files."""
    for version, alias in removed:
        if alias not in registry.get_registered_model(version.name).aliases:  # else somebody has set it meanwhile
            registry.set_registered_model_alias(version.name, alias, str(version.version))
    for version in (entry.registered for entry in retirement.entries):
        if (mark := version.tags.get(RETIRED_TAG)) is None:
            registry.delete_model_version_tag(version.name, version.version, RETIRED_TAG)
        else:  # by a command that was interrupted, which may have deleted something
            registry.set_model_version_tag(version.name, version.version, RETIRED_TAG, mark)


def _begun(entries: Sequence[VersionExposure]) -> list[str]:
    """The aliases that an interrupted command has removed, or was about to."""
    marks = [unfinished(entry.registered) or [] for entry in entries]
    return [alias for mark in marks for alias in mark]


def _retirement(client: MlflowClient, options: config.Retire) -> Retirement:
    version = registered_version(client, options.model_uri)
    uri = f"models:/{version.name}/{version.version}"
    models, known = logged_models(client), dict[str, str]()
    target = exposure_of(client, version, models)
    # One that was interrupted is done again.
    if (how := retired(version)) is not None and unfinished(version) is None and is_gone(uri, target.location):
        if _by_a_killed_command(version):
            raise AlreadyDone(f"{uri} was {how}: this command had done so before it was killed.")
        raise UnlearnError(f"{uri} was {how}; there is nothing left to remove")
    _check_location(target)
    folder = model_folder(target.location)
    found = sharing(client, target, models, known)
    model_id = model_of(client, target, models, folder.model_id)
    _check_folder(target, folder)
    named = [alias.strip() for alias in (options.aliases or "").split(",") if alias.strip()]
    named = [alias if "@" in alias else f"{version.name}@{alias}" for alias in named]
    if unknown := [alias for alias in named if alias not in (*_aliases(found), *_begun(found))]:
        raise UnlearnError(f"aliases: {unknown[0]} does not point to {uri} or to a copy of it")
    if serving := _serving(found, named):
        raise Refused(
            f"{uri} is still served by {', '.join(serving)}: move the alias with `promote`, or name it in aliases=; "
            "of an endpoint remove the tag once it serves another version"
        )
    here = [*cached(found), *checkpoints(found)]
    trained = references(client, found)
    return Retirement(target, found, _aliases(found), folder.entries, model_id, here, trained, models, known)


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
            doubt = f"{path!r} is no folder"
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
    """What a command that was interrupted was about to delete there, by the record of the run that its mark names."""
    if unfinished(target.registered) is None:
        return set()
    try:
        run_id = str(load_json(target.registered.tags[RETIRED_TAG])["run_id"])
        record = load_json(read_artifact(run_id, _RECORD))
        of = (record["location"], target.uri in record["versions"], record["done"])
        return set(record["files"]) if of == (storable(target.location.uri), True, False) else set()
    except (MlflowException, OSError, ValueError, KeyError, TypeError):  # edited, or of an earlier release
        return set()


def _remove_alias(registry: Any, lock: ModelLock, entry: VersionExposure, alias: str) -> None:
    """Unless somebody has moved it to another version since these steps were drawn up."""
    registered = entry.registered
    now = lock.check().aliases.get(alias)
    if now is not None and str(now) != str(registered.version):
        raise Refused(f"{registered.name}@{alias} was moved to version {now} meanwhile: look at the plan again")
    registry.delete_registered_model_alias(registered.name, alias)


def _delete_logged_model(client: MlflowClient, model_id: str) -> None:
    try:
        client.delete_logged_model(model_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":  # else an interrupted command has done it
            raise


def _delete_reference(run: Run) -> None:
    """One file, of its outputs; the run stays.

    Raises:
        UnlearnError: the store does not delete it.
    """
    try:
        get_artifact_repository(run.info.artifact_uri).delete_artifacts(REFERENCE_FILE)
    except (NotImplementedError, MlflowException, OSError) as error:
        where = f"runs:/{run.info.run_id}/{REFERENCE_FILE}"
        raise UnlearnError(f"{where} cannot be deleted ({first_line(error)}); {_AGAIN}") from error


def _delete_files(location: str) -> None:
    """All of them, which the store has to confirm.

    Raises:
        UnlearnError: it cannot delete them, or lists some still.
    """
    repository = get_artifact_repository(location)
    try:
        repository.delete_artifacts()
        left = repository.list_artifacts()
    except (NotImplementedError, MlflowException, OSError) as error:
        reason = first_line(error)
        raise UnlearnError(f"the files at {location} cannot be deleted ({reason}); {_AGAIN}") from error
    if left:
        raise UnlearnError(f"{len(left)} entries are left at {location}; {_AGAIN}")
