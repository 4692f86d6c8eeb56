"""From a measured result to a registered version: metrics, evidence, tags, table."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import mlflow
from mlflow.entities.model_registry import ModelVersion
from mlflow.tracking import MlflowClient

from mlflow_unlearn import config
from mlflow_unlearn.api import Result
from mlflow_unlearn.console import note
from mlflow_unlearn.engine.loop import Epoch
from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.evidence.policy import Policy, judge
from mlflow_unlearn.evidence.record import CARD, DIGEST_TAG, FILE, FOLDER, REPORT, REPORT_TAG, Evidence, sha256
from mlflow_unlearn.evidence.signing import sign
from mlflow_unlearn.governance.evidence_builder import Outcome, build, numbered
from mlflow_unlearn.metrics.catalog import METRICS
from mlflow_unlearn.metrics.outputs import Readings
from mlflow_unlearn.metrics.suite import Metrics, compare, residual_accuracy
from mlflow_unlearn.registry import forget_requests, tracking
from mlflow_unlearn.registry.digests import file_digests
from mlflow_unlearn.registry.flavor import log_model
from mlflow_unlearn.registry.versions import describe_version, register, withdrawn_on_failure
from mlflow_unlearn.report import table
from mlflow_unlearn.report.card import describe, model_card
from mlflow_unlearn.report.page import Sample, moved, page
from mlflow_unlearn.session.session import Job, new_record

INCOMPLETE = 0.05
"""Accuracy on wholly forgotten classes above which class unlearning is called incomplete."""


def publish(
    job: Job,
    run_id: str,
    name: str,
    result: Result,
    method: str,
    recipe: dict[str, Any],
    readings: Mapping[str, Readings],
    options: config.Publishes,
    selection: Mapping[str, str] | None = None,
) -> ModelVersion:
    """Measure, log, register the new version with its evidence, mark the requests done, and show the table.

    ``readings`` are those of the models ``original``, ``unlearned`` and, where there is one, ``gold``; ``selection``
    are the tags of the study that chose the setting.
    """
    with tracking.timed("metrics"):
        columns = compare(readings, seed=recipe["seed"])
    with tracking.timed("save"):
        info = log_model(
            result.model,
            new_record(job, options, method, recipe),
            job.manifest(job.retain),
            folder=job.folder,
            source=job.version,
            example=job.example_without_forgotten(),
        )
    log_metrics(columns, model_ids={"unlearned": info.model_id, "original": job.version.model_id})
    outcome = Outcome(method, recipe, result, readings, columns, selection, _incomplete(readings["unlearned"]))
    with tracking.timed("evidence"):
        stored = Path(mlflow.artifacts.download_artifacts(info.model_uri, dst_path=str(job.folder / "stored")))
        draft = build(job, run_id, outcome, name=name, model_id=info.model_id, files=file_digests(stored))
        log_parts(draft)
    version = register(job.client, info, name, tags=draft.tags())
    evidence = numbered(draft, str(version.version))
    with withdrawn_on_failure(job.client, version):
        with tracking.timed("evidence.store"):
            store(job.client, evidence, job.folder / FOLDER, _samples(job, readings, options), options.sign_key)
        table.show(columns)
        forget_requests.mark_done(job.client, job.requests, evidence.result.uri)
    print(f"Registered {name} version {version.version} from {job.version.uri}.")
    if job.version.model_id is None:
        print(f"Note: {job.version.uri} has no LoggedModel: its lineage is in the tags and in evidence.json alone.")
    return version


def store(
    client: MlflowClient, evidence: Evidence, folder: Path, samples: Sequence[Sample], sign_key: str | None
) -> None:
    """Write the record and what is made from it beside the run and beside the model; its digest goes to the version.

    Raises:
        UnlearnError: it is to be signed, and cannot be.
    """
    folder.mkdir()
    (folder / FILE).write_text(evidence.to_json(), encoding="utf-8")
    if sign_key is not None:
        sign(folder, sign_key)
    (folder / CARD).write_text(model_card(evidence), encoding="utf-8")
    verdict = judge(evidence, Policy(), signed=sign_key is not None)
    report = page(evidence, verdict, samples)
    (folder / REPORT).write_text(report, encoding="utf-8")
    mlflow.log_artifacts(str(folder), FOLDER)
    client.log_model_artifacts(evidence.result.model_id, str(folder), FOLDER)
    result = evidence.result
    client.set_model_version_tag(result.name, result.version, REPORT_TAG, sha256(report.encode()))
    client.set_model_version_tag(result.name, result.version, DIGEST_TAG, evidence.sha256)
    describe_version(client, result.name, result.version, describe(evidence))


def log_parts(evidence: Evidence) -> None:
    """Metrics of each request and of their union, where they are told apart."""
    parts = {f"request.{request.id}": request.metrics for request in evidence.requests} | {"union": evidence.union}
    mlflow.log_metrics(
        {
            f"{model}.{part}.{key}": value
            for part, models in parts.items()
            for model, measured in models.items()
            for key, value in measured.values.items()
        }
    )


def _incomplete(readings: Readings) -> str | None:
    residual = residual_accuracy(readings)
    if residual is None or residual <= INCOMPLETE:
        return None
    told = f"accuracy {residual:.4f} on the wholly forgotten part of the forget set"
    note(f"Warning: the class is not forgotten: {told}; see docs/method.md.")
    return told


def _samples(job: Job, readings: Mapping[str, Readings], options: config.Publishes) -> Sequence[Sample]:
    if not options.show_samples:
        return ()
    ids = job.manifest(job.forget).ids
    names = ids if job.salt is None else [""] * len(ids)
    return moved(readings, cast(Any, job.splits.forget), names, job.view.classes)


def target_name(job: Job, register_as: str | None) -> str:
    """The name to register under.

    Raises:
        UnlearnError: the source is no registered version and no name is given.
    """
    name = register_as or job.version.name
    if name is None:
        raise UnlearnError(f"{job.version.uri} is no registered version: give register_as=, the name to register under")
    return name


def nothing_to_unlearn(method: str, result: Result) -> str:
    """Why a run that left the weights as they were is no unlearning."""
    if "acc_val" not in result.final:
        why = f" ({'; '.join(result.warnings)})" if result.warnings else ""
        return f"nothing was unlearned: {method} left every weight as it was{why}"
    return known_no_better(result.final)


def known_no_better(final: Mapping[str, float]) -> str:
    """The sentence of LoTUS's stopping rule before the first pass."""
    shown = {"acc_forget": "acc_forget", "acc_val": "A_u"}
    return (
        "nothing to unlearn: the model knows these samples no better than unseen ones "
        f"({', '.join(f'{name} {final[key]:.4f}' for key, name in shown.items() if key in final)})"
    )


def log_epoch(epoch: Epoch) -> None:
    """One epoch's record as metrics with a step; LoTUS's constant acc_val is logged as a_u."""
    values = {("a_u" if key == "acc_val" else key): value for key, value in epoch.items() if key != "epoch"}
    mlflow.log_metrics(values, step=int(epoch["epoch"]))


def log_final(result: Result) -> None:
    """What is known of the returned model, one step after the last epoch; seconds of the whole."""
    values = {key: value for key, value in result.final.items() if key in ("acc_forget", "delta", "alpha")}
    mlflow.log_metrics(values, step=len(result.history))
    mlflow.log_metric("unlearn_seconds", result.seconds)


def log_metrics(columns: Mapping[str, Metrics], model_ids: Mapping[str, str | None]) -> None:
    """Metrics with the model's prefix, linked to its LoggedModel where there is one.

    What was not computed is a tag with the reason.
    """
    for name, metrics in columns.items():
        values = {f"{name}.{key}": value for key, value in metrics.items()}
        mlflow.log_metrics(values, model_id=model_ids.get(name))
        told = {
            key: reason
            for key, reason in metrics.missing.items()
            if not METRICS[key].classes_only or metrics.counts["wholly_forgotten_classes"]
        }
        mlflow.set_tags({f"unlearn.missing.{name}.{key}": reason for key, reason in told.items()})
    counts = next(iter(columns.values())).counts
    mlflow.log_metrics({f"count.{key}": float(value) for key, value in counts.items()})
