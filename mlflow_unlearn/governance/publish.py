"""From a measured result to a registered version: metrics, evidence, tags, table."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import mlflow
from mlflow.tracking import MlflowClient

from mlflow_unlearn import config
from mlflow_unlearn.api import Result
from mlflow_unlearn.console import note, say
from mlflow_unlearn.engine.loop import Epoch
from mlflow_unlearn.engine.method import Method
from mlflow_unlearn.errors import Refused, UnlearnError
from mlflow_unlearn.evidence.policy import Policy, judge
from mlflow_unlearn.evidence.provenance import Provenance
from mlflow_unlearn.evidence.record import CARD, DIGEST_TAG, FILE, FOLDER, PLACES, REPORT, REPORT_TAG, Evidence, sha256
from mlflow_unlearn.evidence.signing import public_key, sign
from mlflow_unlearn.governance.evidence_builder import VersionCandidate, build, numbered
from mlflow_unlearn.metrics.catalog import METRICS
from mlflow_unlearn.metrics.outputs import Outputs
from mlflow_unlearn.metrics.suite import Metrics, compare, residual_accuracy
from mlflow_unlearn.registry import forget_requests, tracking
from mlflow_unlearn.registry.dead import of_run
from mlflow_unlearn.registry.digests import file_digests
from mlflow_unlearn.registry.flavor import NewModel, log_model
from mlflow_unlearn.registry.lock import ModelLock, model_lock
from mlflow_unlearn.registry.registration import (
    complete,
    describe_version,
    next_number,
    register,
)
from mlflow_unlearn.report import table
from mlflow_unlearn.report.card import model_card
from mlflow_unlearn.report.description import by_default, describe, people_tags
from mlflow_unlearn.report.page import Sample, moved, page
from mlflow_unlearn.session.new_version import example_without_forgotten, new_record, placed_of
from mlflow_unlearn.session.past import trained_as
from mlflow_unlearn.session.session import Session
from mlflow_unlearn.spelling import spelled

INCOMPLETE = 0.05
"""Accuracy on wholly forgotten classes above which class unlearning is called incomplete."""


def publish(
    session: Session,
    run_id: str,
    name: str,
    result: Result,
    provenance: Provenance,
    outputs: Mapping[str, Outputs],
    options: config.PublishOptions,
    lock: ModelLock | None = None,
    *,
    policy: Policy | None = None,
) -> Evidence:
    """Measure, log, register the new version with its evidence, mark the requests done, and show the table.

    Args:
        session: the source version, opened.
        run_id: of the command.
        name: of the registered model.
        result: of the unlearning.
        provenance: how it came about.
        outputs: of the models ``original``, ``unlearned`` and, where there is one, ``gold``.
        options: of the command.
        lock: of the work on the source version, if the command has it; else it is taken for the registration.
        policy: that it has to pass to be registered, but for what the policy requires of the record.

    Returns:
        The version's evidence.

    Raises:
        UnlearnError: the lock was lost meanwhile: another command may have fulfilled the requests.
        Refused: it does not pass the policy.
    """
    provenance = trained_as(session, provenance)
    with tracking.timed("metrics"):
        columns = compare(outputs, seed=provenance.seed)
    if (reason := columns["unlearned"].collapsed) is not None:
        note(f"Warning: the model has {reason}: its metrics are void, and no policy lets it pass.")
    client = session.client
    with tracking.timed("save"):
        record = new_record(session, options, provenance, result)
        new = NewModel(
            result.model,
            record,
            session.known_after(result.exactness),
            session.folder,
            example=example_without_forgotten(session),
            source=session.version,
            placed=placed_of(session, record),
        )
        info = log_model(client, new, run_id)
    log_metrics(columns, model_ids={"unlearned": info.model_id, "original": session.version.model_id})
    candidate = VersionCandidate(provenance, result, outputs, columns, _incomplete(outputs["unlearned"]))
    with tracking.timed("evidence"):
        stored = Path(mlflow.artifacts.download_artifacts(info.model_uri, dst_path=str(session.folder / "stored")))
        draft = build(session, run_id, candidate, name=name, model_id=info.model_id, files=file_digests(stored))
        log_parts(draft)
    if policy is not None:
        _check_passes(draft, policy, columns)

    def stored_as(number: str) -> tuple[Evidence, dict[str, str]]:
        evidence = numbered(draft, number)
        samples = _samples(session, outputs, options)
        return evidence, store(client, evidence, session.folder / FOLDER, samples, options.sign_key)

    # Before there is a version, so that none is ever without; its number is known, but for a coincidence.
    with tracking.timed("evidence.store"):
        evidence, digests = stored_as(next_number(client, name))
    tags = evidence.tags() | people_tags(evidence, None) | digests | record.tags()
    with _claimed(session, lock) as claim:
        if claim is not None:
            claim.check()
        version = register(client, info, name, tags=tags, description=describe(evidence), requests=session.requests)
        if str(version.version) != evidence.result.version:
            evidence, digests = stored_as(str(version.version))
            if (own := of_run(run_id)) is not None:
                own.add(evidence=digests[DIGEST_TAG])
            for key, value in digests.items():
                client.set_model_version_tag(name, version.version, key, value)
            describe_version(client, version, describe(evidence))
        table.show(columns)
        forget_requests.mark_done(client, session.requests, evidence.result.uri)
        complete(client, version)
    for what, values in evidence.chosen_on_validation():
        say(f"{what}: {values}")
    say(f"Registered {name} version {version.version} from {session.version.uri}.")
    claimed = evidence.exactness
    if claimed.covers is not None:
        say(f"{claimed.kind.capitalize()}: {claimed.covers}")
        if claimed.excludes:
            say("Not covered:", *(f"- {excluded}" for excluded in claimed.excludes))
    if session.version.model_id is None:
        say(f"Note: {session.version.uri} has no LoggedModel: its lineage is in the tags and in evidence.json alone.")
    return evidence


def _check_passes(draft: Evidence, policy: Policy, columns: Mapping[str, Metrics]) -> None:
    """Refuse to register what has passed on the validation set and does not on the test set.

    What a policy requires of a record or of an audit comes later.
    """
    verdict = judge(draft, policy.model_copy(update={"required": [], "audit": None}), signature=None)
    if not verdict.passed:
        table.show(columns)
        raise Refused(
            f"what passed the policy {policy.name!r} on the validation set does not on the test set: "
            f"{verdict.failures}; nothing was registered: give other {spelled('rungs')}, or another {spelled('seed')}"
        )


@contextmanager
def _claimed(session: Session, lock: ModelLock | None) -> Iterator[ModelLock | None]:
    """The lock of the work on the source version; None for one that is not registered."""
    version = session.version
    if lock is not None or version.name is None:
        yield lock
    else:
        with model_lock(session.client, version.name, version=version.version) as (own, _):
            yield own


def store(
    client: MlflowClient, evidence: Evidence, folder: Path, samples: Sequence[Sample], sign_key: str | None
) -> dict[str, str]:
    """Write the record and what is made from it beside the run and beside the model.

    Args:
        client: of the registry.
        evidence: complete.
        folder: for the files.
        samples: forgotten images that the report shows.
        sign_key: private EC key (PEM file), or None.

    Returns:
        Their digests, as tags of the version.

    Raises:
        UnlearnError: it is to be signed, and cannot be.
    """
    folder.mkdir(exist_ok=True)
    if sign_key is not None:
        evidence = evidence.model_copy(update={"public_key": public_key(sign_key)})
    (folder / FILE).write_text(evidence.to_json(), encoding="utf-8")
    (folder / CARD).write_text(model_card(evidence), encoding="utf-8")
    report = page(evidence, by_default(evidence), samples)
    (folder / REPORT).write_text(report, encoding="utf-8")
    if sign_key is not None:
        sign(folder, sign_key)
    mlflow.log_artifacts(str(folder), FOLDER)
    client.log_model_artifacts(evidence.result.model_id, str(folder), FOLDER)
    return {REPORT_TAG: sha256(report.encode()), DIGEST_TAG: evidence.sha256}


def log_parts(evidence: Evidence) -> None:
    """Metrics of each request and of their union, where they are measured apart."""
    parts = {f"request.{request.id}": request.metrics for request in evidence.requests} | {"union": evidence.union}
    mlflow.log_metrics(
        {
            f"{model}.{part}.{key}": value
            for part, models in parts.items()
            for model, measured in models.items()
            for key, value in measured.values.items()
        }
    )


def _incomplete(outputs: Outputs) -> str | None:
    residual = residual_accuracy(outputs)
    if residual is None or residual <= INCOMPLETE:
        return None
    reason = f"accuracy {residual:.4f} on the wholly forgotten part of the forget set"
    note(f"Warning: the class is not forgotten: {reason}; see docs/method.md.")
    return reason


def _samples(session: Session, outputs: Mapping[str, Outputs], options: config.PublishOptions) -> Sequence[Sample]:
    if not options.show_samples:
        return ()
    ids = session.manifest(session.forget).ids
    names = ids if session.salt is None else [""] * len(ids)
    return moved(outputs, cast(Any, session.splits.forget), names, session.view.classes)


def target_name(session: Session, register_as: str | None) -> str:
    """The name to register under.

    Raises:
        UnlearnError: the source is not a registered version and no name is given.
    """
    name = register_as or session.version.name
    if name is None:
        raise UnlearnError(
            f"{session.version.uri} is not a registered version: give {spelled('register_as')}, the name to register "
            "under"
        )
    return name


def nothing_to_unlearn(method: type[Method], result: Result) -> str:
    """Why a run that left the weights as they were is not an unlearning."""
    reason = method.nothing_to_unlearn(result.final)
    if reason is not None:
        return f"nothing to unlearn: {reason}"
    why = f" ({'; '.join(result.warnings)})" if result.warnings else ""
    return f"nothing was unlearned: {method.name} left every weight as it was{why}"


def log_epoch(method: type[Method], epoch: Epoch) -> None:
    """One epoch's record as metrics with a step, under the names that the method gives them; not where it stands."""
    values = {method.epoch_metrics.get(key, key): value for key, value in epoch.items() if key not in PLACES}
    mlflow.log_metrics(values, step=int(epoch["epoch"]))


def log_history(method: type[Method], result: Result) -> None:
    """All of a finished run, once the method's clock has stopped: many epochs would add the tracking server's time."""
    for epoch in result.history:
        log_epoch(method, epoch)
    log_final(method, result)


def log_result(method: type[Method], result: Result) -> None:
    """The hyperparameters of a finished run, and what is known of its model; its epochs were logged as they ended."""
    mlflow.log_params({f"unlearn.params.{key}": value for key, value in result.params.items()})
    log_final(method, result)


def log_final(method: type[Method], result: Result) -> None:
    """What is known of the returned model, one step after the last epoch; seconds of the whole."""
    values = {key: value for key, value in result.final.items() if key in method.final_metrics}
    mlflow.log_metrics(values, step=len(result.history))
    mlflow.log_metric("unlearn_seconds", result.seconds)


def log_metrics(columns: Mapping[str, Metrics], model_ids: Mapping[str, str | None]) -> None:
    """Metrics with the model's prefix, linked to its LoggedModel where there is one.

    What was not computed is a tag with the reason.
    """
    for name, metrics in columns.items():
        values = {f"{name}.{key}": value for key, value in metrics.items()}
        mlflow.log_metrics(values, model_id=model_ids.get(name))
        reasons = {
            key: reason
            for key, reason in metrics.missing.items()
            if not METRICS[key].classes_only or metrics.counts["wholly_forgotten_classes"]
        }
        mlflow.set_tags({f"unlearn.missing.{name}.{key}": reason for key, reason in reasons.items()})
    counts = next(iter(columns.values())).counts
    mlflow.log_metrics({f"count.{key}": float(value) for key, value in counts.items()})
