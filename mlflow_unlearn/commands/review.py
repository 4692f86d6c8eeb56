"""`review`: judge a version by a policy and record the verdict."""

import json
from datetime import UTC, datetime

import mlflow

from mlflow_unlearn import config
from mlflow_unlearn.errors import Refused
from mlflow_unlearn.evidence.policy import judge, read_policy
from mlflow_unlearn.evidence.record import FOLDER, REPORT, sha256
from mlflow_unlearn.evidence.review import TAG, VERDICT_TAG, ReviewRecord, numbers
from mlflow_unlearn.governance.integrity import examine
from mlflow_unlearn.registry import tracking
from mlflow_unlearn.registry.identity import whoami
from mlflow_unlearn.report import table
from mlflow_unlearn.report.page import page


def review(options: config.Review) -> None:
    """Judge the evidence, print each rule, and record the verdict in a run and on the version.

    Raises:
        Refused: the verdict is fail, or there is nothing that can be judged.
    """
    with tracking.run("review", options) as run_id, tracking.scratch() as folder:
        policy = read_policy(options.policy)
        client = tracking.client()
        examined = examine(client, options.model_uri, folder, key=options.key)
        examined.refuse_differences("cannot be reviewed")
        verdict = judge(examined.evidence, policy, signature=examined.signature)
        name, version = examined.registered.name, str(examined.registered.version)
        reviewed = ReviewRecord(
            n=max(numbers(examined.registered.tags), default=0) + 1,
            at=datetime.now(UTC).isoformat(timespec="seconds"),
            by=whoami(),
            name=name,
            version=version,
            weights_sha256=examined.evidence.result.weights_sha256,
            evidence_sha256=examined.sha256,
            policy=policy,
            verdict=verdict,
        )
        mlflow.log_text(reviewed.to_json(), reviewed.file)
        recorded = f"review {reviewed.n} by {reviewed.by.display_name()}, {reviewed.at[:10]}"
        mlflow.log_text(page(examined.evidence, verdict, recorded=recorded), f"{FOLDER}/{REPORT}")
        mlflow.set_tags({VERDICT_TAG: verdict.word, "unlearn.model_uri": examined.uri})
        recorded_as = {
            "verdict": verdict.word,
            "policy": policy.name,
            "by": reviewed.by.display_name(),
            "at": reviewed.at,
            "run_id": run_id,
            "sha256": sha256(reviewed.to_json().encode()),
        }
        client.set_model_version_tag(name, version, f"{TAG}{reviewed.n}", json.dumps(recorded_as))
        client.set_model_version_tag(name, version, VERDICT_TAG, verdict.word)
    table.show_verdict(examined.uri, verdict)
    if not verdict.passed:
        raise Refused(f"{examined.uri} does not pass the policy {policy.name!r}: {verdict.failures}")
    print(f"{examined.uri} passes the policy {policy.name!r} (review {reviewed.n}, run {run_id}).")
