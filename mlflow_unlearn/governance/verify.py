"""`verify`: does a version still agree with its evidence? Files are hashed before anything in them is loaded."""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from safetensors import SafetensorError

from mlflow_unlearn import config, forget_requests, tracking
from mlflow_unlearn.data.manifest import Manifest
from mlflow_unlearn.errors import Refused, UnlearnError, without_passwords
from mlflow_unlearn.governance.evidence import (
    CARD,
    DIGEST_TAG,
    FILE,
    FOLDER,
    REPORT,
    REPORT_TAG,
    SIGNATURE,
    Evidence,
    read_evidence,
    sha256,
)
from mlflow_unlearn.governance.files import file_digests, stored_weights_digest
from mlflow_unlearn.governance.signing import broken, is_signed
from mlflow_unlearn.registry import (
    MANIFEST_FILE,
    METRIC_TAG,
    WEIGHTS_FILE,
    Version,
    download,
    find_version,
    read_artifact,
    registered_version,
    retired,
)
from mlflow_unlearn.report import table
from mlflow_unlearn.report.card import model_card

if TYPE_CHECKING:
    from mlflow_unlearn.job import Chosen, Job
    from mlflow_unlearn.view import View

PROMOTION_TAG, PROMOTION = "unlearn.promotion.", "promotion.json"
GUARDED = "champion"
"""The alias that nobody should move but `promote`; those that it has moved before are guarded as well."""
TOLERANCE = 1e-3
"""Between a metric and the same one measured again, on another processor or by other threads."""


@dataclass(frozen=True)
class Finding:
    """One thing that was checked.

    Attributes:
        part: what was looked at.
        outcome: whether it is as the evidence says.
        told: in words.
    """

    part: str
    outcome: Literal["same", "differs", "not checked"]
    told: str


@dataclass(frozen=True)
class Examined:
    """A version as it was found.

    Attributes:
        registered: as the registry has it.
        path: its files.
        evidence: its record.
        sha256: of the record's file.
        signed: whether the signature is that of the key; None: there is one and no key was given.
        findings: everything that was checked.
    """

    registered: ModelVersion
    path: Path
    evidence: Evidence
    sha256: str
    signed: bool | None
    findings: Sequence[Finding]

    @property
    def uri(self) -> str:
        """``models:/NAME/VERSION``."""
        return f"models:/{self.registered.name}/{self.registered.version}"

    @property
    def differences(self) -> list[Finding]:
        """What is not as the evidence says."""
        return [finding for finding in self.findings if finding.outcome == "differs"]

    def refuse_differences(self, what: str) -> None:
        """Nothing may be decided about a version that is not the one that was measured.

        Raises:
            Refused: there is a difference.
        """
        if self.differences:
            told = "; ".join(f"{finding.part}: {finding.told}" for finding in self.differences)
            raise Refused(f"{self.uri} {what}, since it does not agree with its evidence ({told}): see `verify`")


def verify(options: config.Verify) -> None:
    """Check everything, print it, and refuse if anything differs."""
    with tracking.looking() as client, tracking.scratch() as folder:
        examined = examine(client, options.model_uri, folder, key=options.key)
        findings = [*examined.findings, *_aliases(client, examined)]
        if options.recompute:
            findings += _recomputed(client, examined, options, folder)
    table.show_findings(examined.uri, [(f.part, f.outcome, f.told) for f in findings])
    different = [finding for finding in findings if finding.outcome == "differs"]
    if different:
        raise Refused(
            f"{examined.uri} does not agree with its evidence: {'; '.join(f'{f.part}: {f.told}' for f in different)}"
        )
    same = sum(finding.outcome == "same" for finding in findings)
    rest = f", {len(findings) - same} not checked" if same < len(findings) else ""
    print(f"{examined.uri} agrees with its evidence ({same} checks{rest}).")


def examine(client: MlflowClient, uri: str, folder: Path, *, key: str | None = None) -> Examined:
    """Every check of a version that needs no model to be run.

    Raises:
        UnlearnError: there is no such version, or the key is none.
        Refused: it has no files or no evidence, so that there is nothing to check.
    """
    if key is not None and not Path(key).is_file():
        raise UnlearnError(f"key = {key!r} is no public key: there is no such file")
    registered = registered_version(client, uri)
    uri = f"models:/{registered.name}/{registered.version}"
    if (told := retired(registered)) is not None:
        raise Refused(f"the files of {uri} are gone, it was {told}")
    try:
        path = download(uri, folder)
    except (MlflowException, OSError) as error:
        raise Refused(f"the files of {uri} cannot be read ({str(error).splitlines()[0]})") from error
    try:
        evidence, digest = read_evidence(path)
    except FileNotFoundError as error:
        missing = "its evidence is missing" if DIGEST_TAG in registered.tags else "it has no evidence"
        raise Refused(f"{uri}: {missing}, so nothing can be decided about it; `unlearn` writes evidence") from error
    except UnlearnError as error:
        raise Refused(f"{uri}: {error}") from error
    signed, signature = _signature(path / FOLDER, key)
    findings = [
        _same("evidence", registered.tags.get(DIGEST_TAG), digest, "the version's tag names its digest"),
        _run_copy(evidence, digest),
        _bound(registered, evidence),
        *_files(path, evidence),
        *_made_from_it(registered, path / FOLDER, evidence),
        *_tags(registered, evidence),
        _config(evidence),
        *_manifests(path, evidence),
        *_chain(client, evidence, folder),
        signature,
    ]
    return Examined(registered, path, evidence, digest, signed, findings)


def _same(part: str, found: str | None, expected: str | None, told: str) -> Finding:
    if found == expected:
        return Finding(part, "same", told)
    return Finding(part, "differs", f"{told}: {_short(found)} instead of {_short(expected)}")


def _short(value: str | None) -> str:
    if value is None:
        return "nothing"
    return value[:12] + "…" if re.fullmatch(r"[0-9a-f]{64}", value) else repr(value[:80])


def _run_copy(evidence: Evidence, digest: str) -> Finding:
    part = "evidence on the run"
    try:
        found = read_artifact(evidence.run.id, f"{FOLDER}/{FILE}")
    except (MlflowException, OSError) as error:
        return Finding(part, "not checked", f"the run cannot be read ({_line(error)})")
    return _same(part, sha256(found), digest, "it is the same file as the version's")


def _bound(registered: ModelVersion, evidence: Evidence) -> Finding:
    uri = f"models:/{registered.name}/{registered.version}"
    if evidence.result.uri == uri:
        return Finding("version", "same", "the evidence is about this name and version")
    return Finding("version", "differs", f"the evidence is about {evidence.result.uri}: this is a copy of it")


def _files(path: Path, evidence: Evidence) -> Iterator[Finding]:
    found, expected = file_digests(path), evidence.result.files
    for name in sorted(found.keys() | expected.keys()):
        part = {WEIGHTS_FILE: "weights", MANIFEST_FILE: "manifest"}.get(name.rpartition("/")[2], f"file {name}")
        if name not in found:
            yield Finding(part, "differs", f"{name} is missing")
        elif name not in expected:
            yield Finding(part, "differs", f"{name} was added")
        elif found[name] != expected[name]:
            yield Finding(part, "differs", f"{name} was changed")
    if found == expected:
        yield Finding("files", "same", f"all {len(found)} files of the model have their digests")
        # Only now may one be opened.
        try:
            weights = stored_weights_digest(path)
        except (OSError, SafetensorError) as error:
            yield Finding("weights", "differs", f"{WEIGHTS_FILE} cannot be read ({_line(error)})")
            return
        yield _same("weights", weights, evidence.result.weights_sha256, "the digest of the weights")


def _made_from_it(registered: ModelVersion, folder: Path, evidence: Evidence) -> Iterator[Finding]:
    """What people read: the card can be made again, and of the report the version keeps a digest."""
    found = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    report, card = found.get(REPORT), found.get(CARD)
    expected = sha256(model_card(evidence).encode())
    yield _same("model card", None if card is None else sha256(card), expected, "it is what the evidence says")
    told = "the version's tag names its digest"
    yield _same("report", None if report is None else sha256(report), registered.tags.get(REPORT_TAG, ""), told)
    for name in sorted(found.keys() - {FILE, REPORT, CARD, SIGNATURE}):
        yield Finding(f"file {FOLDER}/{name}", "differs", f"{FOLDER}/{name} was added")


def _tags(registered: ModelVersion, evidence: Evidence) -> Iterator[Finding]:
    expected = evidence.tags()
    names = expected.keys() | {name for name in registered.tags if name.startswith(METRIC_TAG)}
    different = sorted(name for name in names if registered.tags.get(name) != expected.get(name))
    for name in different:
        yield _same(f"tag {name}", registered.tags.get(name), expected.get(name), "as the evidence has it")
    if not different:
        yield Finding("tags", "same", f"all {len(expected)} tags are as the evidence has them")


def _config(evidence: Evidence) -> Finding:
    try:
        found = read_artifact(evidence.run.id, "config.yaml")
    except (MlflowException, OSError) as error:
        return Finding("config", "differs", f"config.yaml of run {evidence.run.id} cannot be read ({_line(error)})")
    return _same("config", sha256(found), evidence.run.config_sha256, "config.yaml of the run")


def _manifests(path: Path, evidence: Evidence) -> Iterator[Finding]:
    """Each request's own list, and whether what it names counts as trained on."""
    try:
        training = Manifest.from_csv(path / "extra_files" / MANIFEST_FILE)
    except UnlearnError:
        training = None  # missing or changed, which the files' digests tell
    for request in evidence.requests:
        part = f"request {request.id}"
        try:
            manifest = forget_requests.read_manifest_of(request.run_id)
        except UnlearnError as error:
            yield Finding(part, "differs", f"its manifest is missing: {error}")
            continue
        yield _same(part, manifest.digest, request.manifest_sha256, "the list of its samples")
        if manifest.salt is None and training is not None and (kept := int(training.mask(manifest.ids).sum())):
            yield Finding(part, "differs", f"{kept} of its samples are in the training manifest")


def _chain(client: MlflowClient, evidence: Evidence, folder: Path) -> Iterator[Finding]:
    """Each earlier step by the digest of its evidence, and the source by that of its weights."""
    steps = {step.uri: step for step in evidence.lineage}
    files = {evidence.source.uri: evidence.source.files}
    for uri in dict.fromkeys([*steps, evidence.source.uri]):
        part = f"chain {uri}"
        weights = steps[uri].weights_sha256 if uri in steps else evidence.source.weights_sha256
        end: str | None = None
        try:
            registered = find_version(client, uri)
            end = retired(registered) if registered is not None else None
            path = download(uri, folder)
            stored = file_digests(path)
            if not stored:  # some stores give an empty folder for one that is gone
                raise FileNotFoundError("it has no files any more")
        except (UnlearnError, MlflowException, OSError) as error:
            yield Finding(part, "not checked", f"it was {end}" if end is not None else f"it is gone ({_line(error)})")
            continue
        if end is not None:
            yield Finding(part, "differs", f"it was {end}, and can still be read")
        if uri in steps:
            try:
                record, digest = read_evidence(path)
            except (FileNotFoundError, UnlearnError) as error:
                yield Finding(part, "differs", f"its evidence cannot be read ({_line(error)})")
                continue
            yield _same(part, digest, steps[uri].evidence_sha256, "its evidence")
            if digest == steps[uri].evidence_sha256:
                files.setdefault(uri, record.result.files)
        if uri in files and (changed := _changed(stored, files[uri])):
            yield Finding(part, "differs", f"{', '.join(changed)}: not as it was read")
            continue
        try:
            yield _same(part, stored_weights_digest(path), weights, "its weights")
        except FileNotFoundError:
            yield Finding(part, "same", "its files; it keeps no weights beside the model")
        except (OSError, SafetensorError) as error:
            yield Finding(part, "differs", f"its weights cannot be read ({_line(error)})")
    if evidence.source.evidence_sha256 is not None and not any(
        step.uri == evidence.source.uri and step.evidence_sha256 == evidence.source.evidence_sha256
        for step in evidence.lineage
    ):
        yield Finding("chain", "differs", f"the evidence of {evidence.source.uri} is not its last step")
    told = {request_id for step in evidence.lineage for request_id in step.request_ids} | {*evidence.request_ids}
    if told - {request.id for request in evidence.requests}:
        yield Finding("chain", "differs", "a request of an earlier step is not among the requests")


def _changed(found: dict[str, str], expected: dict[str, str]) -> list[str]:
    """Names of files that are missing, were added, or have another digest."""
    return sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))


def _signature(folder: Path, key: str | None) -> tuple[bool | None, Finding]:
    if not is_signed(folder):
        told = "the evidence is unsigned: whoever may edit the version may rewrite it with its digest"
        return False, Finding("signature", "not checked" if key is None else "differs", told)
    if key is None:
        return None, Finding(
            "signature", "not checked", "the evidence is signed; key= names the public key to check it"
        )
    reason = broken(folder, key)
    if reason is not None:
        return False, Finding("signature", "differs", f"it does not hold: {reason}")
    return True, Finding("signature", "same", "the evidence was signed by the holder of the key")


def _aliases(client: MlflowClient, examined: Examined) -> Iterator[Finding]:
    """An alias that was moved by hand is not prevented, but seen."""
    name = examined.registered.name
    versions = client.search_model_versions(f"name='{name}'")
    guarded = {key.removeprefix(PROMOTION_TAG) for v in versions for key in v.tags if key.startswith(PROMOTION_TAG)}
    tags = {str(version.version): version.tags for version in versions}
    for alias in examined.registered.aliases:
        part, key = f"alias {alias}", PROMOTION_TAG + alias
        told = examined.registered.tags.get(key)
        later = [number for number, theirs in tags.items() if _promoted_at(theirs.get(key)) > _promoted_at(told)]
        if alias not in {*guarded, GUARDED}:
            yield Finding(part, "not checked", "`promote` has never moved this alias")
        elif told is None:
            yield Finding(part, "differs", "it was moved by hand: no promotion of this version is recorded")
        elif later:
            told = f"it was moved back by hand: version {', '.join(later)} was promoted later"
            yield Finding(part, "differs", told)
        else:
            yield _same_promotion(part, told, examined)
    # An alias that `promote` gave to this version, and that a version without a later promotion has now.
    for alias, number in client.get_registered_model(name).aliases.items():
        key = PROMOTION_TAG + alias
        told = examined.registered.tags.get(key)
        if told is None or alias in examined.registered.aliases:
            continue
        if _promoted_at(tags[str(number)].get(key)) <= _promoted_at(told):
            yield Finding(f"alias {alias}", "differs", f"it was moved by hand from here to version {number}")


def _promoted_at(told: str | None) -> str:
    """ISO time in UTC, as the tag of a promotion has it; empty without one."""
    try:
        return str(json.loads(told or "{}").get("at", ""))
    except (ValueError, AttributeError):
        return ""


def _same_promotion(part: str, told: str, examined: Examined) -> Finding:
    expected = {
        "uri": examined.uri,
        "weights_sha256": examined.evidence.result.weights_sha256,
        "evidence_sha256": examined.sha256,
    }
    try:
        promotion = json.loads(told)
        recorded = json.loads(read_artifact(promotion["run_id"], f"{FOLDER}/{PROMOTION}"))
    except (ValueError, KeyError, TypeError, MlflowException, OSError) as error:
        hidden = isinstance(error, MlflowException) and error.error_code == "PERMISSION_DENIED"
        told = f"the record of its promotion cannot be read ({_line(error)})"
        return Finding(part, "not checked" if hidden else "differs", told)
    if promotion != recorded:
        return Finding(part, "differs", "the tag of its promotion is not what the promotion's run recorded")
    for name, value in expected.items():
        if promotion.get(name) != value:
            return _same(part, promotion.get(name), value, f"the {name} that was promoted")
    told = f"promoted by {promotion.get('by')} at {promotion.get('at')}"
    if promotion.get("override"):
        told += f", in spite of the verdict: {promotion['override']}"
    return Finding(part, "same", told)


def _recomputed(client: MlflowClient, examined: Examined, options: config.Verify, folder: Path) -> Iterator[Finding]:
    """The metrics once more; where anything differs, nothing is loaded."""
    # Here and not above: whoever only compares digests must not wait for them.
    from mlflow_unlearn.evaluation import compare, compute_metrics, read_splits
    from mlflow_unlearn.flavor import load_module
    from mlflow_unlearn.job import open_measured
    from mlflow_unlearn.view import training_mask

    evidence = examined.evidence
    if examined.differences:
        yield Finding("metrics", "not checked", "what differs from its evidence is not loaded")
        return
    reading = config.Evaluate(
        model_uri=examined.uri,
        data=options.data or evidence.data.source,
        device="cpu",
        seed=evidence.method.hyperparameters.get("seed", 0),
    )

    def choose(version: Version, _: Version, view: "View") -> "Chosen":
        """What the requests name and what the version retains: neither asks the source version, which may be gone."""
        named = [forget_requests.read_manifest(client, request_id) for request_id in evidence.request_ids]
        ids = view.source.train.ids
        forget = np.flatnonzero(np.any([manifest.mask(ids) for manifest in named], axis=0))
        if not len(forget):
            raise UnlearnError(f"{view.source.spec!r} has none of the forgotten samples any more")
        return view, forget, np.flatnonzero(training_mask(version, view.source)), evidence.data.salt

    def opened(original_uri: str | None) -> "tuple[Job, Version]":
        chosen = reading.model_copy(update={"original_uri": original_uri})
        return open_measured(client, chosen, folder, progress=False, choose=choose)

    try:
        try:
            job, original = opened(None)
        except UnlearnError as error:
            job, original = opened(examined.uri)
            yield Finding("metrics of original", "not checked", f"they cannot be measured again: {_line(error)}")
        before = load_module(original, None, len(job.view.classes), trainable=False)
    except UnlearnError as error:
        yield Finding("metrics", "not checked", f"they cannot be measured again: {_line(error)}")
        return
    sets = {"forget": job.forget_manifest, "retain": job.manifest(job.retain)}
    for role, manifest in sets.items():
        if manifest.digest != getattr(evidence.data, role).sha256:
            yield Finding("metrics", "differs", f"the {role} set is another one in these data")
    # Not from the cache, which is no evidence.
    own = read_splits(job.module, job.splits, job.hardware, name="unlearned")
    if original is job.version:  # alone: what is relative to the original is left out
        columns = {"unlearned": compute_metrics(own, seed=reading.seed)}
    else:
        readings = {"original": read_splits(before, job.splits, job.hardware, name="original"), "unlearned": own}
        columns = compare(readings, seed=reading.seed)
    for model, metrics in columns.items():
        expected = evidence.metrics[model].values
        shared = {key: abs(value - expected[key]) for key, value in metrics.items() if key in expected}
        worst = max(shared, key=lambda key: shared[key])
        outcome: Literal["same", "differs"] = "same" if shared[worst] <= TOLERANCE else "differs"
        told = f"{len(shared)} of {len(expected)} measured again; largest difference: {shared[worst]:.2g}, of {worst}"
        yield Finding(f"metrics of {model}", outcome, told)
    apart = [request.id for request in evidence.requests if request.metrics] + ["their union"] * bool(evidence.union)
    if rest := [*(["gold"] if "gold" in evidence.metrics else []), *apart]:
        yield Finding("other metrics", "not checked", f"those of {', '.join(rest)} are not measured again")


def _line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return without_passwords(lines[0])[:200] if lines else type(error).__name__
