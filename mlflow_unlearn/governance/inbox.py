"""All forget requests of a server, by case: what is open, when it is due, and which versions still hold the samples."""

import json
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from fnmatch import fnmatchcase
from typing import Literal, NamedTuple

from mlflow.entities import Run
from mlflow.tracking import MlflowClient
from pydantic import Field, ValidationError

from mlflow_unlearn.answer import CommandResult
from mlflow_unlearn.console import first_line, note, one_line
from mlflow_unlearn.data.manifest import Manifest
from mlflow_unlearn.errors import NoAnswer, UnlearnError
from mlflow_unlearn.evidence.record import Person
from mlflow_unlearn.governance import manifest_index
from mlflow_unlearn.governance.locating import Found, Search, Wanted
from mlflow_unlearn.governance.manifest_index import ManifestIndex
from mlflow_unlearn.parsing import whole_number
from mlflow_unlearn.registry import forget_requests
from mlflow_unlearn.registry.artifacts import remember
from mlflow_unlearn.registry.forget_requests import RUN_TAG, SUMMARY_TAG, TAG, ForgetRequest, Summary
from mlflow_unlearn.registry.versions import retired
from mlflow_unlearn.registry.walk import Registry, runs_where, uri_of

DAYS_VARIABLE, DAYS = "MLFLOW_UNLEARN_DUE_DAYS", 30
"""Days after which a request is due for which no day was given."""

RequestState = Literal["pending", "done", "retired", "gone", "withdrawn"]
CaseState = Literal["overdue", "open", "done"]
_CLOSED = ("gone", "retired")
"""What ended without a version that carried the request out."""


class InboxRequest(CommandResult):
    """One request."""

    id: str
    uri: str = Field(description="The version that it is about.")
    state: RequestState = Field(description="Also closed: the version was retired, or is gone; or it was withdrawn.")
    done_by: list[str]
    run_id: str
    samples: int | None


class InboxCase(CommandResult):
    """What belongs together: one subject, on whatever models."""

    id: str
    subject: str = Field(description="The forget spec, as far as it may be shown.")
    requester: str | None
    filed: str = Field(description="When the first of its requests was filed; empty where its run is gone.")
    filed_by: str
    due: str
    days_left: int = Field(description="Until it is due; negative where it is overdue.")
    state: CaseState
    requests: list[InboxRequest]
    still_in: list[str] = Field(description="Versions that contain samples of it, LoggedModels too.")
    unclear: int = Field(description="Number of versions where that is unknown; `locate` says why.")

    def left_over(self, registry: Registry) -> list[str]:
        """Of what still contains the samples, what no request of the case is about although one was.

        Its version was renamed; or, where that is so of every request, was deleted or retired while another one has
        them.
        """
        gone = [request.id for request in self.requests if request.state in _CLOSED]
        about = {request.uri for request in self.requests}
        others = [uri for uri in self.still_in if uri not in about]
        if len(gone) == len(self.requests):
            return others
        tags = {uri: registry.by_uri[uri].tags for uri in others if uri in registry.by_uri}
        return [uri for uri, named in tags.items() if any(TAG + request_id in named for request_id in gone)]

    def pending(self) -> list[str]:
        """The versions on which something is to be done."""
        return [request.uri for request in self.requests if request.state == "pending"]


class Inbox:
    """The requests of one server, as they were when it was opened.

    Attributes:
        unreadable: tags that are not a request any more, in words.
        unanswered: why some of what is to be known of the requests is missing; None where nothing is.
    """

    def __init__(self, client: MlflowClient, registry: Registry, *, days: int) -> None:
        """Read all requests.

        Args:
            client: of tracking server and registry.
            registry: all that is there.
            days: after which a request of an earlier release is due, which names no day.
        """
        self._client, self._registry = client, registry
        self.unreadable: list[str] = []
        self.unanswered = registry.unanswered
        runs = self._runs()
        remember(runs.values())  # so that to read what they name takes one request each
        self._filed: dict[str, list[_Filed]] = {}
        self._summaries: dict[str, Summary] = {}
        for request, state in [*self._of_versions(), *_of_gone_versions(registry, runs)]:
            summary = self._summaries[request.run_id] = _summary(runs.get(request.run_id), request)
            due = request.due or _default_due(summary, days)
            self._filed.setdefault(request.case_id, []).append(_Filed(request, state, summary, due))

    def _runs(self) -> dict[str, Run]:
        """Those of all requests, as far as the server still answers."""
        if self.unanswered is not None:
            return {}
        try:
            found = runs_where(self._client, f"tags.`{RUN_TAG}` LIKE '%'")
            return {run.info.run_id: run for run in found}
        except NoAnswer as error:
            self.unanswered = str(error)
            return {}

    def _of_versions(self) -> list[tuple[ForgetRequest, RequestState]]:
        """By the tags of versions; those that came with a copy are about another one."""
        found: list[tuple[ForgetRequest, RequestState]] = []
        for version in self._registry.versions:
            for key, value in sorted(version.tags.items()):
                if not key.startswith(TAG):
                    continue
                try:
                    request = ForgetRequest.from_tag(key, value)
                except UnlearnError as error:  # one of them hides no other
                    self.unreadable.append(one_line(f"{uri_of(version)}: {error}"))
                    continue
                if request.of == uri_of(version) and not request.ad_hoc:
                    closed: RequestState = "retired" if request.pending and retired(version) else request.state
                    found.append((request, closed))
        return found

    def cases(self, today: date) -> list[InboxCase]:
        """Every case, the most urgent first; `with_holders` adds which versions hold its samples.

        Args:
            today: by which the days that are left are counted.
        """
        found = [_case(case_id, filed, today) for case_id, filed in self._filed.items()]
        order = ("overdue", "open", "done")
        return sorted(found, key=lambda case: (order.index(case.state), case.due, case.filed, case.id))

    def with_holders(self, cases: Sequence[InboxCase]) -> tuple[list[InboxCase], str | None]:
        """The cases with the versions that still contain their samples; and why some could not be asked, if so."""
        lists: dict[str, Manifest | None] = {}
        wanted = [[self._wanted(request, lists) for request in case.requests] for case in cases]
        there = [[one for one in named if one is not None] for named in wanted]
        found, unanswered = manifest_index.with_index(lambda index: self._found(index, there))
        result = []
        for case, named, places in zip(cases, wanted, found, strict=True):
            unclear = named.count(None) + sum(entry.state == "unknown" for entry in places.versions)
            holders = [entry.uri for entry in places.holders()]
            known = case.model_copy(update={"still_in": holders, "unclear": unclear})
            if known.state == "done" and known.left_over(self._registry):
                known = known.model_copy(update={"state": "overdue" if known.days_left < 0 else "open"})
            result.append(known)
        self.unanswered = unanswered
        return result, unanswered

    def _found(self, index: ManifestIndex, wanted: Sequence[Sequence[Wanted]]) -> tuple[list[Found], str | None]:
        search = Search(self._client, self._registry, index)
        return search.find_each(wanted), search.unanswered or self.unanswered

    def _wanted(self, request: InboxRequest, lists: dict[str, Manifest | None]) -> Wanted | None:
        """What a request names; None where its files are gone. Requests of one case have the same list, mostly."""
        summary = self._summaries[request.run_id]
        key = summary.manifest_sha256 or request.run_id
        if key not in lists:
            try:
                lists[key] = forget_requests.read_manifest_of(request.run_id)
            except (UnlearnError, NoAnswer) as error:
                note(f"Note: what request {request.id} names cannot be read: {first_line(error)}")
                lists[key] = None
        samples = lists[key]
        if samples is None:
            return None
        about = frozenset([request.uri]) if request.state in ("pending", "done") else frozenset[str]()
        return Wanted(samples, summary.source, summary.source_sha256, about, frozenset([request.id]))


class _Filed(NamedTuple):
    """A request with what is known of it."""

    request: ForgetRequest
    state: RequestState
    summary: Summary
    due: str

    def shown(self) -> InboxRequest:
        request = self.request
        return InboxRequest(
            id=request.id,
            uri=request.of,
            state=self.state,
            done_by=[*request.done_by],
            run_id=request.run_id,
            samples=self.summary.samples or None,
        )


def _of_gone_versions(registry: Registry, runs: Mapping[str, Run]) -> list[tuple[ForgetRequest, RequestState]]:
    """Of versions that were deleted with their tags: what was asked stays asked."""
    found: list[tuple[ForgetRequest, RequestState]] = []
    for run_id, run in runs.items():
        tags = run.data.tags
        summary = _read_summary(tags.get(SUMMARY_TAG))
        filed = forget_requests.CASE_TAG in tags  # else it was given with forget=
        if filed and summary is not None and registry.unanswered is None and summary.of not in registry.by_uri:
            case = tags[forget_requests.CASE_TAG]
            found.append((ForgetRequest(tags[RUN_TAG], summary.of, run_id, case=case), "gone"))
    return found


def _read_summary(tag: str | None) -> Summary | None:
    try:
        return Summary.model_validate(json.loads(tag)) if tag else None
    except (ValueError, ValidationError):
        return None


def _summary(run: Run | None, request: ForgetRequest) -> Summary:
    """What its run says; of an earlier release's, what MLflow itself says of that."""
    if run is not None and (found := _read_summary(run.data.tags.get(SUMMARY_TAG))) is not None:
        return found
    started, params, user = "", {}, "unknown"
    if run is not None:
        started = datetime.fromtimestamp(run.info.start_time / 1000, UTC).isoformat(timespec="seconds")
        params, user = run.data.params, run.data.tags.get("mlflow.user", "unknown")
    return Summary(
        of=request.of,
        filed=started,
        filed_by=Person(name=user, authenticated=False),
        samples=0,
        manifest_sha256="",
        forget=params.get("unlearn.forget"),
        requester=params.get("unlearn.requester"),
    )


def _default_due(summary: Summary, days: int) -> str:
    """Of a request that names no day; today, where its run is gone and nobody knows since when it waits."""
    try:
        filed = date.fromisoformat(summary.filed[:10])
        return (filed + timedelta(days=days)).isoformat()
    except (ValueError, OverflowError):
        return datetime.now(UTC).date().isoformat()


def _case(case_id: str, filed: Sequence[_Filed], today: date) -> InboxCase:
    first = min((one.summary for one in filed), key=lambda summary: summary.filed)
    pending = [one.due for one in filed if one.state == "pending"]
    due = min(pending or [one.due for one in filed])
    left = (date.fromisoformat(due) - today).days
    named = (one.summary.requester for one in filed)
    return InboxCase(
        id=case_id,
        subject=first.forget or "–",
        requester=next((name for name in named if name not in (None, "None")), None),
        filed=first.filed,
        filed_by=first.filed_by.display_name(),
        due=due,
        days_left=left,
        state="done" if not pending else "overdue" if left < 0 else "open",
        requests=[one.shown() for one in filed],
        still_in=[],
        unclear=0,
    )


def chosen(
    cases: Sequence[InboxCase], *, state: str = "all", model: str | None = None, subject: str | None = None
) -> list[InboxCase]:
    """The cases in a state, on a model, or of a subject.

    Args:
        cases: all.
        state: ``open`` takes overdue ones as well.
        model: name or pattern such as ``clf*`` of a registered model.
        subject: in the forget spec or the requester's pseudonym.
    """
    return [
        case
        for case in cases
        # What is done but for samples that `with_holders` may find is to be chosen again after that, by `in_state`.
        if (in_state([case], state) or any(request.state in _CLOSED for request in case.requests))
        and (model is None or any(fnmatchcase(model_of(request.uri), model) for request in case.requests))
        and (subject is None or subject in case.subject or subject in (case.requester or "") or subject == case.id)
    ]


def in_state(cases: Sequence[InboxCase], state: str) -> list[InboxCase]:
    """The cases in a state; ``open`` takes overdue ones as well, ``all`` every one."""
    states = {"open": ("overdue", "open"), "all": ("overdue", "open", "done")}.get(state, (state,))
    return [case for case in cases if case.state in states]


def model_of(uri: str) -> str:
    """The name of the registered model of ``models:/NAME/VERSION``."""
    return uri.removeprefix("models:/").rpartition("/")[0]


def due_days() -> int:
    """Days after which a request is due for which no day was given.

    Raises:
        UnlearnError: the environment names no number of days.
    """
    text = os.environ.get(DAYS_VARIABLE) or str(DAYS)
    days = whole_number(text)
    if days is None or not 0 < days <= 36500:
        raise UnlearnError(f"{DAYS_VARIABLE} = {text!r} is not a number of days from 1 to 36500: correct or unset it")
    return days
