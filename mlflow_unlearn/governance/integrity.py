"""`verify`: does a version still agree with its evidence? Files are hashed before anything in them is loaded."""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from mlflow.entities import ViewType
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from safetensors import SafetensorError

from mlflow_unlearn.console import first_line
from mlflow_unlearn.data.manifest import Manifest
from mlflow_unlearn.errors import Refused, UnlearnError
from mlflow_unlearn.evidence.checkpoints import CHECKPOINTS_TAG
from mlflow_unlearn.evidence.record import (
    CARD,
    DIGEST_TAG,
    FILE,
    FOLDER,
    REPORT,
    REPORT_TAG,
    SIGNATURE,
    Evidence,
    RequestRecord,
    Wording,
    read_evidence,
    sha256,
)
from mlflow_unlearn.evidence.review import HEAD_TAG, MODEL_URI_TAG, VERDICT_TAG, read_chain
from mlflow_unlearn.evidence.review import TAG as REVIEW_TAG
from mlflow_unlearn.evidence.signing import Signature, check
from mlflow_unlearn.governance.checkpoints import record_in
from mlflow_unlearn.governance.locating import ENDPOINT_TAG
from mlflow_unlearn.governance.model_folder import MLMODEL
from mlflow_unlearn.parsing import load_json
from mlflow_unlearn.registry import forget_requests
from mlflow_unlearn.registry.artifacts import locate, remember, run_folder
from mlflow_unlearn.registry.clients import experiment_ids, quoted
from mlflow_unlearn.registry.digests import file_digests, stored_weights_digest
from mlflow_unlearn.registry.network import persistently
from mlflow_unlearn.registry.system import same_release
from mlflow_unlearn.registry.versions import (
    MANIFEST_FILE,
    REGISTERING_TAG,
    TRAINED_ON_TAG,
    TRAINING_TAG,
    WEIGHTS_FILE,
    download,
    read_artifact,
    registered_version,
    retired,
    version_there,
)
from mlflow_unlearn.report import card_of_schema_2
from mlflow_unlearn.report.card import model_card
from mlflow_unlearn.report.description import (
    PEOPLE,
    VERDICT_FOR_PEOPLE,
    begins_with,
    body,
    body_in,
    people_tags,
    split,
    verdict_paragraph,
)
from mlflow_unlearn.spelling import spelled

PROMOTION_TAG, PROMOTION = "unlearn.promotion.", "promotion.json"
LATER_TAGS = {DIGEST_TAG, REPORT_TAG, VERDICT_TAG, HEAD_TAG, TRAINED_ON_TAG, CHECKPOINTS_TAG, TRAINING_TAG}
LATER_TAGS |= {VERDICT_FOR_PEOPLE}
STATED = ("verdict in the description", f"tag {VERDICT_FOR_PEOPLE}")
"""What each review writes anew."""
LATER_PREFIXES = (PROMOTION_TAG, REVIEW_TAG, forget_requests.TAG, ENDPOINT_TAG)
"""What a version is given after its evidence was written; each is checked by itself, but for users' endpoints."""


@dataclass(frozen=True)
class IntegrityFinding:
    """One thing that was checked.

    Attributes:
        part: what was looked at.
        outcome: whether it is as the evidence says.
        message: in words.
    """

    part: str
    outcome: Literal["same", "differs", "not checked"]
    message: str


@dataclass(frozen=True)
class Examined:
    """A version as it was found.

    Attributes:
        registered: as the registry has it.
        path: its files.
        evidence: its record.
        sha256: of the record's file.
        signature: what came of checking the signature; None: the evidence is unsigned.
        findings: everything that was checked.
        experiments: the ids of all that this user may read, in which runs about the version may be.
    """

    registered: ModelVersion
    path: Path
    evidence: Evidence
    sha256: str
    signature: Signature | None
    findings: Sequence[IntegrityFinding]
    experiments: list[str]

    @property
    def uri(self) -> str:
        """``models:/NAME/VERSION``."""
        return f"models:/{self.registered.name}/{self.registered.version}"

    @property
    def differences(self) -> list[IntegrityFinding]:
        """What is not as the evidence says."""
        return [finding for finding in self.findings if finding.outcome == "differs"]

    def refuse_differences(self, what: str, *, but: Collection[str] = ()) -> None:
        """Nothing may be decided about a version that is not the one that was measured.

        Args:
            what: cannot be done.
            but: parts that are about to be written anew.

        Raises:
            Refused: there is a difference.
        """
        if found := [finding for finding in self.differences if finding.part not in but]:
            differences = "; ".join(f"{finding.part}: {finding.message}" for finding in found)
            raise Refused(f"{self.uri} {what}, since it does not agree with its evidence ({differences}): see `verify`")


def examine(client: MlflowClient, uri: str, folder: Path, *, key: str | None = None) -> Examined:
    """Every check of a version that needs no model to be run.

    Args:
        client: of the registry.
        uri: of the version.
        folder: for temporary files.
        key: public EC key (PEM file) to check the signature with.

    Raises:
        UnlearnError: there is no such version, or the key is not one.
        Refused: it has no files or no evidence, so that there is nothing to check.
    """
    if key is not None and not Path(key).is_file():
        raise UnlearnError(f"{spelled('key', key)} is not a public key: there is no such file")
    registered = registered_version(client, uri)
    uri = f"models:/{registered.name}/{registered.version}"
    if (how := retired(registered)) is not None:
        raise Refused(f"the files of {uri} are gone, it was {how}")
    try:
        path = download(uri, folder)
    except (MlflowException, OSError) as error:
        raise Refused(f"the files of {uri} cannot be read ({first_line(error)})") from error
    try:
        evidence, digest = read_evidence(path)
    except FileNotFoundError as error:
        missing = "its evidence is missing" if DIGEST_TAG in registered.tags else "it has no evidence"
        raise Refused(f"{uri}: {missing}, so nothing can be decided about it; `unlearn` writes evidence") from error
    except UnlearnError as error:
        raise Refused(f"{uri}: {error}") from error
    signature = check(path / FOLDER, key, evidence.public_key)
    experiments = experiment_ids(client)
    locate(client, _runs_of(registered, evidence), experiments)
    reviews = _runs_of_reviews(client, uri, experiments)
    findings = [
        same("evidence", registered.tags.get(DIGEST_TAG), digest, "the version's tag names its digest"),
        *_run_copy(evidence, path / FOLDER, folder),
        _bound(registered, evidence),
        *_files(path, evidence),
        *_made_from_it(registered, path / FOLDER, evidence),
        *_tags(registered, evidence),
        *_reviews(client, registered, reviews),
        *_for_people(client, registered, evidence, reviews),
        _config(evidence),
        *_trained_on(registered, path),
        *_manifests(path, evidence),
        *_later_requests(client, registered),
        *_chain(client, evidence, folder),
        _signature(signature, key, evidence),
    ]
    return Examined(registered, path, evidence, digest, signature, findings, experiments)


def same(part: str, found: str | None, expected: str | None, message: str) -> IntegrityFinding:
    """What comes of comparing two values, such as digests.

    Args:
        part: what is checked.
        found: as it is stored.
        expected: as the evidence has it.
        message: what the values are.
    """
    if found == expected:
        return IntegrityFinding(part, "same", message)
    return IntegrityFinding(part, "differs", f"{message}: {_short(found)} instead of {_short(expected)}")


def _short(value: str | None) -> str:
    if value is None:
        return "nothing"
    return value[:12] + "…" if re.fullmatch(r"[0-9a-f]{64}", value) else repr(value[:80])


def _run_copy(evidence: Evidence, own: Path, folder: Path) -> Iterator[IntegrityFinding]:
    part, target = "evidence on the run", folder / "evidence on the run"
    target.mkdir()
    try:
        changed = _changed(_contents(run_folder(evidence.run.id, FOLDER, target)), _contents(own))
    except (MlflowException, OSError) as error:
        yield IntegrityFinding(part, "not checked", f"the run cannot be read ({first_line(error)})")
        return
    if not changed:
        yield IntegrityFinding(part, "same", "its files are the version's")
    for name in changed:
        yield IntegrityFinding(part, "differs", f"{FOLDER}/{name} is not the version's")


def _bound(registered: ModelVersion, evidence: Evidence) -> IntegrityFinding:
    uri = f"models:/{registered.name}/{registered.version}"
    if evidence.result.uri == uri:
        return IntegrityFinding("version", "same", "the evidence is about this name and version")
    return IntegrityFinding("version", "differs", f"the evidence is about {evidence.result.uri}: this is a copy of it")


def _files(path: Path, evidence: Evidence) -> Iterator[IntegrityFinding]:
    found, expected = file_digests(path), evidence.result.files
    for name in sorted(found.keys() | expected.keys()):
        part = {WEIGHTS_FILE: "weights", MANIFEST_FILE: "manifest"}.get(name.rpartition("/")[2], f"file {name}")
        if name not in found:
            yield IntegrityFinding(part, "differs", f"{name} is missing")
        elif name not in expected:
            yield IntegrityFinding(part, "differs", f"{name} was added")
        elif found[name] != expected[name]:
            yield IntegrityFinding(part, "differs", f"{name} was changed")
    if found == expected:
        yield IntegrityFinding("files", "same", f"all {len(found)} files of the model have their digests")
        # Only now may one be opened.
        try:
            weights = stored_weights_digest(path)
        except (OSError, SafetensorError) as error:
            yield IntegrityFinding("weights", "differs", f"{WEIGHTS_FILE} cannot be read ({first_line(error)})")
            return
        yield same("weights", weights, evidence.result.weights_sha256, "the digest of the weights")


def _made_from_it(registered: ModelVersion, folder: Path, evidence: Evidence) -> Iterator[IntegrityFinding]:
    """What people read: the card can be made again, and of the report the version keeps a digest."""
    found = _contents(folder)
    report, card = found.get(REPORT), found.get(CARD)
    if evidence.written_as == 2:  # held against what that release would write
        expected = sha256(card_of_schema_2.model_card(load_json(found[FILE])).encode())
        yield same("model card", None if card is None else sha256(card), expected, "it is what the evidence says")
    else:
        text = None if card is None else card.decode(errors="replace")
        yield _says("model card", text, model_card(evidence), evidence, CARD)
    message = "the version's tag names its digest"
    yield same("report", None if report is None else sha256(report), registered.tags.get(REPORT_TAG, ""), message)
    for name in sorted(found.keys() - {FILE, REPORT, CARD, SIGNATURE}):
        yield IntegrityFinding(f"file {FOLDER}/{name}", "differs", f"{FOLDER}/{name} was added")


def _tags(registered: ModelVersion, evidence: Evidence) -> Iterator[IntegrityFinding]:
    expected = evidence.tags() | people_tags(evidence, None)
    expected.pop(VERDICT_FOR_PEOPLE, None)  # which reviews change
    own = {n for n in registered.tags if n.startswith(("unlearn.", PEOPLE)) and not n.startswith(LATER_PREFIXES)}
    names = expected.keys() | (own - LATER_TAGS)
    different = sorted(name for name in names if registered.tags.get(name) != expected.get(name))
    worded = evidence.texts or {}  # by another release, in other words
    different = [n for n in different if n not in worded or Wording.of(registered.tags.get(n, "")) != worded[n]]
    for name in different:
        yield same(f"tag {name}", registered.tags.get(name), expected.get(name), "as the evidence has it")
    if not different:
        yield IntegrityFinding("tags", "same", f"all {len(expected)} tags are as the evidence has them")


def _runs_of(registered: ModelVersion, evidence: Evidence) -> Iterator[str]:
    """The runs whose files are read: of the evidence, its requests, and what the version was given since."""
    yield evidence.run.id
    yield from (request.run_id for request in evidence.requests)
    for key, value in registered.tags.items():
        if key.startswith(LATER_PREFIXES):
            yield from re.findall('"run_id": "([0-9a-f]{32})"', value)


def _runs_of_reviews(client: MlflowClient, uri: str, experiments: list[str]) -> dict[str, dict[str, str]]:
    """Those of finished reviews that this user may read, with their tags."""
    condition = f"tags.`{MODEL_URI_TAG}` = {quoted(uri)} and tags.`{HEAD_TAG}` LIKE '%'"
    found = client.search_runs(experiments, condition, run_view_type=ViewType.ALL)
    remember(found)
    return {run.info.run_id: run.data.tags for run in found}


def _reviews(
    client: MlflowClient, registered: ModelVersion, runs: Mapping[str, Mapping[str, str]]
) -> Iterator[IntegrityFinding]:
    """The chain that the version's tags form, and what the reviews' own runs say, as far as this user may read them."""
    chain = read_chain(registered.tags)
    if chain.problems or any(chain.missing(runs)):
        # A review that was recorded in this moment is not a difference: its run is tagged after the version.
        chain = read_chain(client.get_model_version(registered.name, registered.version).tags)
    problems = [*chain.problems, *chain.missing(runs)]
    if chain.begun is not None and chain.begun.run_id not in runs:
        begun = f"review {chain.begun.n} was begun in run {chain.begun.run_id}"
        try:
            persistently(partial(client.get_run, chain.begun.run_id))
            yield IntegrityFinding("reviews", "not checked", f"{begun} and not finished: it does not count")
        except MlflowException as error:
            problems.append(f"{begun}, and whether it was finished cannot be read ({first_line(error)})")
    for problem in problems:
        yield IntegrityFinding("reviews", "differs", problem)
    if not problems:
        unlinked = sum(entry.previous is None for entry in chain.entries.values())
        earlier = f"; an earlier release recorded the first {unlinked}, which only count" if unlinked else ""
        number = len(chain.entries)
        there = {0: "there is none", 1: "there is one"}.get(number, f"all {number} are there, each after the other")
        yield IntegrityFinding("reviews", "same", there + earlier)


def _says(part: str, found: str | None, expected: str, evidence: Evidence, name: str) -> IntegrityFinding:
    """Whether a text is what the evidence says, in this release's words or in those of the one that wrote it.

    Args:
        part: what is checked.
        found: as it is stored.
        expected: in this release's words.
        evidence: that it is made of.
        name: of the text there.
    """
    said = "it is what the evidence says"
    if found is not None and found != expected:
        if evidence.texts is None:
            return IntegrityFinding(part, "not checked", "another release wrote it, which did not record its words")
        if Wording.of(found) == evidence.texts.get(name):
            return IntegrityFinding(part, "same", f"{said}, in another release's words")
    return same(part, None if found is None else sha256(found.encode()), sha256(expected.encode()), said)


def _for_people(
    client: MlflowClient, registered: ModelVersion, evidence: Evidence, reviews: Collection[str]
) -> Iterator[IntegrityFinding]:
    """Description and verdict for people are of the review that counts; what users write after ours is theirs."""
    if evidence.run.experiment_id is None:
        return  # an earlier release's, in its words
    findings = list(_stated(registered, evidence, reviews))
    if any(finding.outcome == "differs" for finding in findings):
        # A review that was recorded in this moment is not a difference.
        findings = list(_stated(client.get_model_version(registered.name, registered.version), evidence, reviews))
    yield from findings


def _stated(registered: ModelVersion, evidence: Evidence, reviews: Collection[str]) -> Iterator[IntegrityFinding]:
    possible = [*read_chain(registered.tags).stated(reviews)]
    paragraph, below = split(registered.description or "", evidence, possible)
    paragraphs = [verdict_paragraph(evidence, review) for review in possible]
    tag = registered.tags.get(VERDICT_FOR_PEOPLE, "")
    tags = [people_tags(evidence, review)[VERDICT_FOR_PEOPLE] for review in possible]
    last = possible[0]
    what = "the evidence says" if last is None else f"review {last.n} says"
    # Another release may have put it in another way, but for the verdict, with which each of them begins.
    ours_too = same_release(evidence.system)
    for part, found, said, verdict in (
        (STATED[0], paragraph, paragraphs, begins_with(evidence, last)),
        (STATED[1], tag, tags, begins_with(evidence, last).replace("*", "")),
    ):
        if found == said[0]:
            yield IntegrityFinding(part, "same", f"it is what {what}")
        elif found in said and found.startswith(verdict):
            message = "the last review is not finished, or was interrupted before it got here: review it again"
            yield IntegrityFinding(part, "not checked", message)
        elif found.startswith(verdict) and not ours_too:
            yield IntegrityFinding(part, "not checked", f"it begins with the verdict that {what}, in other words")
        else:
            again = ": review it again, which writes it anew" if last is not None else ""
            yield IntegrityFinding(part, "differs", f"it is not what {what}{again}")
    yield _says("description", body_in(below, evidence), body(evidence), evidence, "description")


def _config(evidence: Evidence) -> IntegrityFinding:
    try:
        found = read_artifact(evidence.run.id, "config.yaml")
    except (MlflowException, OSError) as error:
        return IntegrityFinding(
            "config", "differs", f"config.yaml of run {evidence.run.id} cannot be read ({first_line(error)})"
        )
    return same("config", sha256(found), evidence.run.config_sha256, "config.yaml of the run")


def _trained_on(registered: ModelVersion, path: Path) -> Iterator[IntegrityFinding]:
    """The tags by which `locate` finds a version and its checkpoints, beside the list that the former is about."""
    try:
        record = record_in(path / MLMODEL)
        manifest = Manifest.from_csv(path / "extra_files" / MANIFEST_FILE)
    except (ValueError, OSError, UnlearnError):
        return  # missing or changed, which the files' digests tell
    recorded, stated = record.trained_on, record.tags()
    for tag in (CHECKPOINTS_TAG, TRAINING_TAG):
        if tag in stated or tag in registered.tags:
            yield same(f"tag {tag}", registered.tags.get(tag), stated.get(tag), "as the model records it")
    if recorded is None and TRAINED_ON_TAG not in registered.tags:
        return  # of an earlier release
    part = f"tag {TRAINED_ON_TAG}"
    expected = recorded.tag()[TRAINED_ON_TAG] if recorded is not None else None
    yield same(part, registered.tags.get(TRAINED_ON_TAG), expected, "as the model records it")
    if recorded is not None:
        yield same(part, manifest.digest, recorded.manifest_sha256, "the list of what it was trained on")


def _manifests(path: Path, evidence: Evidence) -> Iterator[IntegrityFinding]:
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
            yield IntegrityFinding(part, "differs", f"its manifest is missing: {error}")
            continue
        yield same(part, manifest.digest, request.manifest_sha256, "the list of its samples")
        if request.request_sha256 is not None:
            yield _request_file(part, request)
        if training is None:
            continue
        # Plain ids, or hashed as those of the version are; in another way, nobody can tell.
        alike = {None: map(training.key, manifest.ids), training.salt: manifest.ids}.get(manifest.salt, ())
        if kept := len({*alike} & {*training.ids}):
            yield IntegrityFinding(part, "differs", f"{kept} of its samples are in the training manifest")


def _request_file(part: str, request: RequestRecord) -> IntegrityFinding:
    try:
        found = forget_requests.read_details(request.run_id)["sha256"]
    except UnlearnError as error:
        return IntegrityFinding(part, "differs", f"its request.json cannot be read: {error}")
    return same(part, found, request.request_sha256, "its request.json, as it was fulfilled")


def _later_requests(client: MlflowClient, registered: ModelVersion) -> Iterator[IntegrityFinding]:
    """What was requested of this version since, and who is said to have done it."""
    for key, value in sorted(registered.tags.items()):
        if key.startswith(forget_requests.TAG):
            try:
                request = forget_requests.ForgetRequest.from_tag(key, value)
                if request.of != f"models:/{registered.name}/{registered.version}":
                    raise UnlearnError(f"it is about {request.of}")
                forget_requests.read_filed(request)
            except UnlearnError as error:
                outcome: Literal["not checked", "differs"] = "not checked" if hidden(error.__cause__) else "differs"
                yield IntegrityFinding(f"tag {key}", outcome, first_line(error))
            else:
                yield from _done(client, key, request)


def _done(client: MlflowClient, key: str, request: forget_requests.ForgetRequest) -> Iterator[IntegrityFinding]:
    for uri in request.done_by:
        version = version_there(client, uri)
        if version is None or REGISTERING_TAG in version.tags:
            how = "is gone" if version is None else "is not complete"
            yield IntegrityFinding(f"tag {key}", "not checked", f"{uri}, which is to have carried it out, {how}")
            continue
        if request.id not in version.tags.get("unlearn.request_ids", "").split(","):
            yield IntegrityFinding(f"tag {key}", "differs", f"{uri} did not carry it out")
    yield IntegrityFinding(f"tag {key}", "same", "its files are those that were filed")


def hidden(error: BaseException | None) -> bool:
    """Whether the server does not let its user read something: others may."""
    return isinstance(error, MlflowException) and error.error_code == "PERMISSION_DENIED"


def _chain(client: MlflowClient, evidence: Evidence, folder: Path) -> Iterator[IntegrityFinding]:
    """Each earlier step by the digest of its evidence, and the source by that of its weights."""
    steps = {step.uri: step for step in evidence.lineage}
    files = {evidence.source.uri: evidence.source.files}
    for uri in dict.fromkeys([*steps, evidence.source.uri]):
        part = f"chain {uri}"
        weights = steps[uri].weights_sha256 if uri in steps else evidence.source.weights_sha256
        end: str | None = None
        try:
            registered = version_there(client, uri)
            if registered is not None and REGISTERING_TAG in registered.tags:  # only complete ones are unlearned
                found = f"it says that it is not complete ({REGISTERING_TAG}), and the evidence names it"
                yield IntegrityFinding(part, "differs", found)
            end = retired(registered) if registered is not None else None
            path = download(uri, folder)
            stored = file_digests(path)
            if not stored:  # some stores give an empty folder for one that is gone
                raise FileNotFoundError("it no longer has files")
        except (UnlearnError, MlflowException, OSError) as error:
            yield IntegrityFinding(
                part, "not checked", f"it was {end}" if end is not None else f"it is gone ({first_line(error)})"
            )
            continue
        if end is not None:
            yield IntegrityFinding(part, "differs", f"it was {end}, and can still be read")
        if uri in steps:
            try:
                record, digest = read_evidence(path)
            except (FileNotFoundError, UnlearnError) as error:
                yield IntegrityFinding(part, "differs", f"its evidence cannot be read ({first_line(error)})")
                continue
            yield same(part, digest, steps[uri].evidence_sha256, "its evidence")
            if digest == steps[uri].evidence_sha256:
                files.setdefault(uri, record.result.files)
        if uri in files and (changed := _changed(stored, files[uri])):
            yield IntegrityFinding(part, "differs", f"{', '.join(changed)}: not as it was read")
            continue
        try:
            yield same(part, stored_weights_digest(path), weights, "its weights")
        except FileNotFoundError:
            yield IntegrityFinding(part, "same", "its files; it keeps no weights beside the model")
        except (OSError, SafetensorError) as error:
            yield IntegrityFinding(part, "differs", f"its weights cannot be read ({first_line(error)})")
    if evidence.source.evidence_sha256 is not None and not any(
        step.uri == evidence.source.uri and step.evidence_sha256 == evidence.source.evidence_sha256
        for step in evidence.lineage
    ):
        yield IntegrityFinding("chain", "differs", f"the evidence of {evidence.source.uri} is not its last step")
    reported = {request_id for step in evidence.lineage for request_id in step.request_ids} | {*evidence.request_ids}
    if reported - {request.id for request in evidence.requests}:
        yield IntegrityFinding("chain", "differs", "a request of an earlier step is not among the requests")


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _changed(found: Mapping[str, str | bytes], expected: Mapping[str, str | bytes]) -> list[str]:
    """Names of files that are missing, were added, or have another digest or content."""
    return sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))


def _signature(signature: Signature | None, key: str | None, evidence: Evidence) -> IntegrityFinding:
    part = "signature"
    if signature is None and evidence.public_key is not None:
        return IntegrityFinding(part, "differs", "it is missing: the evidence says that it was signed")
    if signature is None:
        message = "the evidence is unsigned: anyone who may edit the version may rewrite it with its digest"
        return IntegrityFinding(part, "not checked" if key is None else "differs", message)
    if signature.broken is not None:
        return IntegrityFinding(part, "differs", f"it does not hold: {signature.broken}")
    if signature.signer is None:
        return IntegrityFinding(part, "not checked", "the evidence is signed; --key names the public key to check it")
    alone = set(signature.covers) == {FILE}
    scope = "it covers the evidence alone" if alone else "it covers evidence, report and model card"
    if not signature.given:
        message = f"it holds for the key {signature.signer}, and {scope}; --key says that this is a key to trust"
        return IntegrityFinding(part, "not checked", message)
    message = f"the evidence was signed by the holder of the key {signature.signer}; {scope}"
    return IntegrityFinding(part, "same", message)
