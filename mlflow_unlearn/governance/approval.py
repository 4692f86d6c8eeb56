"""Who may approve a version, by which review, and what speaks against it."""

import re
from collections.abc import Iterator, Sequence

from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from pydantic import ValidationError

from mlflow_unlearn.console import first_line, note
from mlflow_unlearn.errors import Refused
from mlflow_unlearn.evidence.policy import Policy, Verdict, judge, signed_by
from mlflow_unlearn.evidence.record import FOLDER, Evidence, Person, RequestRecord, sha256
from mlflow_unlearn.evidence.review import Head, ReviewRecord, read_chain
from mlflow_unlearn.governance.audits import check_audit
from mlflow_unlearn.governance.integrity import Examined, IntegrityFinding, hidden
from mlflow_unlearn.registry import forget_requests
from mlflow_unlearn.registry.identity import whoami
from mlflow_unlearn.registry.versions import read_artifact, version_there
from mlflow_unlearn.spelling import spelled


def reviewed_by(examined: Examined, policy: Policy | None) -> tuple[ReviewRecord | None, list[Policy], list[str]]:
    """The review that counts, the policies of which each has to let the approver approve, and the objections.

    None in the review's place where there is none that can be relied on; the one objection then says why.

    Args:
        examined: the version and its evidence.
        policy: that it must have been reviewed by; None takes that of its review.
    """
    given = [policy] if policy is not None else []
    try:
        reviewed = _last_review(examined)
    except Refused as error:
        return None, given, [str(error)]
    # Whoever overrides the review gives a policy of their own choice: it may add approvers' rules, and remove none.
    policies = [reviewed.policy, *(each for each in given if each.sha256 != reviewed.policy.sha256)]
    # The signature as it is found here: someone who can write the review's file may have written there that it holds.
    signed, how = signed_by(reviewed.policy, examined.signature)
    unsigned = f"its policy {reviewed.policy.name!r} requires a signature: {how}"
    if not _says_what_its_policy_says(reviewed, examined):
        forged = f"its review {reviewed.n} does not match what its policy says about this evidence; review it again"
        return None, policies, [forged if signed or "signature" not in reviewed.policy.required else unsigned]
    objections = []
    if "signature" in reviewed.policy.required and not signed:
        objections.append(unsigned)
    if policy is not None and policy.sha256 != reviewed.policy.sha256:
        objections.append(
            f"it was reviewed by the policy {reviewed.policy.name!r} ({reviewed.policy.sha256[:12]}), and this "
            f"one is {policy.name!r} ({policy.sha256[:12]}): review it by this one"
        )
    if not reviewed.verdict.passed:
        objections.append(f"its review {reviewed.n} did not pass")
    return reviewed, policies, objections


def approver_of(given: str | None) -> Person:
    """The server's user; a name that is given counts only where the server knows none.

    Raises:
        Refused: it is another one.
    """
    user = whoami()
    if given is None or given == user.name:
        return user
    if user.authenticated:
        raise Refused(
            f"{spelled('approver', given)}: the tracking server knows you as {user.name!r}, who is the approver"
        )
    return Person(name=given, authenticated=False)


def check_approver(approver: Person, evidence: Evidence, policy: Policy) -> None:
    """Whether the policy lets this person approve.

    Raises:
        Refused: it does not, or one of the names that it is about is only claimed.
    """
    if policy.approvers and approver.name not in policy.approvers:
        raise Refused(
            f"{approver.name!r} may not approve: the policy {policy.name!r} names {', '.join(policy.approvers)}"
        )
    now = [request for request in evidence.requests if request.id in evidence.request_ids]
    if policy.authenticated and (policy.approvers or policy.two_person):
        _check_names(approver, evidence, now, policy)
    if not policy.two_person:
        return
    involved = {evidence.made_by.name: "carried out the unlearning"}
    involved |= {request.requester: f"asked for request {request.id}" for request in now if request.requester}
    involved |= {request.filed_by.name: f"filed request {request.id}" for request in now if request.filed_by}
    names = {name.casefold(): what for name, what in involved.items()}
    if (what := names.get(approver.name.casefold())) is not None:
        raise Refused(
            f"{approver.name!r} {what}: by the two-person rule of the policy {policy.name!r} another one has to approve"
        )


def _check_names(approver: Person, evidence: Evidence, requests: Sequence[RequestRecord], policy: Policy) -> None:
    """A name that no server has checked is whatever its bearer typed.

    Raises:
        Refused: there is one among those that the policy compares.
    """
    compared = {"who approves": approver}
    if policy.two_person:
        compared |= {"who carried out the unlearning": evidence.made_by}
        compared |= {f"who filed request {r.id}": r.filed_by or Person(name="", authenticated=False) for r in requests}
    for role, person in compared.items():
        if not person.authenticated:
            name = repr(person.name) if person.name else "not recorded"
            raise Refused(
                f"{role} ({name}) was not authenticated by a tracking server, which the policy {policy.name!r} needs "
                "for its approvers and its two-person rule: use a server with users, or let the policy say "
                "`authenticated: false`"
            )


def check_reviews(examined: Examined) -> Iterator[IntegrityFinding]:
    """Whether the last review says what its policy says, and the signature is one that this policy wants.

    Args:
        examined: the version and its evidence, which has been asked whether its reviews form a chain.
    """
    chain = read_chain(examined.registered.tags)
    if chain.problems or chain.last is None:
        return
    try:
        reviewed = _last_review(examined)
    except Refused as error:
        yield IntegrityFinding("review", "not checked" if hidden(error.__cause__) else "differs", str(error))
        return
    part = f"review {reviewed.n}"
    signed, how = signed_by(reviewed.policy, examined.signature)
    if "signature" in reviewed.policy.required and signed is None:
        yield IntegrityFinding(part, "not checked", f"its policy requires a signature: {how}")
    elif _says_what_its_policy_says(reviewed, examined):
        yield IntegrityFinding(part, "same", "its policy says the same of the evidence")
    else:
        more = f", which has to be signed: {how}" if "signature" in reviewed.policy.required and not signed else ""
        yield IntegrityFinding(part, "differs", f"its policy does not say the same of the evidence{more}")
    stated = (chain.last.verdict, chain.last.policy, chain.last.by, chain.last.at, chain.last.why)
    recorded = (reviewed.verdict.word, reviewed.policy.name, reviewed.by.display_name(), reviewed.at)
    if stated not in ((*recorded, reviewed.verdict.in_short), (*recorded, "")):  # earlier releases gave no reason
        yield IntegrityFinding(
            part, "differs", "its tag and its file name different verdicts, policies, people or times"
        )
    if reviewed.audit is not None:
        yield check_audit(reviewed.audit)


def _last_review(examined: Examined) -> ReviewRecord:
    """The review that counts.

    Raises:
        Refused: there is none, it is about something else, or it was changed.
    """
    chain = read_chain(examined.registered.tags)
    if chain.problems:
        raise Refused(f"its reviews are not as they were recorded ({'; '.join(chain.problems)})")
    if chain.last is None:
        raise Refused("it was not reviewed; `review` does that")
    n, before = chain.last.n, chain.entries.get(chain.last.n - 1)
    try:
        content = read_artifact(chain.last.run_id, f"{FOLDER}/review-{n}.json")
        reviewed = ReviewRecord.model_validate_json(content)
    except (MlflowException, OSError, ValueError, ValidationError) as error:
        reason = first_line(error)
        raise Refused(f"its review {n} cannot be read ({reason}); review it again") from error
    previous = None if chain.last.previous is None else before.head if before is not None else Head()
    if sha256(content) != chain.last.sha256 or reviewed.previous != previous:
        raise Refused(f"the file of its review {n} was changed; review it again")
    evidence = examined.evidence
    about = (reviewed.name, reviewed.version, reviewed.weights_sha256, reviewed.evidence_sha256)
    registered = examined.registered
    if about != (registered.name, str(registered.version), evidence.result.weights_sha256, examined.sha256):
        raise Refused(f"its review {n} is about models:/{reviewed.name}/{reviewed.version}, or about other weights")
    return reviewed


def _says_what_its_policy_says(reviewed: ReviewRecord, examined: Examined) -> bool:
    judged = judge(examined.evidence, reviewed.policy, signature=examined.signature, audit=reviewed.audit)
    return _outcomes(judged) == _outcomes(reviewed.verdict)


def _outcomes(verdict: Verdict) -> list[tuple[str, ...]]:
    """What was decided, without the words beside it, which another release may put otherwise."""
    return [(check.rule, check.value, check.threshold, check.outcome) for check in verdict.checks]


def open_requests(client: MlflowClient, evidence: Evidence) -> list[str]:
    """Requests on the source, or on a version before it, that this version and those before it did not carry out."""
    carried_out = {request.id for request in evidence.requests}
    open_ones = []
    for uri in dict.fromkeys([*(step.source_uri for step in evidence.lineage), evidence.source.uri]):
        registered = version_there(client, uri)
        if registered is None:
            if re.fullmatch("models:/[^/]+/[^/]+", uri):  # others were never registered, and have no requests
                note(f"Note: {uri} is gone, and with it the requests on it.")
            continue
        for key, value in registered.tags.items():
            if not key.startswith(forget_requests.TAG):
                continue
            request = forget_requests.ForgetRequest.from_tag(key, value)
            closed = request.ad_hoc or request.state == "withdrawn"
            if request.of == uri and request.id not in carried_out and not closed:
                state = "is still open" if request.pending else f"was carried out by {', '.join(request.done_by)} alone"
                open_ones.append(f"request {request.id} on {uri} {state}")
    return open_ones
