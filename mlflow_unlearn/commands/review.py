"""`review`: judge a version by a policy and record the verdict."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from mlflow.entities import RunTag
from mlflow.exceptions import MlflowException
from pydantic import Field

from mlflow_unlearn import config
from mlflow_unlearn.answer import CommandResult
from mlflow_unlearn.console import say
from mlflow_unlearn.errors import NotPassed, Refused
from mlflow_unlearn.evidence.policy import Verdict, judge, read_policy
from mlflow_unlearn.evidence.record import FOLDER, REPORT, Evidence, Person, sha256
from mlflow_unlearn.evidence.review import (
    HEAD_TAG,
    MODEL_URI_TAG,
    TAG,
    VERDICT_TAG,
    Head,
    ReviewChain,
    ReviewEntry,
    ReviewRecord,
    read_chain,
)
from mlflow_unlearn.governance.audits import last_audit
from mlflow_unlearn.governance.exactness import with_claim
from mlflow_unlearn.governance.integrity import STATED, examine
from mlflow_unlearn.governance.statement import restated
from mlflow_unlearn.registry import tracking
from mlflow_unlearn.registry.artifacts import store_text
from mlflow_unlearn.registry.clients import registry_client
from mlflow_unlearn.registry.dead import killed
from mlflow_unlearn.registry.identity import whoami
from mlflow_unlearn.registry.lock import model_lock
from mlflow_unlearn.registry.versions import read_artifact, retired
from mlflow_unlearn.report import table
from mlflow_unlearn.report.page import page
from mlflow_unlearn.spelling import command_line


class ReviewResult(CommandResult):
    """The verdict on a version."""

    run_id: str
    uri: str
    passed: bool
    verdict: Verdict = Field(description="Each rule of the policy, and its outcome.")
    review: Head = Field(description="The review by its number and the SHA-256 of its file.")
    by: Person

    def next_step(self, options: Any) -> str | None:
        """To put it into use."""
        key = () if options.key is None else ("--key", options.key)
        return command_line("promote", "--model-uri", self.uri, *key)


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
        examined.refuse_differences("cannot be reviewed", but=STATED)
        policy = read_policy(options.policy, schema=examined.evidence.policy_schema)
        audited = last_audit(client, examined) if policy.audit is not None else None
        verdict = judge(examined.evidence, policy, signature=examined.signature, audit=audited)
        registry = registry_client(client)
        name, version, by = examined.registered.name, str(examined.registered.version), whoami()
        with model_lock(client, name) as (lock, _):
            now = client.get_model_version(name, version)
            chain = read_chain(now.tags)
            if (how := retired(now)) is not None or chain.problems:
                raise Refused(
                    f"{examined.uri} has just been changed ({how or '; '.join(chain.problems)}): see `verify`"
                )
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
            tags: dict[str, str] = {}
            if reviewed is not None and chain.last is not None:
                last, run_id = chain.last, chain.last.run_id
            else:
                reviewed, content = draft, draft.to_json()
                head = Head(n=reviewed.n, sha256=sha256(content.encode()))
                recorded_as = {
                    "verdict": verdict.word,
                    "policy": policy.name,
                    "by": by.display_name(),
                    "at": reviewed.at,
                    "run_id": run_id,
                    "sha256": head.sha256,
                    "previous": chain.head.sha256,
                    "why": verdict.in_short,
                }
                tags = {f"{TAG}{reviewed.n}": json.dumps(recorded_as), VERDICT_TAG: verdict.word, HEAD_TAG: str(head)}
                last = ReviewEntry(reviewed.n, **recorded_as)
            description, for_people = restated(now, examined.evidence, chain, last)
            if tags:
                store_text(run_id, content, reviewed.file)
                recorded = f"review {reviewed.n} by {by.display_name()}, {reviewed.at[:10]}"
                report = page(examined.evidence, verdict, recorded=recorded, audit=audited)
                store_text(run_id, report, f"{FOLDER}/{REPORT}")
            lock.check()
            for key, value in (tags | for_people).items():  # with the last one of `tags` it counts
                registry.set_model_version_tag(name, version, key, value)
            if description != now.description:
                registry.update_model_version(name, version, description)
            head = last.head
        # Last, so that whatever a run says is on the version.
        done = {VERDICT_TAG: verdict.word, MODEL_URI_TAG: examined.uri, HEAD_TAG: str(head)}
        client.log_batch(run_id, tags=[RunTag(key, value) for key, value in done.items()])
    table.show_verdict(examined.uri, verdict)
    result = ReviewResult(
        run_id=run_id, uri=examined.uri, passed=verdict.passed, verdict=verdict, review=head, by=reviewed.by
    )
    if not verdict.passed:
        sentence = f"{examined.uri} does not pass the policy {policy.name!r}: {verdict.failures}"
        raise NotPassed(sentence, result, _ways_out(examined.evidence, verdict))
    say(f"{examined.uri} passes the policy {policy.name!r} (review {reviewed.n}, run {run_id}).")
    return result


def _ways_out(evidence: Evidence, verdict: Verdict) -> Iterator[str]:
    """What can be done about a version that does not pass, each ready to paste; by what has failed."""
    failed = [check for check in verdict.checks if check.outcome != "pass"]
    source, uri = ("--model-uri", evidence.source.uri), ("--model-uri", evidence.result.uri)
    own = [request for request in evidence.requests if request.id in evidence.request_ids]
    named = ("--forget", f"request:{own[0].id}") if len(own) == 1 else ()
    filed = all(request.run_id != evidence.run.id for request in own)  # and so is found again
    if any("undecided" in check.value or check.rule.startswith("samples") for check in failed):
        remark = "too few samples: file further requests, then unlearn all together"
        yield command_line("request", *source, "--forget", "ids.csv", remark=remark)
    if any(check.rule.startswith(("audit", "calibrated")) and check.value == "–" for check in failed):
        yield command_line("audit", *uri, remark="the audit that the policy asks for")
    # Where too few samples decide nothing, stronger settings would be tried in vain.
    fails = [check for check in failed if check.rule.startswith("membership") and check.outcome == "fail"]
    if any("undecided" not in check.value for check in fails):
        again = () if filed else named
        yield command_line("unlearn", *source, *again, "--until", "pass", remark="stronger settings, until one passes")
    if named and any(check.outcome == "fail" for check in failed):
        remark = "from scratch, without the samples"
        yield command_line("unlearn", *source, *named, "--method", "retrain", remark=remark)
    yield command_line("review", *uri, "--policy", "policy.yaml", remark="by your own limits, see docs/governance.md")
    remark = "and a reason: despite the verdict; recorded with your name"
    yield command_line("promote", *uri, "--override", remark=remark)


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
