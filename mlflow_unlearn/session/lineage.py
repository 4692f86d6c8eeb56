"""What was forgotten on the way to a version: its evidence names each earlier step and its requests."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from mlflow.tracking import MlflowClient

from mlflow_unlearn.console import note
from mlflow_unlearn.data.forget import exchangeable
from mlflow_unlearn.data.source import Source
from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.evidence.record import Evidence, RequestRecord, Step, read_evidence
from mlflow_unlearn.registry import forget_requests
from mlflow_unlearn.registry.uris import public_spec
from mlflow_unlearn.registry.versions import Version


@dataclass(frozen=True)
class Earlier:
    """A request that an earlier step has fulfilled.

    Attributes:
        record: of the evidence.
        indices: its samples in the training part, as many as the data source still has.
    """

    record: RequestRecord
    indices: npt.NDArray[np.int64]


def previous(version: Version) -> tuple[Evidence, str] | None:
    """The evidence that is stored with a version, and the SHA-256 of its file; None where there is none."""
    try:
        return read_evidence(version.path)
    except FileNotFoundError:
        return None


def lineage(before: tuple[Evidence, str] | None) -> list[Step]:
    """The steps that led to the version with this evidence, its own step last."""
    if before is None:
        return []
    evidence, digest = before
    own = Step(
        uri=evidence.result.uri,
        source_uri=evidence.source.uri,
        method=evidence.provenance.method,
        weights_sha256=evidence.result.weights_sha256,
        evidence_sha256=digest,
        request_ids=evidence.request_ids,
    )
    return [*evidence.lineage, own]


def request_record(request_id: str, run_id: str, *, by: str) -> RequestRecord:
    """A request by what its run has stored."""
    details = forget_requests.read_details(run_id)
    spec = details["forget"] if isinstance(details.get("forget"), str) else None
    always = {name: details[name] for name in ("of", "samples", "manifest_sha256")}
    optional = {name: details.get(name) for name in ("filed", "filed_by", "requester", "reason", "matched")}
    return RequestRecord(
        id=request_id,
        run_id=run_id,
        request_sha256=details["sha256"],
        carried_out_by=by,
        forget=public_spec(spec) if spec is not None else None,
        exchangeable=exchangeable(spec) if spec is not None else None,
        metrics={},
        **always,
        **optional,
    )


def fulfilled(client: MlflowClient, version: Version) -> list[RequestRecord]:
    """The requests that a version, or one that it came from, has fulfilled.

    Raises:
        UnlearnError: one that a version of an earlier release names is gone.
    """
    before, record = previous(version), version.record
    if before is not None:
        return before[0].requests
    if record is None:
        return []
    # Of a version of an earlier release, or of one whose training went on from one that had fulfilled some.
    named = dict.fromkeys(record.request_ids, version.uri)
    if record.origin is not None:
        named |= dict.fromkeys(record.origin.forgotten, record.origin.uri)
    found = [(request_id, forget_requests.run_of(client, request_id), by) for request_id, by in named.items()]
    return [request_record(request_id, run_id, by=by) for request_id, run_id, by in found]


def earlier_requests(
    client: MlflowClient, version: Version, source: Source, retained: npt.NDArray[np.bool_]
) -> tuple[Earlier, ...]:
    """What the version, or one that it came from, was made to forget.

    Args:
        client: of the registry.
        version: that is to forget more.
        source: of its data.
        retained: what of ``source.train`` it counts as trained on ``[N]``.

    Raises:
        UnlearnError: some of it is to be retained now.
    """
    earlier = []
    for record in fulfilled(client, version):
        try:
            forgotten = forget_requests.read_manifest_of(record.run_id).mask(source.train.ids)
        except UnlearnError as error:
            note(f"Note: what request {record.id} forgot cannot be measured again: {error}")
            continue
        if (back := int((forgotten & retained).sum())) > 0:
            raise UnlearnError(
                f"{back} samples that request {record.id} had {record.carried_out_by} forget are among those that "
                f"{version.uri} is to retain: its training manifest was replaced; restore it, or unlearn from "
                f"{record.of}"
            )
        earlier.append(Earlier(record, np.flatnonzero(forgotten)))
    return tuple(earlier)
