"""From a measured result to a registered version: metrics, evidence, tags, table."""

from collections.abc import Mapping
from typing import Any

import mlflow
from mlflow.entities.model_registry import ModelVersion

from mlflow_unlearn import config, forget_requests, tracking
from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.evaluation import Metrics, Readings, compare, residual_accuracy
from mlflow_unlearn.job import Job, new_record
from mlflow_unlearn.loop import Epoch
from mlflow_unlearn.models import weights_digest
from mlflow_unlearn.progress import note
from mlflow_unlearn.registry import log_model, register, withdrawn_on_failure
from mlflow_unlearn.report import table
from mlflow_unlearn.report.evidence import describe, evidence
from mlflow_unlearn.unlearning import Result

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
    options: config.Reads,
    more_tags: Mapping[str, str] | None = None,
) -> ModelVersion:
    """Measure, log, register the new version with its evidence, mark the requests done, and show the table.

    ``readings`` are those of the models ``original``, ``unlearned`` and, where there is one, ``gold``; ``more_tags`` go
    to the version beside its own.
    """
    with tracking.timed("metrics"):
        columns = compare(readings, seed=recipe["seed"])
    record = new_record(job, options, method, recipe)
    with tracking.timed("save"):
        info = log_model(
            result.model,
            record,
            job.manifest(job.retain),
            folder=job.folder,
            source=job.version,
            example=job.example_without_forgotten(),
        )
    log_metrics(columns, model_ids={"unlearned": info.model_id, "original": job.version.model_id})
    after = columns["unlearned"]
    tags = {
        "unlearn.method": method,
        "unlearn.source_uri": job.version.uri,
        "unlearn.request_ids": ",".join(request.id for request in job.requests),
        "unlearn.run_id": run_id,
        "unlearn.weights_sha256": weights_digest(result.model),
        **(more_tags or {}),
    }
    if "prefix" in recipe:
        tags["unlearn.prefix"] = recipe["prefix"]
    if result.warnings:
        tags["unlearn.warning"] = "; ".join(result.warnings)
    residual = residual_accuracy(readings["unlearned"])
    if residual is not None and residual > INCOMPLETE:
        tags["unlearn.incomplete"] = f"accuracy {residual:.4f} on the wholly forgotten part of the forget set"
        note(f"Warning: the class is not forgotten: {tags['unlearn.incomplete']}; see docs/method.md.")
    description = describe(job, method, recipe, columns, incomplete=tags.get("unlearn.incomplete"))
    version = register(job.client, info, name, tags=tags, metrics=after, description=description)
    uri = f"models:/{name}/{version.version}"
    with withdrawn_on_failure(job.client, version):
        mlflow.log_dict(evidence(job, run_id, uri, method, recipe, result, columns), "evidence.json")
        table.show(columns)
        forget_requests.mark_done(job.client, job.requests, uri)
    print(f"Registered {name} version {version.version} from {job.version.uri}.")
    if job.version.model_id is None:
        print(f"Note: {job.version.uri} has no LoggedModel: its lineage is in the tags and in evidence.json alone.")
    return version


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
        # Without a wholly forgotten class nobody misses acc_test_forgotten.
        told = {
            k: v
            for k, v in metrics.missing.items()
            if k != "acc_test_forgotten" or metrics.counts["wholly_forgotten_classes"]
        }
        mlflow.set_tags({f"unlearn.missing.{name}.{key}": reason for key, reason in told.items()})
    counts = next(iter(columns.values())).counts
    mlflow.log_metrics({f"count.{key}": float(value) for key, value in counts.items()})
