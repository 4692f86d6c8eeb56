"""`promote`: move an alias to a version that has passed its review; every other move of it becomes visible."""

import json
from datetime import UTC, datetime

import mlflow
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from mlflow.utils.validation import _validate_model_alias_name, _validate_model_alias_name_reserved
from pydantic import ValidationError

from mlflow_unlearn import config, forget_requests, tracking
from mlflow_unlearn.errors import Refused, UnlearnError
from mlflow_unlearn.governance.evidence import FOLDER, Evidence, Person, sha256
from mlflow_unlearn.governance.people import whoami
from mlflow_unlearn.governance.policy import Policy, judge, read_policy
from mlflow_unlearn.governance.review import TAG, Review, numbers
from mlflow_unlearn.governance.verify import PROMOTION, PROMOTION_TAG, Examined, examine
from mlflow_unlearn.progress import note
from mlflow_unlearn.registry import find_version, read_artifact


def promote(options: config.Promote) -> None:
    """Move the alias, if the version is intact, reviewed and passed, and no request on its source is open.

    Raises:
        Refused: one of these does not hold, or the approver may not approve.
    """
    with tracking.run("promote", options) as run_id, tracking.scratch() as folder:
        _check_alias(options.alias)
        policy = read_policy(options.policy) if options.policy is not None else None
        client = tracking.client()
        examined = examine(client, options.model_uri, folder, key=options.key)
        examined.refuse_differences("cannot be promoted")
        approver = _approver(options.approver)
        objections = []
        reviewed = None
        try:
            reviewed = _last_review(examined)
            if examined.signed is None and "signature" in reviewed.policy.required:
                raise Refused(
                    f"its policy {reviewed.policy.name!r} requires a signature, which only key= can check: whoever may "
                    "write the review's file may have written there that it holds; give key=PUBLIC.pem"
                )
            # The signature as it is found here, with a key of the approver's.
            judged = judge(examined.evidence, reviewed.policy, signed=examined.signed)
            if judged != reviewed.verdict:
                raise Refused(
                    f"its review {reviewed.n} says what its policy does not say of this evidence; review it again"
                )
            if policy is not None and policy.sha256 != reviewed.policy.sha256:
                objections.append(
                    f"it was reviewed by the policy {reviewed.policy.name!r} ({reviewed.policy.sha256[:12]}), and this "
                    f"one is {policy.name!r} ({policy.sha256[:12]}): review it by this one"
                )
            if not reviewed.verdict.passed:
                objections.append(f"its review {reviewed.n} says fail")
        except Refused as error:
            objections.append(str(error))
            reviewed = None
            if options.override is not None and policy is None:
                raise Refused(
                    f"{examined.uri} cannot be promoted: {error}; to override that, give policy=, which says who may "
                    "approve"
                ) from error
        objections += _open_requests(client, examined.evidence)
        _check_approver(approver, examined.evidence, policy or (reviewed.policy if reviewed else Policy()))
        if objections and options.override is None:
            raise Refused(f"{examined.uri} cannot be promoted: {'; '.join(objections)}")
        for objection in objections:
            note(f"Note: promoted in spite of this: {objection}")
        name, version = examined.registered.name, str(examined.registered.version)
        aliases = {alias: str(number) for alias, number in client.get_registered_model(name).aliases.items()}
        before = aliases.get(options.alias)
        record = {
            "uri": examined.uri,
            "alias": options.alias,
            "weights_sha256": examined.evidence.result.weights_sha256,
            "evidence_sha256": examined.sha256,
            "review": reviewed.n if reviewed is not None else None,
            "by": approver.told(),
            "at": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "override": options.override if objections else None,
            "objections": objections,
            "before": f"models:/{name}/{before}" if before is not None else None,
            "run_id": run_id,
        }
        mlflow.log_dict(record, f"{FOLDER}/{PROMOTION}")
        key = PROMOTION_TAG + options.alias
        client.set_model_version_tag(name, version, key, json.dumps(record))
        try:
            client.set_registered_model_alias(name, options.alias, version)
        except MlflowException:
            client.delete_model_version_tag(name, version, key)
            raise
        moved = f" (it was version {before})" if before not in (None, version) else ""
        print(f"{name}@{options.alias} is version {version} now{moved}, approved by {approver.told()}.")


def _check_alias(alias: str) -> None:
    try:
        _validate_model_alias_name(alias)
        _validate_model_alias_name_reserved(alias)
    except MlflowException as error:
        raise UnlearnError(f"alias = {alias!r} cannot be set: {error.message}") from error


def _approver(given: str | None) -> Person:
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


def _check_approver(approver: Person, evidence: Evidence, policy: Policy) -> None:
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


def _last_review(examined: Examined) -> Review:
    """The review that counts.

    Raises:
        Refused: there is none, it is about something else, or it was changed.
    """
    found = numbers(examined.registered)
    if not found:
        raise Refused("it was not reviewed; `review` does that")
    n = max(found)
    tag = examined.registered.tags[f"{TAG}{n}"]
    try:
        told = json.loads(tag)
        content = read_artifact(told["run_id"], f"{FOLDER}/review-{n}.json")
        reviewed = Review.model_validate_json(content)
        changed = sha256(content) != told["sha256"]
    except (MlflowException, OSError, ValueError, KeyError, TypeError, ValidationError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise Refused(f"its review {n} cannot be read ({reason}); review it again") from error
    if changed:
        raise Refused(f"the file of its review {n} was changed; review it again")
    evidence = examined.evidence
    about = (reviewed.name, reviewed.version, reviewed.weights_sha256, reviewed.evidence_sha256)
    registered = examined.registered
    if about != (registered.name, str(registered.version), evidence.result.weights_sha256, examined.sha256):
        raise Refused(f"its review {n} is about models:/{reviewed.name}/{reviewed.version}, or about other weights")
    return reviewed


def _open_requests(client: MlflowClient, evidence: Evidence) -> list[str]:
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
