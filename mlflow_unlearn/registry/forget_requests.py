"""Forget requests: filed in a run of their own, tagged on the model version that they are about."""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import mlflow
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from pydantic import AfterValidator

from mlflow_unlearn.console import note, one_line, storable
from mlflow_unlearn.data.manifest import Manifest
from mlflow_unlearn.errors import Refused, UnlearnError
from mlflow_unlearn.evidence.record import FrozenRecord, Person
from mlflow_unlearn.parsing import load_json
from mlflow_unlearn.registry.clients import experiment_ids, pages, registry_client
from mlflow_unlearn.registry.identity import whoami
from mlflow_unlearn.registry.lock import model_lock
from mlflow_unlearn.registry.network import persistently
from mlflow_unlearn.registry.versions import Version, artifact, version_there
from mlflow_unlearn.registry.walk import uri_of

TAG = "unlearn.request."
RUN_TAG = "unlearn.request_id"
CASE_TAG = "unlearn.case_id"
"""Of the runs of all requests that belong together: one subject, on several models."""
SUMMARY_TAG = "unlearn.request"
"""Of a request's run: `Summary` as JSON, by which all requests are listed without their files."""
WITHDRAWN_TAG = "unlearn.request_withdrawn"
"""Of a request's run: `Withdrawal` as JSON, also where the same is filed once more."""
FOLDER = "request"


def _day(text: str) -> str:
    return date.fromisoformat(text).isoformat()


class Withdrawal(FrozenRecord):
    """That a request was taken back: nothing is to be forgotten for it."""

    by: str
    at: str
    reason: str | None = None

    def __str__(self) -> str:
        """In words."""
        return f"withdrawn by {self.by} at {self.at}" + (f": {self.reason}" if self.reason else "")


class _Details(FrozenRecord):
    """What a tag says after the state; ``by``: which versions fulfilled it."""

    of: str
    run_id: str
    by: list[str] = []
    ad_hoc: bool = False
    sha256: str | None = None
    case: str | None = None
    due: Annotated[str, AfterValidator(_day)] | None = None
    withdrawn: Withdrawal | None = None


class Summary(FrozenRecord):
    """What a list of all requests shows of one; what counts is in its files."""

    of: str
    filed: str
    filed_by: Person
    samples: int
    manifest_sha256: str
    source: str | None = None
    source_sha256: str | None = None
    forget: str | None = None
    requester: str | None = None


@dataclass(frozen=True)
class ForgetRequest:
    """One request as its tag states it: ``pending {…}``, ``done {…}`` or ``withdrawn {…}``.

    Attributes:
        id: first 12 digits of the SHA-256 of version and sorted plain ids, so that filing again changes nothing.
        of: URI of the version that it is about; the tag on a copied version still names the first one.
        run_id: the run that holds the manifest.
        done_by: URIs of the versions that fulfilled it.
        ad_hoc: given with ``forget=`` and not filed with `request`: a trial, that no later command fulfils again.
        sha256: of its ``request.json`` as it was filed; None for one that an earlier release has filed.
        case: id of the case that it belongs to; None for one that is a case by itself.
        due: the day by which it is to be fulfilled, as ISO date; None where nobody said.
        withdrawn: who took it back; a version that was being made of it meanwhile counts nevertheless.
    """

    id: str
    of: str
    run_id: str
    done_by: tuple[str, ...] = ()
    ad_hoc: bool = False
    sha256: str | None = None
    case: str | None = None
    due: str | None = None
    withdrawn: Withdrawal | None = None

    @property
    def case_id(self) -> str:
        """Of its case."""
        return self.case or self.id

    @property
    def pending(self) -> bool:
        """Whether no version has fulfilled it, and one is to."""
        return self.state == "pending"

    @property
    def state(self) -> Literal["pending", "done", "withdrawn"]:
        """The word that its tag begins with."""
        return "done" if self.done_by else "withdrawn" if self.withdrawn is not None else "pending"

    def tag(self) -> str:
        """The tag's value: the state in a word, then the rest as JSON."""
        details: dict[str, Any] = {"of": self.of, "run_id": self.run_id}
        if self.done_by:
            details["by"] = list(self.done_by)
        if self.ad_hoc:
            details["ad_hoc"] = True
        details |= {key: value for key in ("sha256", "case", "due") if (value := getattr(self, key)) is not None}
        details |= {"withdrawn": self.withdrawn.model_dump()} if self.withdrawn is not None else {}
        return f"{self.state} {json.dumps(details)}"

    @classmethod
    def from_tag(cls, key: str, value: str) -> "ForgetRequest":
        """The inverse of `tag`.

        Raises:
            UnlearnError: the tag was edited and cannot be parsed.
        """
        try:
            state, _, details = value.partition(" ")
            said = _Details.model_validate(load_json(details))
            rest = (said.ad_hoc, said.sha256, said.case, said.due, said.withdrawn)
            found = cls(key.removeprefix(TAG), said.of, said.run_id, tuple(said.by), *rest)
            if state != found.state:
                raise ValueError(f"the state {state!r} does not go with it")
        except ValueError as error:  # pydantic's too
            raise UnlearnError(
                f"the tag {key} = {value!r} is no longer a forget request: file it again, or delete the tag"
            ) from error
        return found


def of_version(version: Version) -> tuple[list[ForgetRequest], list[ForgetRequest]]:
    """The requests about this very version, and those that came with a copy; without those that were withdrawn."""
    found = _requests(version.tags)
    own = [request for request in found if request.of == version.uri]
    return own, [request for request in found if request.of != version.uri]


def has_pending(version: ModelVersion) -> bool:
    """Whether a request about this very version is open."""
    uri = f"models:/{version.name}/{version.version}"
    return any(request.pending for request in _requests(version.tags) if request.of == uri)


def _requests(tags: Mapping[str, str]) -> list[ForgetRequest]:
    return [
        ForgetRequest.from_tag(key, value)
        for key, value in sorted(tags.items())
        if key.startswith(TAG) and value.partition(" ")[0] in ("pending", "done")
    ]


def _readable(tags: Mapping[str, str], request_id: str) -> list[ForgetRequest]:
    """The request with this id, if it is there; what its tag was edited to is filed again in its place."""
    try:
        return _requests({key: value for key, value in tags.items() if key == TAG + request_id})
    except UnlearnError:
        return []


def case_id(source: str, named: str) -> str:
    """The id of the case of all requests that name the same of the same source.

    Args:
        source: spec of the data source.
        named: the forget spec where it says who is meant, such as ``group:subject=17``; else the sorted ids.
    """
    return hashlib.sha256(f"case\n{source}\n{named}".encode()).hexdigest()[:12]


def request_id(version: Version, manifest: Manifest) -> str:
    """The id of a request to forget these samples (plain ids) of this version."""
    text = "\n".join([version.uri, *sorted(manifest.ids)])
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def file_request(
    client: MlflowClient,
    version: Version,
    manifest: Manifest,
    details: Mapping[str, Any],
    *,
    folder: Path,
    salt: str | None = None,
    ad_hoc: bool = False,
    case: str | None = None,
    due: str | None = None,
) -> tuple[ForgetRequest, bool]:
    """File a request in the active run, or find the one for the same samples.

    Args:
        client: of the registry.
        version: whose training data holds the samples.
        manifest: plain ids.
        details: reason, requester, spec, ….
        folder: for temporary files.
        salt: to store the ids hashed; None stores them as they are.
        ad_hoc: given with ``forget=``: only `mark_done` tags the version, so that a command that fails leaves no trace.
        case: that it belongs to.
        due: ISO date by which it is to be fulfilled.

    Returns:
        The request, and whether it is new.

    Raises:
        ValueError: no run is active.
    """
    new_id, tags, registry = request_id(version, manifest), version.tags, registry_client(client)
    with ExitStack() as stack:
        if not ad_hoc and version.name is not None:
            stack.enter_context(model_lock(client, version.name))
            # Another command may have filed the same one since the version was opened.
            tags = client.get_model_version(version.name, version.version).tags
        for request in _readable(tags, new_id):
            if request.of != version.uri:
                continue
            if salt is not None and read_manifest(client, request.id).salt is None:
                note(f"Note: the ids of request {new_id} were stored unhashed before, in run {request.run_id}.")
            gone = bool(request.done_by) and not any(map(partial(version_there, client), request.done_by))
            if not ad_hoc and (request.ad_hoc or gone):
                if gone:
                    by = ", ".join(request.done_by)
                    note(f"Note: request {new_id} is open again: {by}, which carried it out, is gone.")
                request = replace(request, ad_hoc=False, done_by=() if gone else request.done_by)
                registry.set_model_version_tag(version.name, version.version, TAG + new_id, request.tag())
            return request, False
        active = mlflow.active_run()
        if active is None:
            raise ValueError("a request is filed inside a run")
        stored = manifest if salt is None else manifest.hashed(salt)
        stored.to_csv(folder / "manifest.csv")
        record = {
            "id": new_id,
            "of": version.uri,
            "filed": datetime.now(UTC).isoformat(timespec="seconds"),
            "filed_by": whoami().model_dump(),
            "samples": len(manifest.ids),
            "manifest_sha256": stored.digest,
            **details,
            **{key: value for key, value in {"case": case, "due": due}.items() if value is not None},
        }
        content = json.dumps(record, indent=2) + "\n"
        mlflow.log_artifact(str(folder / "manifest.csv"), FOLDER)
        mlflow.log_text(content, f"{FOLDER}/request.json")
        shown = {name: record[name] for name in Summary.model_fields if name in record}
        marks = {RUN_TAG: new_id, SUMMARY_TAG: json.dumps(storable(shown))}
        mlflow.set_tags(marks | ({CASE_TAG: case} if case is not None else {}))
        digest = hashlib.sha256(content.encode()).hexdigest()
        request = ForgetRequest(
            new_id, version.uri, active.info.run_id, ad_hoc=ad_hoc, sha256=digest, case=case, due=due
        )
        if not ad_hoc and version.name is not None:
            registry.set_model_version_tag(version.name, version.version, TAG + new_id, request.tag())
        return request, True


def excluded(spec: str) -> str:
    """The forget spec of what a training is to leave out: a bare request id needs no ``request:`` before it."""
    bare = len(spec) == 12 and ":" not in spec and not Path(spec).exists()
    return f"request:{spec}" if bare else spec


def run_of(client: MlflowClient, request_id: str) -> str:
    """The run that a request was filed in, in any experiment.

    Raises:
        UnlearnError: there is none.
        Refused: there are several, and it cannot be told which one it is.
    """
    return _filed_as(client, request_id)[0]


def _filed_as(client: MlflowClient, request_id: str) -> tuple[str, str | None]:
    """The run of a request, and the digest that its ``request.json`` had; None where no version says.

    What tags of versions say decides: whoever may log a run may give it the id of any request.

    Raises:
        UnlearnError: there is none.
        Refused: there are several, and it cannot be told which one it is.
    """
    if not re.fullmatch(r"[0-9a-f]{12}", request_id):
        raise UnlearnError(f"{request_id!r} is not a request id: it has 12 hexadecimal digits, as `request` printed it")
    having = partial(client.search_model_versions, f"tags.`{TAG}{request_id}` LIKE '%'")
    tagged = [
        (request, request.of == uri_of(version))
        for version in pages(lambda token: having(page_token=token))
        for request in _readable(version.tags, request_id)
    ]
    # A copy's tag tells of it where the version that it is about is gone.
    own = [request for request, about in tagged if about] or [request for request, _ in tagged]
    found = {request.run_id: request.sha256 for request in own}
    if not found:
        where, ids = f"tags.`{RUN_TAG}` = '{request_id}'", experiment_ids(client)
        runs = [*pages(lambda token: client.search_runs(ids, where, page_token=token))]  # the newest first
        found = dict.fromkeys((str(run.info.run_id) for run in runs), None)
        if len(found) > 1 and len({_content(run_id) for run_id in found}) == 1:  # as of trials that have failed
            found = dict([*found.items()][:1])
    if not found:
        raise UnlearnError(f"there is no forget request {request_id!r} on this tracking server: file it with `request`")
    if len(found) > 1:
        claims = ", ".join(sorted(found))
        raise Refused(
            f"which samples request {request_id} names is unclear: "
            + (
                f"tags of versions name the runs {claims}; delete the tag {TAG}{request_id} that is wrong"
                if own
                else f"the runs {claims} have its id, and not the same content; delete those that are not the request, "
                f"or their tag {RUN_TAG}"
            )
        )
    return next(iter(found.items()))


def _content(run_id: str) -> tuple[str, str]:
    return read_details(run_id)["of"], read_manifest_of(run_id).digest


def read_manifest(client: MlflowClient, request_id: str) -> Manifest:
    """The manifest of a request, found by id, as it was filed.

    Raises:
        UnlearnError: there is none, or its files are gone, or were changed since.
    """
    return read_request(client, request_id)[0]


def read_request(client: MlflowClient, request_id: str) -> tuple[Manifest, dict[str, Any]]:
    """The manifest of a request, found by id, as it was filed; with what was recorded then.

    Raises:
        UnlearnError: there is none, or its files are gone, or were changed since.
    """
    return _read_filed(request_id, *_filed_as(client, request_id))


def read_manifest_of(run_id: str) -> Manifest:
    """The manifest of the request that was filed in a run.

    Raises:
        UnlearnError: its files are gone.
    """
    with _stored(run_id, "manifest.csv") as path:
        return Manifest.from_csv(path)


def read_filed(request: ForgetRequest) -> Manifest:
    """The manifest of a request, as it was filed.

    Raises:
        UnlearnError: its files are gone, or were changed since.
    """
    if request.sha256 is None:
        return read_manifest_of(request.run_id)
    return _read_filed(request.id, request.run_id, request.sha256)[0]


def _read_filed(request_id: str, run_id: str, sha256: str | None) -> tuple[Manifest, dict[str, Any]]:
    manifest, details = read_manifest_of(run_id), read_details(run_id)
    if sha256 is not None and (details["sha256"], details["manifest_sha256"]) != (sha256, manifest.digest):
        raise UnlearnError(
            f"request {request_id} is not what was filed: its files in run {run_id} were changed; restore "
            f"them, or remove the tag {TAG}{request_id} of {details['of']} and file it again"
        )
    return manifest, details


def read_details(run_id: str) -> dict[str, Any]:
    """What was recorded when a request was filed: id, version, time, user, reason, size and digest.

    With them, as ``sha256``, the digest of the file as it is stored.

    Raises:
        UnlearnError: its files are gone, or were edited.
    """
    try:
        with _stored(run_id, "request.json") as path:
            content = path.read_bytes()
        found: dict[str, Any] = load_json(content)
        return found | {"of": str(found["of"]), "sha256": hashlib.sha256(content).hexdigest()}
    except (ValueError, KeyError, TypeError) as error:
        raise UnlearnError(
            f"request.json of the request in run {run_id} was edited: it is no longer a request"
        ) from error


@contextmanager
def _stored(run_id: str, name: str) -> Iterator[Path]:
    """One file of a request inside the block.

    Raises:
        UnlearnError: it cannot be fetched.
    """
    with ExitStack() as stack:
        try:
            path = stack.enter_context(artifact(run_id, f"{FOLDER}/{name}"))
        except (MlflowException, OSError) as error:
            raise UnlearnError(f"{name} of the request in run {run_id} cannot be read: {error}") from error
        yield path


def mark_done(client: MlflowClient, requests: Sequence[ForgetRequest], by: str) -> None:
    """Note on the versions that the requests are about which version fulfilled them: all of them, or none."""

    def done(request: ForgetRequest, now: ForgetRequest) -> ForgetRequest:
        if request.pending and not now.pending and by not in now.done_by:
            note(f"Note: request {request.id} was also carried out by {', '.join(now.done_by)} in the meantime.")
        # What was withdrawn, and is asked for once more, has another run and its own files.
        filed = request if now.state == "withdrawn" and now.run_id != request.run_id else now
        return replace(filed, done_by=tuple(dict.fromkeys((*filed.done_by, by))))

    _mark(client, requests, done)


def withdraw(client: MlflowClient, requests: Sequence[ForgetRequest], reason: str | None) -> None:
    """Take back what is pending of these: it stays on the versions with who did so, when and why, and on its run.

    Raises:
        Refused: one was carried out meanwhile.
    """
    at = datetime.now(UTC).isoformat(timespec="seconds")
    mark = Withdrawal(by=whoami().display_name(), at=at, reason=None if reason is None else one_line(reason))

    def withdrawn(_: ForgetRequest, now: ForgetRequest) -> ForgetRequest:
        if now.done_by:
            raise Refused(f"request {now.id} was carried out by {', '.join(now.done_by)}: nothing can be withdrawn")
        return replace(now, withdrawn=now.withdrawn or mark)

    told = list[str]()
    try:
        for request in requests:  # first, since a run may be deleted, or another user's
            client.set_tag(request.run_id, WITHDRAWN_TAG, mark.model_dump_json())
            told.append(request.run_id)
        _mark(client, requests, withdrawn)
    except BaseException:
        for run_id in told:
            client.delete_tag(run_id, WITHDRAWN_TAG)
        raise


def mark_undone(client: MlflowClient, requests: Sequence[ForgetRequest], by: str) -> None:
    """Take back `mark_done`: the version ``by`` is withdrawn."""
    _mark(client, requests, lambda _, now: replace(now, done_by=tuple(uri for uri in now.done_by if uri != by)))


def _mark(
    client: MlflowClient,
    requests: Sequence[ForgetRequest],
    change: Callable[[ForgetRequest, ForgetRequest], ForgetRequest],
) -> None:
    """Change the requests' tags by what they are now, under the locks of the models: all of them, or none.

    An ad hoc request that no version has fulfilled has no tag.
    """
    # One that was filed against a model that is not registered has no tag either.
    about = [request for request in requests if re.fullmatch("models:/[^/]+/[^/]+", request.of)]
    before: list[tuple[str, str, str, str | None]] = []
    registry = registry_client(client)

    def write(name: str, version: str, key: str, value: str | None) -> None:
        if value is None:
            persistently(lambda: registry.delete_model_version_tag(name, version, key))
        else:
            persistently(lambda: registry.set_model_version_tag(name, version, key, value))

    with ExitStack() as stack:
        for name in sorted({request.of.split("/")[1] for request in about}):
            stack.enter_context(model_lock(client, name))
        try:
            # Read again: another command may have fulfilled the same request in the meantime.
            tags = {uri: client.get_model_version(*uri.split("/")[1:]).tags for uri in {r.of for r in about}}
            for request in about:
                _, name, version = request.of.split("/")
                key = TAG + request.id
                found = tags[request.of].get(key)
                changed = change(request, request if found is None else ForgetRequest.from_tag(key, found))
                value = None if changed.pending and changed.ad_hoc else changed.tag()
                if value != found:
                    before.append((name, version, key, found))
                    write(name, version, key, value)
        except BaseException:
            for name, version, key, found in before:
                write(name, version, key, found)
            raise
