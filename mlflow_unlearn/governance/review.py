"""`review`: judge a version by a policy; the verdict is a file of its own, bound to what it is about."""

import json
import re
from datetime import UTC, datetime

import mlflow
from mlflow.entities.model_registry import ModelVersion
from pydantic import Field

from mlflow_unlearn import config, tracking
from mlflow_unlearn.errors import Refused
from mlflow_unlearn.governance.evidence import FOLDER, REPORT, Part, Person, sha256
from mlflow_unlearn.governance.people import whoami
from mlflow_unlearn.governance.policy import Policy, Verdict, judge, read_policy
from mlflow_unlearn.governance.verify import examine
from mlflow_unlearn.report import table
from mlflow_unlearn.report.page import page

TAG = "unlearn.review."
VERDICT_TAG = "unlearn.verdict"


class Review(Part):
    """One verdict on one version, by name, number and digests: a copy of the version is another version."""

    n: int = Field(description="Reviews of a version are counted from 1; the last one counts.")
    at: str
    by: Person
    name: str
    version: str
    weights_sha256: str
    evidence_sha256: str
    policy: Policy
    verdict: Verdict

    @property
    def file(self) -> str:
        """Where it lies in its run."""
        return f"{FOLDER}/review-{self.n}.json"

    def to_json(self) -> str:
        """What is stored."""
        return self.model_dump_json(indent=1) + "\n"


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
        verdict = judge(examined.evidence, policy, signed=examined.signed)
        name, version = examined.registered.name, str(examined.registered.version)
        reviewed = Review(
            n=max(numbers(examined.registered), default=0) + 1,
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
        recorded = f"review {reviewed.n} by {reviewed.by.told()}, {reviewed.at[:10]}"
        mlflow.log_text(page(examined.evidence, verdict, recorded=recorded), f"{FOLDER}/{REPORT}")
        mlflow.set_tags({VERDICT_TAG: verdict.word, "unlearn.model_uri": examined.uri})
        told = {
            "verdict": verdict.word,
            "policy": policy.name,
            "by": reviewed.by.told(),
            "at": reviewed.at,
            "run_id": run_id,
            "sha256": sha256(reviewed.to_json().encode()),
        }
        client.set_model_version_tag(name, version, f"{TAG}{reviewed.n}", json.dumps(told))
        client.set_model_version_tag(name, version, VERDICT_TAG, verdict.word)
    table.show_verdict(examined.uri, verdict)
    failed = [check for check in verdict.checks if check.outcome != "pass"]
    if failed:
        told_checks = "; ".join(f"{c.rule} is {c.value}, needs {c.threshold} ({c.outcome})" for c in failed)
        raise Refused(f"{examined.uri} does not pass the policy {policy.name!r}: {told_checks}")
    print(f"{examined.uri} passes the policy {policy.name!r} (review {reviewed.n}, run {run_id}).")


def numbers(registered: ModelVersion) -> list[int]:
    """Of the reviews that the version's tags name."""
    found = [key.removeprefix(TAG) for key in registered.tags if key.startswith(TAG)]
    return [int(number) for number in found if re.fullmatch("[1-9][0-9]*", number)]
