"""`retire`: remove a version's files for good, in an order in which nothing that is served is ever touched."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from functools import partial
from typing import Any

import mlflow
from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.tracking import MlflowClient

from mlflow_unlearn import config
from mlflow_unlearn.answer import found_so_far
from mlflow_unlearn.console import first_line, note, one_line, say, say_command, storable
from mlflow_unlearn.errors import Refused, UnlearnError
from mlflow_unlearn.evidence.audit import REFERENCE_FILE
from mlflow_unlearn.governance.checkpoints import Removal, by_run, unlisted
from mlflow_unlearn.governance.deletion import (
    RetirementRecord,
    StoredPlace,
    contents_of,
    out_of_reach,
    prove,
    same_weights,
)
from mlflow_unlearn.governance.garbage import delete_entry, gc_command, gc_warning
from mlflow_unlearn.governance.holders import VersionExposure, cached, checkpoints
from mlflow_unlearn.governance.location import Location, locate
from mlflow_unlearn.governance.retirement import RECORD, Retirement, begun, drawn_up
from mlflow_unlearn.governance.storage import remove_object_versions
from mlflow_unlearn.parsing import load_json
from mlflow_unlearn.registry import tracking
from mlflow_unlearn.registry.checkpoints import delete_checkpoint, stored_checkpoints
from mlflow_unlearn.registry.clients import registry_client
from mlflow_unlearn.registry.forget_requests import has_pending
from mlflow_unlearn.registry.identity import whoami
from mlflow_unlearn.registry.lock import ModelLock, model_lock
from mlflow_unlearn.registry.network import persistently
from mlflow_unlearn.registry.versions import RETIRED_TAG, UNFINISHED, can_be_read
from mlflow_unlearn.spelling import spelled

_AGAIN = "look for the files there, and run the same command again"


def retire(options: config.Retire) -> RetirementRecord:
    """Print what would be removed; with ``yes`` remove it, prove it, and record it.

    Raises:
        Refused: an alias or an endpoint still serves the version, or a copy of it, or it cannot be told apart from
            what is to stay; or its files are deleted, and the same bytes are stored elsewhere.
    """
    if options.yes:
        # Outside of the run, which makes a sentence of what a store raises.
        with ExitStack() as outcome, tracking.prepared("retire", options) as run:
            client = tracking.client()
            retirement, record = _carried_out(client, options, run, outcome)
            return _proven(client, retirement, record, outcome)
    with tracking.read_only_client() as client:
        retirement = drawn_up(client, options)
        others = same_weights(client, retirement.entries, retirement.known)
        record = retirement.record().model_copy(update={"same_weights": tuple(others)})
        left = [one for one in unlisted(client, retirement.known, record) if isinstance(one, StoredPlace)]
    steps = (f"look again for the weights of {', '.join(record.versions)}",) if retirement.again else record.steps
    say(*(f"would {step}" for step in steps))
    _name_kept(record)
    if has_pending(retirement.target.registered):
        uri = retirement.target.uri
        note(f"Note: {uri} has a pending request, which nothing will carry out once {uri} is retired: see `requests`.")
    if others:
        say(one_line(f"The same weights remain in {', '.join(others)}, by their tags: retire these too."))
    for one in left:
        say(one_line(f"The deletion cannot be proven while these remain: {one}."))
    say(f"Nothing was done: add {spelled('yes', True)} to do it; this cannot be undone.")
    return record


def _carried_out(
    client: MlflowClient, options: config.Retire, run: tracking.CommandRun, outcome: ExitStack
) -> tuple[Retirement, RetirementRecord]:
    """All steps, or none where there is only to look again.

    Args:
        client: of both.
        options: of the command.
        run: its own.
        outcome: around the run; an error that leaves it takes the record along, once there is one.
    """
    registry = registry_client(client)
    retirement = drawn_up(client, options)
    run_id = run.begin(retirement.target.registered)
    with ExitStack() as stack:
        names = sorted({entry.registered.name for entry in retirement.entries})  # all wait in the same order
        locks = {name: stack.enter_context(model_lock(client, name))[0] for name in names}
        target = retirement.target.registered
        if client.get_model_version(target.name, target.version).tags.get(RETIRED_TAG) != target.tags.get(RETIRED_TAG):
            # By the command that had the lock.
            retirement = drawn_up(client, options)
            if {entry.registered.name for entry in retirement.entries} != {*names}:
                raise retirement.other("it has just been marked as retired")
        if retirement.again:
            return retirement, retirement.record().model_copy(update={"run_id": run_id, "proof": None})
        retirement.check(client, locks, retirement.aliases)
        at = datetime.now(UTC).isoformat(timespec="seconds")
        mark = {"at": at, "by": whoami().display_name(), "run_id": run_id, "reason": options.reason}
        contents = {content.path: content for content in contents_of(retirement.target.location)}
        if retirement.before is not None:  # some are deleted already
            contents |= {content.path: content for content in retirement.before.contents}
        others = same_weights(client, retirement.entries, retirement.known)
        known = {**mark, "contents": tuple(contents.values()), "same_weights": tuple(others)}
        record = retirement.record().model_copy(update=known)
        outcome.enter_context(found_so_far(lambda: record))
        # Before the first deletion: if this cannot be written, nothing is lost.
        _log(record)
        # The mark before the aliases: if this is interrupted, the same command still knows them.
        _mark(registry, retirement, {**mark, UNFINISHED: [*retirement.aliases, *begun(retirement.entries)]})
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
        _delete_checkpoints(retirement.checkpoints)
        if left := [entry.uri for entry in retirement.entries if can_be_read(entry.uri)]:
            raise UnlearnError(
                f"{', '.join(left)} can still be read after the deletion of {retirement.location}; {_AGAIN}"
            )
        record = record.model_copy(update={"done": True})
        _log(record)
        _mark(registry, retirement, mark)
    for step in record.steps:
        say(f"done: {step}")
    _name_kept(record)
    say("None of these URIs can be read now.")
    return retirement, record


def _proven(
    client: MlflowClient, retirement: Retirement, record: RetirementRecord, outcome: ExitStack
) -> RetirementRecord:
    """Remove what stores keep of what was deleted, look for copies of it everywhere, and record what was found.

    Args:
        client: of both.
        retirement: which is carried out.
        record: of it.
        outcome: around the run; an error that leaves it takes the record along.

    Raises:
        Refused: there is some.
    """
    outcome.enter_context(found_so_far(lambda: record))
    location = retirement.target.location
    kept = remove_object_versions(location, [content.path for content in record.contents])
    for run_id in record.references:
        if (artifacts := _artifacts_of(client, run_id)) is not None:
            kept += remove_object_versions(artifacts, [REFERENCE_FILE])
    for run_id, _ in by_run(record.checkpoints):
        if (artifacts := _artifacts_of(client, run_id)) is not None:
            kept += remove_object_versions(artifacts, [one.path for one in record.checkpoints if one.run_id == run_id])
    entries, training = retirement.entries, retirement.trained_as
    for path in (*cached(entries), *checkpoints(entries, trained_as=training)):  # of commands that ran meanwhile
        path.unlink(missing_ok=True)
    gone = record.model_id is None or delete_entry(client, record.model_id, location)
    left = unlisted(client, retirement.known, record)
    proof = prove(client, record, retirement.entries, retirement.known, kept, left)
    result = {"proof": proof, "gc": None if gone else gc_command(str(record.model_id))}
    record = record.model_copy(update={**result, "out_of_reach": out_of_reach(location)})
    _log(record)
    if retirement.again:
        _mark_again(registry_client(client), retirement, str(record.run_id))
    say(one_line(proof.summary()))
    for place in proof.not_looked_at:
        say(one_line(f"Not searched: {place}"))
    if record.gc is not None:
        say("To remove what is left of the LoggedModel's entry, which has no file:")
        say_command(record.gc)
        say(f"Before that, check what should stay: {gc_warning(client)}.")
    say(f"Out of reach from here: {'; '.join(record.out_of_reach)}.")
    copies = [("the same bytes are still stored", proof.found), ("checkpoints are left", proof.checkpoints)]
    if still := [f"{what}: {'; '.join(map(str, of[:10]))}{_more(of)}" for what, of in copies if of]:
        raise Refused(
            f"{', '.join(record.versions)}: retired, and {'; and '.join(still)}; after that, start the same command "
            "again"
        )
    return record


def _name_kept(record: RetirementRecord) -> None:
    """Which checkpoints stay, and for which versions."""
    for why, count in Counter(one.why for one in record.checkpoints_kept).items():
        say(one_line(f"{count} of its checkpoints {'stays' if count == 1 else 'stay'}, {why}."))


def _artifacts_of(client: MlflowClient, run_id: str) -> Location | None:
    """Where a run's are; None once it is purged from the database, as every deleted run may be."""
    try:
        return locate(persistently(partial(client.get_run, run_id)).info.artifact_uri)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None


def _more(found: Sequence[object]) -> str:
    return f"; … ({len(found)} in all, see {RECORD} of the run)" if len(found) > 10 else ""


def _log(record: RetirementRecord) -> None:
    mlflow.log_dict(storable(record.model_dump(mode="json")), RECORD)


def _mark(registry: Any, retirement: Retirement, mark: Mapping[str, Any]) -> None:
    for entry in retirement.entries:
        registry.set_model_version_tag(entry.registered.name, entry.registered.version, RETIRED_TAG, json.dumps(mark))


def _mark_again(registry: Any, retirement: Retirement, run_id: str) -> None:
    """Name the run that has looked last, in the marks that name the one before."""
    before = retirement.record().run_id
    for version in (entry.registered for entry in retirement.entries):
        with suppress(KeyError, ValueError, TypeError):  # no mark, or one that was edited
            mark = load_json(version.tags[RETIRED_TAG])
            if mark["run_id"] == before:
                tag = json.dumps({**mark, "run_id": run_id})
                registry.set_model_version_tag(version.name, version.version, RETIRED_TAG, tag)


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


def _remove_alias(registry: Any, lock: ModelLock, entry: VersionExposure, alias: str) -> None:
    """Unless somebody has moved it to another version since these steps were drawn up."""
    registered = entry.registered
    now = lock.check().aliases.get(alias)
    if now is not None and str(now) != str(registered.version):
        raise Refused(f"{registered.name}@{alias} has just been moved to version {now}: look at the new plan")
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
    except Exception as error:  # a store's client raises whatever it likes
        where = f"runs:/{run.info.run_id}/{REFERENCE_FILE}"
        raise UnlearnError(f"{where} cannot be deleted ({first_line(error)}); {_AGAIN}") from error


def _delete_checkpoints(removal: Removal) -> None:
    """Of all runs, which the store has to confirm.

    Raises:
        UnlearnError: it cannot delete one, or lists it still.
    """
    try:
        for one in removal.remove:
            delete_checkpoint(one.run_id, one.path)
        left = [one for one in removal.remove if one.path in stored_checkpoints(one.run_id)]
    except Exception as error:  # a store's client raises whatever it likes
        raise UnlearnError(f"checkpoints cannot be deleted ({first_line(error)}); {_AGAIN}") from error
    if left:
        raise UnlearnError(f"the checkpoint runs:/{left[0].run_id}/{left[0].path} is still there; {_AGAIN}")


def _delete_files(location: str) -> None:
    """All of them, which the store has to confirm.

    Raises:
        UnlearnError: it cannot delete them, or lists some still.
    """
    repository = get_artifact_repository(location)
    try:
        repository.delete_artifacts()
        left = repository.list_artifacts()
    except Exception as error:  # a store's client raises whatever it likes
        reason = first_line(error)
        raise UnlearnError(f"the files at {location} cannot be deleted ({reason}); {_AGAIN}") from error
    if left:
        raise UnlearnError(f"{len(left)} of the entries are left at {location}; {_AGAIN}")
