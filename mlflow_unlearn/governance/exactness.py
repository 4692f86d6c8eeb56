"""`verify`: is a claim of exactness borne out by what is stored, checkpoints and shards?"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from pydantic import ValidationError
from safetensors import SafetensorError

from mlflow_unlearn.console import first_line
from mlflow_unlearn.data.manifest import Manifest
from mlflow_unlearn.data.placement import placements, read_placement
from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.evidence.checkpoints import Kept, Shards
from mlflow_unlearn.evidence.record import FILE, FOLDER, Evidence, sha256
from mlflow_unlearn.governance.checkpoints import record_in
from mlflow_unlearn.governance.integrity import Examined, IntegrityFinding, same
from mlflow_unlearn.governance.model_folder import MLMODEL
from mlflow_unlearn.registry import forget_requests
from mlflow_unlearn.registry.checkpoints import LostCheckpoint, checked_checkpoint
from mlflow_unlearn.registry.digests import stored_weights_digest
from mlflow_unlearn.registry.versions import PLACEMENT_FILE, Record, downloaded, fetched, read_artifact, version_there


def check_exactness(client: MlflowClient, examined: Examined, folder: Path) -> Iterator[IntegrityFinding]:
    """Checkpoints by their digests and by what they have seen, untouched shards by the digests of their weights.

    Nothing is asked for, of a version that lists no checkpoint and claims nothing.

    Args:
        client: of the registry.
        examined: the version and its evidence.
        folder: into which it was downloaded.
    """
    record = _record(examined)
    if record is not None:
        yield from _there(record.checkpoints)
    yield from check_claim(client, examined, folder)


def check_claim(client: MlflowClient, examined: Examined, folder: Path) -> Iterator[IntegrityFinding]:
    """The same of the claim alone, which does not depend on whether checkpoints are still there.

    Args:
        client: of the registry.
        examined: the version and its evidence.
        folder: into which it was downloaded.
    """
    record, exactness = _record(examined), examined.evidence.exactness
    shards = None if record is None else record.shards
    # Where another method has ended the shards, retraining the whole may still be exact.
    if record is not None and shards is not None and shards.ended_by is None and exactness.trained_without:
        yield from _taken_out(examined.evidence, shards)
        yield from _unseen(client, examined.evidence, record.checkpoints)
        yield from _untouched(examined, folder, shards.shards)


def with_claim(client: MlflowClient, examined: Examined, folder: Path) -> Examined:
    """With what `check_claim` finds among the findings, before anything is decided."""
    return replace(examined, findings=[*examined.findings, *check_claim(client, examined, folder)])


def _record(examined: Examined) -> Record | None:
    try:
        return record_in(examined.path / MLMODEL)
    except UnlearnError:
        return None  # missing or changed, which the files' digests tell


def _there(checkpoints: Sequence[Kept]) -> Iterator[IntegrityFinding]:
    """Every checkpoint that the version lists is what was stored."""
    lost = []
    for kept in checkpoints:
        try:
            checked_checkpoint(kept)
        except LostCheckpoint as error:
            lost.append(IntegrityFinding("checkpoints", "differs", first_line(error)))
    yield from lost
    if checkpoints and not lost:
        yield IntegrityFinding("checkpoints", "same", f"all {len(checkpoints)} are there, with their digests")


def _taken_out(evidence: Evidence, shards: Shards) -> Iterator[IntegrityFinding]:
    """The shards in which the forgotten samples lay were trained again, from before their slices.

    Where they lay, the list of the source version says; for plain ids their hash has to say the same.
    """
    part, uri = "shards of what was forgotten", evidence.source.uri
    try:
        with fetched(f"{uri}/extra_files/{PLACEMENT_FILE}") as path:
            placed, salt = read_placement(path, f"its {PLACEMENT_FILE}"), Manifest.from_csv(path).salt
    except (MlflowException, OSError, UnlearnError) as error:
        yield IntegrityFinding(part, "not checked", f"the list of shards of {uri} cannot be read ({first_line(error)})")
        return
    retrained, count = evidence.exactness.retrained, 0
    for request in (each for each in evidence.requests if each.id in evidence.request_ids):
        try:
            manifest = forget_requests.read_manifest_of(request.run_id)
        except UnlearnError:
            continue  # which the request's own check says
        if manifest.salt not in (None, salt):
            yield IntegrityFinding(part, "not checked", f"request {request.id} hashes its ids in another way")
            return
        hashed = Manifest((), salt).key if manifest.salt is None else str
        for sample in manifest.ids:
            if hashed(sample) not in placed:
                yield IntegrityFinding(part, "differs", f"{sample} of request {request.id} is not among those of {uri}")
                return
            shard, slice_ = placed[hashed(sample)]
            if shards.by == "id" and manifest.salt is None:
                drawn = placements([sample], shards.shards, shards.slices)
                shard, slice_ = int(drawn.shard[0]), int(drawn.slice_[0])
            count += 1
            if retrained.get(str(shard), shards.slices) > slice_:
                message = f"{sample} of request {request.id} lay in slice {slice_} of shard {shard}, which was not"
                yield IntegrityFinding(part, "differs", f"{message} trained again from before it")
                return
    yield IntegrityFinding(part, "same", f"those of all {count} samples were trained again")


def _unseen(client: MlflowClient, evidence: Evidence, checkpoints: Sequence[Kept]) -> Iterator[IntegrityFinding]:
    """None has seen what was forgotten after it was made: it is from before the point its shard was taken back to.

    What each unlearning has trained again, its evidence says, of which the run keeps a copy when the version is gone.
    """
    part, steps = "checkpoints and what was forgotten", [evidence]
    for step in reversed(evidence.lineage):
        try:
            registered = version_there(client, step.uri)
            run_id = "" if registered is None else str(registered.run_id)
            content = read_artifact(run_id, f"{FOLDER}/{FILE}")
            if sha256(content) != step.evidence_sha256:
                raise UnlearnError("it was changed")
            steps.append(Evidence.model_validate_json(content))
        except (MlflowException, OSError, UnlearnError, ValidationError) as error:
            why = f"the evidence of {step.uri} cannot be read ({first_line(error)})"
            yield IntegrityFinding(part, "not checked", f"{why}: which samples its shards had seen is not known")
            return
    # The newest one is 0; what `until=pass` has tried kept its checkpoints with a run of its own.
    made = {run_id: number for number, step in enumerate(steps) for run_id in _runs(step)}
    wrong = [
        kept
        for kept in checkpoints
        for later in steps[: made.get(kept.run_id, len(steps))]
        if kept.stage > later.exactness.retrained.get(str(kept.shard), kept.stage)
    ]
    for kept in dict.fromkeys(wrong):
        yield IntegrityFinding(part, "differs", f"{kept.path} of run {kept.run_id} has seen forgotten samples")
    if not wrong:
        count = f"{len(steps)} unlearning{'' if len(steps) == 1 else 's'}"
        yield IntegrityFinding(part, "same", f"by {count} none has seen what was forgotten after it was made")


def _runs(step: Evidence) -> Iterator[str]:
    yield step.run.id
    selection = step.provenance.selection
    for attempt in [] if selection is None else selection.attempts:
        if attempt.passed and attempt.run_id is not None:
            yield attempt.run_id


def _untouched(examined: Examined, folder: Path, shards: int) -> Iterator[IntegrityFinding]:
    """The shards that were not trained again are those of the source."""
    exactness, source = examined.evidence.exactness, examined.evidence.source.uri
    claimed = exactness.untouched
    if {*claimed, *exactness.retrained} != set(map(str, range(shards))):
        yield IntegrityFinding("untouched shards", "differs", f"of {shards} shards it does not say what became of all")
    if not claimed:
        return
    yield from _compared("untouched shards", _shards(examined.path, claimed), claimed)
    part, before = f"untouched shards in {source}", downloaded(source, folder)
    if before is None:
        yield IntegrityFinding(part, "not checked", "its files are not there")
    else:
        yield from _compared(part, _shards(before, claimed), claimed)


def _compared(part: str, found: Mapping[str, str] | None, claimed: Mapping[str, str]) -> Iterator[IntegrityFinding]:
    if found is None:
        return  # the weights cannot be read, which their own check says
    for shard, digest in claimed.items():
        if found[shard] != digest:
            yield same(part, found[shard], digest, f"the weights of shard {shard}")
    if found == claimed:
        yield IntegrityFinding(part, "same", f"the weights of shards {', '.join(claimed)} are those that it names")


def _shards(path: Path, shards: Mapping[str, str]) -> dict[str, str] | None:
    try:
        return {shard: stored_weights_digest(path, f"members.{shard}.") for shard in shards}
    except (OSError, SafetensorError):
        return None
