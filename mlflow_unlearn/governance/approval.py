"""Who may approve a version, by which review, and what speaks against it."""

from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from pydantic import ValidationError

from mlflow_unlearn.console import first_line, note
from mlflow_unlearn.errors import Refused, UnlearnError
from mlflow_unlearn.evidence.policy import Policy, Verdict, judge
from mlflow_unlearn.evidence.record import FOLDER, Evidence, Person, sha256
from mlflow_unlearn.evidence.review import TAG, ReviewRecord, numbers
from mlflow_unlearn.governance.integrity import Examined
from mlflow_unlearn.parsing import load_json
from mlflow_unlearn.registry import forget_requests
from mlflow_unlearn.registry.identity import whoami
from mlflow_unlearn.registry.versions import find_version, read_artifact


def reviewed_by(examined: Examined, policy: Policy | None) -> tuple[ReviewRecord | None, list[str]]:
    """The review that counts, and the objections that follow from it.

    None in its place where there is none that can be relied on; the one objection then says why.

    Args:
        examined: the version and its evidence.
        policy: that it must have been reviewed by; None takes that of its review.
    """
    try:
        reviewed = _last_review(examined)
    except Refused as error:
        return None, [str(error)]
    if examined.signed is None and "signature" in reviewed.policy.required:
        return None, [
            f"its policy {reviewed.policy.name!r} requires a signature, which only key= can check: someone who can "
            "write the review's file may have written there that it holds; give key=PUBLIC.pem"
        ]
    # The signature as it is found here, with a key of the approver's.
    judged = judge(examined.evidence, reviewed.policy, signed=examined.signed)
    if _outcomes(judged) != _outcomes(reviewed.verdict):
        return None, [f"its review {reviewed.n} says what its policy does not say of this evidence; review it again"]
    objections = []
    if policy is not None and policy.sha256 != reviewed.policy.sha256:
        objections.append(
            f"it was reviewed by the policy {reviewed.policy.name!r} ({reviewed.policy.sha256[:12]}), and this "
            f"one is {policy.name!r} ({policy.sha256[:12]}): review it by this one"
        )
    if not reviewed.verdict.passed:
        objections.append(f"its review {reviewed.n} says fail")
    return reviewed, objections


def approver_of(given: str | None) -> Person:
    """The server's user; a name that is given counts only where the server knows none.

    Raises:
        Refused: it is another one.
    """
    user = whoami()
    if given is None or given == user.name:
        return user
    if user.authenticated:
        raise Refused(f"approver = {given!r}: the tracking server knows you as {user.name!r}, who is the approver")
    return Person(name=given, authenticated=False)


def check_approver(approver: Person, evidence: Evidence, policy: Policy) -> None:
    """Whether the policy lets this person approve.

    Raises:
        Refused: it does not.
    """
    if policy.approvers and approver.name not in policy.approvers:
        raise Refused(
            f"{approver.name!r} may not approve: the policy {policy.name!r} names {', '.join(policy.approvers)}"
        )
    if not policy.two_person:
        return
    now = [request for request in evidence.requests if request.id in evidence.request_ids]
    involved = {evidence.made_by.name: "carried out the unlearning"}
    involved |= {request.requester: f"asked for request {request.id}" for request in now if request.requester}
    involved |= {request.filed_by.name: f"filed request {request.id}" for request in now if request.filed_by}
    names = {name.casefold(): what for name, what in involved.items()}
    if (what := names.get(approver.name.casefold())) is not None:
        raise Refused(
            f"{approver.name!r} {what}: by the two-person rule of the policy {policy.name!r} another one has to approve"
        )


def _last_review(examined: Examined) -> ReviewRecord:
    """The review that counts.

    Raises:
        Refused: there is none, it is about something else, or it was changed.
    """
    found = numbers(examined.registered.tags)
    if not found:
        raise Refused("it was not reviewed; `review` does that")
    n = max(found)
    tag = examined.registered.tags[f"{TAG}{n}"]
    try:
        recorded = load_json(tag)
        content = read_artifact(recorded["run_id"], f"{FOLDER}/review-{n}.json")
        reviewed = ReviewRecord.model_validate_json(content)
        changed = sha256(content) != recorded["sha256"]
    except (MlflowException, OSError, ValueError, KeyError, TypeError, ValidationError) as error:
        reason = first_line(error)
        raise Refused(f"its review {n} cannot be read ({reason}); review it again") from error
    if changed:
        raise Refused(f"the file of its review {n} was changed; review it again")
    evidence = examined.evidence
    about = (reviewed.name, reviewed.version, reviewed.weights_sha256, reviewed.evidence_sha256)
    registered = examined.registered
    if about != (registered.name, str(registered.version), evidence.result.weights_sha256, examined.sha256):
        raise Refused(f"its review {n} is about models:/{reviewed.name}/{reviewed.version}, or about other weights")
    return reviewed


def _outcomes(verdict: Verdict) -> list[tuple[str, ...]]:
    """What was decided, without the words beside it, which another release may put otherwise."""
    return [(check.rule, check.value, check.threshold, check.outcome) for check in verdict.checks]


def open_requests(client: MlflowClient, evidence: Evidence) -> list[str]:
    """Requests on the source, or on a version before it, that this version and those before it did not carry out."""
    carried_out = {request.id for request in evidence.requests}
    open_ones = []
    for uri in dict.fromkeys([*(step.source_uri for step in evidence.lineage), evidence.source.uri]):
        try:
            registered = find_version(client, uri)
        except UnlearnError:
            note(f"Note: {uri} is gone, and with it the requests on it.")
            continue
        for key, value in (registered.tags if registered is not None else {}).items():
            if not key.startswith(forget_requests.TAG):
                continue
            request = forget_requests.ForgetRequest.from_tag(key, value)
            if request.of == uri and request.id not in carried_out and not request.ad_hoc:
                state = "is still open" if request.pending else f"was carried out by {', '.join(request.done_by)} alone"
                open_ones.append(f"request {request.id} on {uri} {state}")
    return open_ones
