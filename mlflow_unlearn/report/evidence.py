"""Evidence of unlearning: one record of what was done and measured, and the words for the version's description."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from mlflow_unlearn.evaluation import Metrics
from mlflow_unlearn.job import Job
from mlflow_unlearn.models import weights_digest
from mlflow_unlearn.report.table import auc_reading, markdown
from mlflow_unlearn.tracking import system_facts
from mlflow_unlearn.unlearning import Result

LIMITS = (
    "Unlearning is approximate. These figures are evidence of how far the forgotten samples still show in the model's "
    "outputs, as far as the metrics see; they do not prove that the samples are gone. The source version still holds "
    "them."
)


def evidence(
    job: Job,
    run_id: str,
    uri: str,
    method: str,
    recipe: Mapping[str, Any],
    result: Result,
    columns: Mapping[str, Metrics],
) -> dict[str, Any]:
    """Everything that a third party needs to check the claim, with digests in the place of names."""
    source = job.view.source
    return {
        "schema_version": 1,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "limits": LIMITS,
        "run_id": run_id,
        "source": {
            "uri": job.version.uri,
            "model_id": job.version.model_id,
            "weights_sha256": weights_digest(job.module),
        },
        "result": {"uri": uri, "weights_sha256": weights_digest(result.model)},
        "requests": [{"id": request.id, "of": request.of, "run_id": request.run_id} for request in job.requests],
        "data": {
            "source": source.spec,
            "digest": source.digest,
            "transform": job.view.transform,
            "classes": list(job.view.classes),
            "forget": {"samples": len(job.forget), "sha256": job.forget_manifest.digest},
            "retain": {"samples": len(job.retain), "sha256": job.manifest(job.retain).digest},
        },
        "method": {
            "name": method,
            "hyperparameters": dict(recipe),
            "history": result.history,
            "final": dict(result.final),
        },
        "metrics": {
            name: {"values": dict(metrics), "not_computed": metrics.missing, "counts": metrics.counts}
            for name, metrics in columns.items()
        },
        "attack": "logistic regression (balanced) on the entropy of the softmax output: retain set against test set",
        "hardware": {"device": str(job.hardware.device), "precision": job.hardware.precision},
        "system": system_facts(),
    }


def frozen(prefix: str) -> str:
    """What a reviewer has to know of layers that were not trained."""
    return (
        f"**The layers before `{prefix}` were frozen:** what they have learned from the forgotten samples is still in "
        "them; see docs/prefix.md."
    )


def describe(
    job: Job, method: str, recipe: Mapping[str, Any], columns: Mapping[str, Metrics], *, incomplete: str | None
) -> str:
    """The version's description: what was done, whether it shows, what it cost, and what it does not prove."""
    before, after = columns["original"], columns["unlearned"]
    requests = ", ".join(f"`{request.id}`" for request in job.requests)
    settings = ", ".join(f"{key} = {value}" for key, value in recipe.items())
    cost = after["acc_test"] - before["acc_test"] if "acc_test" in after and "acc_test" in before else None
    return "\n\n".join(
        [
            *([f"**Incomplete: a class is not forgotten** ({incomplete})."] if incomplete else []),
            f"`{job.version.uri}` after unlearning {len(job.forget)} of {len(job.forget) + len(job.retain)} training "
            f"samples (request {requests}) with **{method}** ({settings}).",
            *([frozen(recipe["prefix"])] if "prefix" in recipe else []),
            f"Membership: {auc_reading(after)}."
            + (f" Test accuracy changed by {cost:+.4f}." if cost is not None else ""),
            LIMITS,
            # Last, since a long description is cut at its end.
            markdown(columns),
        ]
    )
