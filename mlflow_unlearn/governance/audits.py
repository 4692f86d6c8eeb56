"""The audits of a version: which one a review is judged by, and whether it is still what it was."""

from collections.abc import Iterator, Sequence

from mlflow.entities import Run, ViewType
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from mlflow_unlearn.console import first_line, note
from mlflow_unlearn.evidence.audit import AUDIT_FILE, AuditRecord
from mlflow_unlearn.evidence.review import MODEL_URI_TAG
from mlflow_unlearn.governance.integrity import Examined, IntegrityFinding
from mlflow_unlearn.registry.artifacts import remember
from mlflow_unlearn.registry.clients import quoted
from mlflow_unlearn.registry.versions import read_artifact


def last_audit(client: MlflowClient, examined: Examined) -> AuditRecord | None:
    """Of the strongest ones one that tells the version apart, else one that decides nothing, else the newest.

    So no one tries again until it passes, nor leaves out what did not: tier, then relearning and a known cheat, then
    the number of retrained models say which is the stronger one.

    A note says where others of the version came to something else.

    Only those of these very weights and of the forget set of its evidence.

    Args:
        client: of the tracking server.
        examined: the version and its evidence.
    """
    evidence = examined.evidence
    found = [
        audit
        for audit in _audits(client, examined.uri, examined.experiments)
        if audit.weights_sha256 == evidence.result.weights_sha256 and audit.forget_sha256 == evidence.data.forget.sha256
    ]
    if not found:
        return None
    counted = strongest(found)
    others = [one for one in found if one is not counted and one.decision[0] != counted.decision[0]]
    if others:
        listed = "; ".join(f"{one.decision[0]} (tier {one.tier}, run {one.run_id})" for one in others[:5])
        note(f"Note: the audit of run {counted.run_id} counts; others came to: {listed}.")
    return counted


def strongest(audits: Sequence[AuditRecord]) -> AuditRecord:
    """Of the audits of one version the one that counts, as `last_audit` says."""
    worse = ("not told apart", "not decided", "told apart")
    return max(audits, key=lambda audit: (audit.strength, worse.index(audit.decision[0]), audit.at))


def check_audit(stored: AuditRecord) -> IntegrityFinding:
    """Whether the audit's own run still says what the review was judged by."""
    part = "audit"
    try:
        found = AuditRecord.model_validate_json(read_artifact(stored.run_id, AUDIT_FILE))
    except (MlflowException, OSError) as error:
        return IntegrityFinding(part, "not checked", f"its run cannot be read ({first_line(error)})")
    except ValueError as error:  # pydantic's too
        return IntegrityFinding(
            part, "differs", f"the record of run {stored.run_id} cannot be read ({first_line(error)})"
        )
    if found != stored:
        return IntegrityFinding(part, "differs", f"run {stored.run_id} says something else than its review has it")
    return IntegrityFinding(part, "same", f"run {stored.run_id} says what its review has")


def audit_runs(client: MlflowClient, uri: str, experiments: list[str]) -> list[Run]:
    """Of all audits of a version, the newest first; deleted ones too: an audit does not become undone by that."""
    where = f"tags.`unlearn.command` = 'audit' and tags.`{MODEL_URI_TAG}` = {quoted(uri)}"
    order = ["attributes.start_time DESC"]
    found = list(client.search_runs(experiments, where, run_view_type=ViewType.ALL, order_by=order))
    remember(found)
    return found


def _audits(client: MlflowClient, uri: str, experiments: list[str]) -> Iterator[AuditRecord]:
    """All audits of a version whose records can be read."""
    for run in audit_runs(client, uri, experiments):
        try:
            audit = AuditRecord.model_validate_json(read_artifact(run.info.run_id, AUDIT_FILE))
        except (MlflowException, OSError, ValueError):  # it did not come to one
            continue
        if audit.run_id == run.info.run_id:
            yield audit
