"""What belongs to a case: its requests, and every record of what came of them, gathered from runs and versions."""

import json
import re
import tempfile
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

from mlflow.entities import Run, ViewType
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from pydantic import ValidationError

from mlflow_unlearn.console import counted, storable
from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.evidence.audit import AUDIT_FILE, AuditRecord
from mlflow_unlearn.evidence.case import Case, CaseEvent, CaseRequest, CaseVersion, EventKind, Role, by_time
from mlflow_unlearn.evidence.record import (
    CARD,
    FILE,
    FOLDER,
    REPORT,
    SIGNATURE,
    Evidence,
    read_evidence,
    sha256,
)
from mlflow_unlearn.evidence.review import ReviewRecord, read_chain
from mlflow_unlearn.governance.audits import audit_runs, strongest
from mlflow_unlearn.governance.case_files import (
    CaseFiles,
    FiledRecord,
    PromotionFile,
    RetirementFile,
    as_tagged,
    command_of,
    component,
    folder_of,
    mapping,
    model_digests,
    person,
    why,
)
from mlflow_unlearn.governance.files import Logged, files_of, logged_models
from mlflow_unlearn.governance.integrity import PROMOTION, PROMOTION_TAG
from mlflow_unlearn.governance.model_folder import is_gone
from mlflow_unlearn.registry.artifacts import run_folder
from mlflow_unlearn.registry.clients import experiment_ids, quoted
from mlflow_unlearn.registry.forget_requests import CASE_TAG, RUN_TAG, ForgetRequest
from mlflow_unlearn.registry.forget_requests import FOLDER as REQUEST_FOLDER
from mlflow_unlearn.registry.versions import (
    REGISTERING_TAG,
    RETIRED_TAG,
    unfinished,
    version_there,
)
from mlflow_unlearn.registry.walk import uri_of

RETIREMENT = "retirement.json"
_ID = re.compile("[0-9a-f]{12}")
_MOST_RUNS = 50_000
"""As many a store gives at once."""


def open_case(client: MlflowClient, case_id: str) -> Case:
    """The case with this id, or the one that the request with this id belongs to, as the stores have it now.

    Args:
        client: of tracking server and registry.
        case_id: 12 hexadecimal digits, of a case or of one of its requests.

    Raises:
        UnlearnError: there is neither.
    """
    if not _ID.fullmatch(case_id):
        raise UnlearnError(
            f"{case_id!r} is not the id of a request or of a case: it has 12 hexadecimal digits, as `request` prints"
        )
    # Whoever may create a run may give it any tag: what the version says of its request comes first.
    asked = as_tagged(client, case_id)
    runs = _request_runs(client, f"tags.`{RUN_TAG}` = '{case_id}'")
    case, members = case_id, _members(client, case_id)
    if asked is not None:
        case = asked.case_id if _ID.fullmatch(asked.case_id) else asked.id
    elif not _surely(members):
        case = next((found for run in runs if _ID.fullmatch(found := run.data.tags.get(CASE_TAG, ""))), case_id)
    members = _members(client, case) if case != case_id else members
    if asked is not None:
        members[case_id] = (asked.run_id, asked)
    elif runs and not _surely(members):
        members.setdefault(case_id, (runs[0].info.run_id, None))
    if not members:
        raise UnlearnError(
            f"there is neither a forget request nor a case {case_id!r} on this tracking server: `request` prints ids"
        )
    return _Gathering(client).case(case, members)


_Members = dict[str, tuple[str, ForgetRequest | None]]
"""Id of a request → the run in which it was filed, and the request as its version's tag has it."""


def _members(client: MlflowClient, case_id: str) -> _Members:
    """The requests of a case: those whose runs name it, unless the versions that they are about name another."""
    found: _Members = {}
    for run in _request_runs(client, f"tags.`{CASE_TAG}` = '{case_id}'"):
        request_id = run.data.tags[RUN_TAG]
        if request_id not in found:
            tag = as_tagged(client, request_id)
            found[request_id] = (tag.run_id if tag is not None else run.info.run_id, tag)
    return {key: (run_id, tag) for key, (run_id, tag) in found.items() if tag is None or tag.case_id == case_id}


def _surely(members: _Members) -> bool:
    return any(tag is not None for _, tag in members.values())


def _request_runs(client: MlflowClient, where: str) -> list[Run]:
    """Runs in which requests were filed, the newest first; deleted ones too: what was asked stays asked."""
    found = client.search_runs(
        experiment_ids(client),
        where,
        run_view_type=ViewType.ALL,
        max_results=_MOST_RUNS,
        order_by=["attributes.start_time DESC"],
    )
    return [run for run in found if _ID.fullmatch(run.data.tags.get(RUN_TAG, ""))]  # it is to name a folder


class _Gathering:
    """What has been found so far."""

    def __init__(self, client: MlflowClient) -> None:
        self._client = client
        self._experiments = experiment_ids(client)
        self._found = CaseFiles()
        self._events: list[CaseEvent] = []

    def case(self, case_id: str, members: _Members) -> Case:
        """All of it, from its requests."""
        requests = [self._request(request_id, *members[request_id]) for request_id in sorted(members)]
        versions = self._versions(requests)
        # Of a copy a dossier has the tags alone: the records are the original's.
        copies = {version.uri for version in versions if version.role == "copy"}
        done = [[uri for uri in request.done_by if uri not in copies] for request in requests]
        return Case(
            id=case_id,
            requests=[r.model_copy(update={"done_by": by}) for r, by in zip(requests, done, strict=True)],
            versions=versions,
            events=sorted(self._events, key=by_time),
            missing=dict(sorted(self._found.missing.items())),
            files=dict(sorted(self._found.files.items())),
        )

    def _event(
        self, kind: EventKind, about: str, message: str, *, at: object, by: object, run_id: str, file: str
    ) -> None:
        digest = sha256(self._found.files[file])
        self._events.append(
            CaseEvent(
                at=str(at), kind=kind, about=about, message=message, by=str(by), run_id=run_id, file=file, sha256=digest
            )
        )

    @cached_property
    def _models(self) -> list[Logged]:
        return logged_models(self._client)

    # Requests

    def _request(self, request_id: str, run_id: str, tag: ForgetRequest | None) -> CaseRequest:
        folder = f"requests/{request_id}"
        path = f"{folder}/request.json"
        details = self._found.record(path, run_id, f"{REQUEST_FOLDER}/request.json", FiledRecord)
        listed = self._found.artifact(f"{folder}/manifest.csv", run_id, f"{REQUEST_FOLDER}/manifest.csv")
        by = person(details.get("filed_by"))
        request = CaseRequest(
            id=request_id,
            of=str(details.get("of", tag.of if tag is not None else "")),
            run_id=run_id,
            filed=details.get("filed") or None,
            filed_by=by,
            requester=details.get("requester") or None,
            reason=details.get("reason") or None,
            due=details.get("due") or None,
            samples=details.get("samples"),
            hashed=listed.startswith(b"# salt=") if listed is not None else None,
            done_by=self._done_by(request_id, tag),
            withdrawn=str(tag.withdrawn) if tag is not None and tag.withdrawn is not None else None,
            folder=folder,
        )
        if details:
            due = f", due {request.due}" if request.due else ""
            message = f"{counted(request.samples or 0, 'sample')} of {request.of} to be forgotten{due}"
            self._event("filed", request_id, message, at=request.filed, by=by, run_id=run_id, file=path)
        return request

    def _done_by(self, request_id: str, tag: ForgetRequest | None) -> list[str]:
        """By its tag, and by the tags of the versions themselves, lest the former went with its version."""
        said = list(tag.done_by) if tag is not None else []
        where = f"tags.`unlearn.request_ids` LIKE '%{request_id}%'"
        found = self._client.search_model_versions(where, order_by=["name ASC", "version_number ASC"])
        return list(
            dict.fromkeys([*said, *(uri_of(version) for version in found if _carried_out(version, request_id))])
        )

    # Versions

    def _versions(self, requests: list[CaseRequest]) -> list[CaseVersion]:
        ids: dict[str, list[str]] = {}
        knows: dict[str, list[str]] = {}
        for request in requests:
            knows.setdefault(request.of, []).append(request.id)
            for uri in request.done_by:
                ids.setdefault(uri, []).append(request.id)
        known = {uri: self._evidence(uri) for uri in ids}
        copies = {uri for uri, evidence in known.items() if evidence is not None and evidence.result.uri != uri}
        for uri, evidence in known.items():
            if evidence is None or uri in copies:
                continue
            steps = [each for step in evidence.lineage for each in (step.uri, step.source_uri)]
            for earlier in dict.fromkeys([evidence.source.uri, *steps]):
                knows.setdefault(earlier, []).extend(i for i in ids[uri] if earlier not in ids or i not in ids[earlier])
        later = [uri for uri in self._made_from([u for u in ids if u not in copies]) if uri not in {*ids, *knows}]
        known |= {uri: self._evidence(uri) for uri in later}
        found = []
        for uri in dict.fromkeys([*knows, *ids, *later]):
            role: Role = "copy" if uri in copies else "fulfilled" if uri in ids else "later"
            role = "source" if uri in knows and uri not in ids else role
            own = ids.get(uri, []) if role == "fulfilled" else []
            version = self._version(uri, role, own, list(dict.fromkeys(knows.get(uri, []))), known.get(uri))
            found += [version] if version is not None else []
        return found

    def _made_from(self, uris: list[str]) -> list[str]:
        """Versions that were made from these, or from what was made from them, and promoted."""
        seen, promoted = list(uris), []
        for uri in seen:
            for version in self._client.search_model_versions(f"tags.`unlearn.source_uri` = {quoted(uri)}"):
                if (made := uri_of(version)) not in seen and REGISTERING_TAG not in version.tags:
                    seen.append(made)
                    if any(key.startswith(PROMOTION_TAG) for key in version.tags):
                        promoted.append(made)
        return promoted

    def _evidence(self, uri: str) -> Evidence | None:
        """Of the run that made the version, which has it after the version is retired as well."""
        registered = version_there(self._client, uri)
        if registered is None:
            self._found.missing[f"{folder_of(uri)}/version.json"] = f"{uri} is no longer in the registry"
            return None
        run_id, folder = registered.tags.get("unlearn.run_id", ""), f"{folder_of(uri)}/{FOLDER}"
        try:
            with tempfile.TemporaryDirectory(prefix="mlflow-unlearn-") as scratch:
                stored = run_folder(run_id, FOLDER, Path(scratch))
                evidence, _ = read_evidence(stored.parent)
                if evidence.result.uri != uri:  # a copy
                    return evidence
                for name in (FILE, CARD, REPORT, SIGNATURE):
                    if name != SIGNATURE or (stored / name).exists():
                        self._found.add(f"{folder}/{name}", f"run {run_id}", (stored / name).read_bytes)
        except (MlflowException, OSError) as error:
            self._found.missing[f"{folder}/{FILE}"] = why(f"run {run_id}", error) if run_id else f"{uri} names no run"
            return None
        except UnlearnError:  # it cannot be parsed
            self._found.artifact(f"{folder}/{FILE}", run_id, f"{FOLDER}/{FILE}")
            self._found.edited(f"{folder}/{FILE}")
            return None
        return evidence

    def _version(
        self, uri: str, role: Role, own: list[str], knows: list[str], evidence: Evidence | None
    ) -> CaseVersion | None:
        registered = version_there(self._client, uri)
        if registered is None:
            if re.fullmatch("models:/[^/]+/[1-9][0-9]*", uri):  # others were never registered
                self._found.missing[f"{folder_of(uri)}/version.json"] = f"{uri} is no longer in the registry"
            return None
        folder, tags = folder_of(uri), registered.tags
        gone = is_gone(uri, files_of(self._client, registered, self._models)) if RETIRED_TAG in tags else None
        now = {
            "uri": uri,
            "aliases": sorted(registered.aliases),
            "tags": storable(dict(sorted(tags.items()))),
            "files": model_digests(uri),
            "gone": gone,  # looked at where a tag says so, which is anybody's word
        }
        self._found.files[f"{folder}/version.json"] = (json.dumps(now, indent=1, ensure_ascii=False) + "\n").encode()
        self._retirement(registered)
        records = role in ("fulfilled", "later")
        if records and evidence is not None and f"{folder}/{FOLDER}/{FILE}" in self._found.files:
            message = f"{uri} by {evidence.provenance.method}, from {evidence.source.uri}: {evidence.membership}"
            by, file = evidence.made_by.display_name(), f"{folder}/{FOLDER}/{FILE}"
            self._event("unlearned", uri, message, at=evidence.created, by=by, run_id=evidence.run.id, file=file)
        audit = self._audits(uri, folder, evidence) if records else None
        verdict = self._reviews(uri, folder, tags) if records else None
        if records:
            self._promotions(uri, folder, tags)
        return CaseVersion(
            uri=uri,
            role=role,
            request_ids=own,
            knows=knows,
            source_uri=evidence.source.uri if evidence is not None else tags.get("unlearn.source_uri"),
            method=evidence.provenance.method if evidence is not None else None,
            membership=evidence.membership if records and evidence is not None else None,
            audit=audit,
            verdict=verdict,
            aliases=sorted(registered.aliases),
            retired=gone is True and unfinished(registered) is None,
            folder=folder,
        )

    def _audits(self, uri: str, folder: str, evidence: Evidence | None) -> str | None:
        of_these = []
        for run in audit_runs(self._client, uri, self._experiments):
            run_id = run.info.run_id
            path = f"{folder}/audits/{component(run_id)}.json"
            content = self._found.artifact(path, run_id, AUDIT_FILE)
            if content is None:
                if run.info.status != "FINISHED":  # it did not come to one
                    self._found.missing.pop(path)
                continue
            try:
                audit = AuditRecord.model_validate_json(content)
            except ValidationError:
                self._found.edited(path)
                continue
            decision, why = audit.decision
            message = f"{uri}: {decision} (tier {audit.tier}; {why})"
            self._event(
                "audited", uri, message, at=audit.at, by=audit.by.display_name(), run_id=audit.run_id, file=path
            )
            about = (audit.weights_sha256, audit.forget_sha256)
            if evidence is not None and about == (evidence.result.weights_sha256, evidence.data.forget.sha256):
                of_these.append(audit)
        return strongest(of_these).decision[0] if of_these else None

    def _reviews(self, uri: str, folder: str, tags: Mapping[str, str]) -> str | None:
        chain = read_chain(tags)
        for n, entry in sorted(chain.entries.items()):
            path = f"{folder}/reviews/review-{n}.json"
            content = self._found.artifact(path, entry.run_id, f"{FOLDER}/review-{n}.json")
            if content is None:
                continue
            try:
                review = ReviewRecord.model_validate_json(content)
            except ValidationError:
                self._found.edited(path)
                continue
            message = f"{uri}: review {n} says {review.verdict.word} by the policy {review.policy.name!r}"
            by = review.by.display_name()
            self._event("reviewed", uri, message, at=review.at, by=by, run_id=entry.run_id, file=path)
        return chain.last.verdict if chain.last is not None else None

    def _promotions(self, uri: str, folder: str, tags: Mapping[str, str]) -> None:
        for key, value in sorted(tags.items()):
            if not key.startswith(PROMOTION_TAG):
                continue
            alias = key.removeprefix(PROMOTION_TAG)
            path, run_id = f"{folder}/promotions/{component(alias)}.json", str(mapping(value).get("run_id", ""))
            record = self._found.record(path, run_id, f"{FOLDER}/{PROMOTION}", PromotionFile)
            if not record:
                continue
            spite = f", despite its review: {record['override']}" if record.get("override") else ""
            message = f"{alias} was moved to {uri}{spite}"
            self._event("promoted", uri, message, at=record["at"], by=record["by"], run_id=run_id, file=path)

    def _retirement(self, registered: ModelVersion) -> None:
        if RETIRED_TAG not in registered.tags:
            return
        run_id = str(mapping(registered.tags[RETIRED_TAG]).get("run_id", ""))
        path = f"retirements/{component(run_id)}.json"
        if path in self._found.files:  # it took several versions
            return
        if command_of(self._client, run_id) not in ("retire", None):
            self._found.missing[path] = f"run {run_id} is not one of `retire`"
            return
        record = self._found.record(path, run_id, f"{FOLDER}/{RETIREMENT}", RetirementFile)
        if not record:
            return
        about = ", ".join(record["versions"])
        state = "" if record["done"] else "; it was started but not finished"
        how = f": {record['reason']}" if record.get("reason") else ""
        proof = record.get("proof")
        looked = "" if not isinstance(proof, dict) else "; proven" if proof.get("proven") is True else "; not proven"
        message = f"the files of {about} were removed{how}{state}{looked}"
        self._event("retired", about, message, at=record["at"], by=record["by"], run_id=run_id, file=path)


def _carried_out(version: ModelVersion, request_id: str) -> bool:
    return request_id in version.tags.get("unlearn.request_ids", "").split(",") and REGISTERING_TAG not in version.tags
