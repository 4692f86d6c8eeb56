"""`review`: judge a version by a policy and record the verdict."""

import json
from datetime import UTC, datetime

from mlflow.entities import RunTag
from mlflow.exceptions import MlflowException
from pydantic import Field

from mlflow_unlearn import config
from mlflow_unlearn.answer import CommandResult
from mlflow_unlearn.errors import Refused
from mlflow_unlearn.evidence.policy import Verdict, judge, read_policy
from mlflow_unlearn.evidence.record import FOLDER, REPORT, Person, sha256
from mlflow_unlearn.evidence.review import (
    HEAD_TAG,
    MODEL_URI_TAG,
    TAG,
    VERDICT_TAG,
    Head,
    ReviewChain,
    ReviewRecord,
    read_chain,
)
from mlflow_unlearn.governance.audits import last_audit
from mlflow_unlearn.governance.exactness import with_claim
from mlflow_unlearn.governance.integrity import examine
from mlflow_unlearn.registry import tracking
from mlflow_unlearn.registry.artifacts import store_text
from mlflow_unlearn.registry.clients import registry_client
from mlflow_unlearn.registry.dead import killed
from mlflow_unlearn.registry.identity import whoami
from mlflow_unlearn.registry.lock import model_lock
from mlflow_unlearn.registry.versions import read_artifact, retired
from mlflow_unlearn.report import table
from mlflow_unlearn.report.page import page


class ReviewResult(CommandResult):
    """The verdict on a version."""

    run_id: str
    uri: str
    passed: bool
    verdict: Verdict = Field(description="Each rule of the policy, and its outcome.")
    review: Head = Field(description="The review by its number and the SHA-256 of its file.")
    by: Person


def review(options: config.Review) -> ReviewResult:
    """Judge the evidence, print each rule, and record the verdict in a run and on the version.

    Raises:
        Refused: the verdict is fail, or there is nothing that can be judged.
    """
    with tracking.prepared("review", options) as run, tracking.scratch() as folder:
        read_policy(options.policy)  # a bad one is refused before anything is loaded
        client = tracking.client()
        examined = with_claim(client, examine(client, options.model_uri, folder, key=options.key), folder)
        run_id = run.begin(examined.registered)
        examined.refuse_differences("cannot be reviewed")
        policy = read_policy(options.policy, schema=examined.evidence.policy_schema)
        audited = last_audit(client, examined) if policy.audit is not None else None
        verdict = judge(examined.evidence, policy, signature=examined.signature, audit=audited)
        registry = registry_client(client)
        name, version, by = examined.registered.name, str(examined.registered.version), whoami()
        with model_lock(client, name) as (lock, _):
            now = client.get_model_version(name, version)
            chain = read_chain(now.tags)
            if (how := retired(now)) is not None or chain.problems:
                raise Refused(f"{examined.uri} changed meanwhile ({how or '; '.join(chain.problems)}): see `verify`")
            draft = ReviewRecord(
                n=chain.head.n + 1,
                previous=chain.head,
                at=datetime.now(UTC).isoformat(timespec="seconds"),
                by=by,
                name=name,
                version=version,
                weights_sha256=examined.evidence.result.weights_sha256,
                evidence_sha256=examined.sha256,
                policy=policy,
                verdict=verdict,
                audit=audited,
            )
            reviewed = _of_a_killed_command(chain, draft)
            if reviewed is not None and chain.last is not None:
                head, run_id = chain.head, chain.last.run_id
            else:
                reviewed, content = draft, draft.to_json()
                store_text(run_id, content, reviewed.file)
                recorded = f"review {reviewed.n} by {by.display_name()}, {reviewed.at[:10]}"
                report = page(examined.evidence, verdict, recorded=recorded, audit=audited)
                store_text(run_id, report, f"{FOLDER}/{REPORT}")
                head = Head(n=reviewed.n, sha256=sha256(content.encode()))
                recorded_as = {
                    "verdict": verdict.word,
                    "policy": policy.name,
                    "by": by.display_name(),
                    "at": reviewed.at,
                    "run_id": run_id,
                    "sha256": head.sha256,
                    "previous": chain.head.sha256,
                }
                lock.check()
                registry.set_model_version_tag(name, version, f"{TAG}{reviewed.n}", json.dumps(recorded_as))
                registry.set_model_version_tag(name, version, VERDICT_TAG, verdict.word)
                registry.set_model_version_tag(name, version, HEAD_TAG, str(head))  # from here on it counts
        # Last, so that whatever a run says is on the version.
        tags = {VERDICT_TAG: verdict.word, MODEL_URI_TAG: examined.uri, HEAD_TAG: str(head)}
        client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])
    table.show_verdict(examined.uri, verdict)
    result = ReviewResult(
        run_id=run_id, uri=examined.uri, passed=verdict.passed, verdict=verdict, review=head, by=reviewed.by
    )
    if not verdict.passed:
        raise Refused(f"{examined.uri} does not pass the policy {policy.name!r}: {verdict.failures}", result)
    print(f"{examined.uri} passes the policy {policy.name!r} (review {reviewed.n}, run {run_id}).")
    return result


def _of_a_killed_command(chain: ReviewChain, draft: ReviewRecord) -> ReviewRecord | None:
    """The last review, if it is this one and its command was killed once it counted."""
    last = chain.last
    if last is None or not killed(last.run_id):  # whatever run the tag names
        return None
    try:
        content = read_artifact(last.run_id, f"{FOLDER}/review-{last.n}.json")
        found = ReviewRecord.model_validate_json(content)
    except (MlflowException, OSError, ValueError):  # gone: `verify` says what is wrong with it
        return None
    same = draft.model_copy(update={"n": found.n, "previous": found.previous, "at": found.at})
    return found if found == same and sha256(content) == last.sha256 else None
