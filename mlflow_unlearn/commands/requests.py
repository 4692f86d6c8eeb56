"""`requests`: the inbox of all forget requests, and what carries them out."""

import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from mlflow.entities.model_registry import ModelVersion
from mlflow.tracking import MlflowClient
from pydantic import Field, ValidationError

from mlflow_unlearn import config
from mlflow_unlearn.answer import CommandResult
from mlflow_unlearn.config import parse_params
from mlflow_unlearn.console import counted, first_line, note, say
from mlflow_unlearn.errors import Refused, UnlearnError
from mlflow_unlearn.events.child import GRACE
from mlflow_unlearn.evidence.case import Case
from mlflow_unlearn.evidence.dossier import differences
from mlflow_unlearn.governance.case import open_case
from mlflow_unlearn.governance.inbox import Inbox, InboxCase, chosen, due_days, in_state, model_of
from mlflow_unlearn.governance.still_in import held
from mlflow_unlearn.parsing import load_json
from mlflow_unlearn.parsing import message as said
from mlflow_unlearn.registry import tracking
from mlflow_unlearn.registry.forget_requests import TAG, ForgetRequest, has_pending, withdraw
from mlflow_unlearn.registry.lock import WAIT_VARIABLE
from mlflow_unlearn.registry.network import brief_retries
from mlflow_unlearn.registry.uris import in_ranges
from mlflow_unlearn.registry.versions import retired, version_there
from mlflow_unlearn.registry.walk import Registry, walk
from mlflow_unlearn.report import table
from mlflow_unlearn.report.case_page import case_page
from mlflow_unlearn.report.inbox_page import inbox_page
from mlflow_unlearn.spelling import command_line, spelled

_PATIENCE = "86400"
"""Seconds to wait for another command that works on the same version."""


class Fulfilled(CommandResult):
    """What came of one version."""

    uri: str
    request_ids: list[str] = Field(description="Of the chosen cases; others that are pending on it go along.")
    outcome: str = Field(description="fulfilled, failed; or meanwhile: done by another command, retired, or deleted.")
    registered: str | None = Field(description="The version that came of it.")
    message: str = Field(description="Why it failed; empty otherwise.")
    seconds: float


class RequestsResult(CommandResult):
    """The inbox, or what was fulfilled of it."""

    today: str
    cases: list[InboxCase] = Field(description="The most urgent first.")
    fulfilled: list[Fulfilled] | None = Field(description="What `fulfil` has done; null without it.")
    unreadable: list[str] = Field(description="Tags of versions that are no longer a request: to be filed again.")
    page: str | None = Field(description="The page that was written.")
    case: Case | None = Field(None, description="With `case`: its requests, versions, and all that was done.")
    differences: list[str] = Field([], description="Where the records of this case do not agree with each other.")
    unanswered: str | None = Field(description="Why the rest is missing; null where all was looked at.")

    def next_step(self, options: Any) -> str | None:
        """To fulfil what is pending of these; after that, to review the first new version."""
        if self.fulfilled is not None:
            made = [one.registered for one in self.fulfilled if one.registered is not None]
            return command_line("review", "--model-uri", made[0]) if made else None
        if options.withdraw is not None:
            return None
        chosen = {name: getattr(options, name) for name in ("model", "subject", "case")}
        given = [part for name, value in chosen.items() if value is not None for part in (f"--{name}", value)]
        pending = any(case.pending() for case in self.cases)
        return command_line("requests", *given, "--fulfil", "true") if pending else None


def requests(options: config.Requests) -> RequestsResult:
    """Print the inbox or one case, or write it as a page; with ``fulfil`` carry out what is open.

    Raises:
        UnlearnError: options do not go together, or there is no such case.
        Refused: something could not be fulfilled, or the server stopped to answer on the way.
    """
    unlearn_options = _checked(options)
    today = datetime.now(UTC).date()
    with brief_retries(), tracking.read_only_client() as client:
        record = open_case(client, options.case) if options.case is not None else None
        registry = walk(client)
        inbox = Inbox(client, registry, days=due_days())
        if record is not None:
            cases = [case for case in inbox.cases(today) if case.id == record.id]
        else:
            cases = chosen(inbox.cases(today), state=options.state, model=options.model, subject=options.subject)
        if options.withdraw is not None:
            taken_back = _withdraw(client, registry, inbox.cases(today), options.withdraw, options.reason)
            registry = walk(client)
            inbox = Inbox(client, registry, days=due_days())
            cases = [case for case in inbox.cases(today) if case.id == taken_back]
        fulfilled = None
        if options.fulfil:
            within = [case for case in cases if options.within is None or case.days_left <= options.within]
            fulfilled = list(_fulfil(client, registry, within, options.model, unlearn_options))
            registry = walk(client)
            inbox = Inbox(client, registry, days=due_days())
            ids = {case.id for case in cases}
            cases = [case for case in inbox.cases(today) if case.id in ids]
            record = open_case(client, record.id) if record is not None else None
        cases, unanswered = inbox.with_holders(cases)
        if record is None and not options.fulfil and options.withdraw is None:
            cases = in_state(cases, options.state)
        for case in cases:
            if case.state != "done" and not case.pending():
                left = case.left_over(registry)
                named = ("--model-uri", ",".join(left), "--forget", f"request:{case.requests[0].id}")
                note(
                    f"Note: case {case.id} is open: {', '.join(in_ranges(left))} still hold its samples, and the "
                    "versions that its requests are about are retired or gone. To file it there: "
                    f"{command_line('request', *named)}"
                )
        wrong = differences(record) if record is not None else []
        page = None
        if options.format == "html" and record is not None:
            text = case_page(record, failures=wrong, holders=held(client, registry, record))
            page = _write(options, text, f"case-{record.id}.html")
        elif options.format == "html":
            page = _write(options, inbox_page(cases, today.isoformat()), "inbox.html")
    result = RequestsResult(
        today=today.isoformat(),
        cases=cases,
        fulfilled=fulfilled,
        unreadable=inbox.unreadable,
        page=page,
        case=record,
        differences=wrong,
        unanswered=unanswered,
    )
    if page is not None:
        say(f"Wrote {page}.")
    elif record is not None:
        table.show_inbox(cases)
        table.show_case(record, wrong)
    else:
        table.show_inbox(cases, options.state)
    if fulfilled is not None:
        table.show_fulfilled(
            [(f.uri, ", ".join(f.request_ids), f.outcome, f.registered or "–", f.message) for f in fulfilled]
        )
    for sentence in inbox.unreadable:
        say(f"Not a request: {sentence}")
    if unanswered is not None:
        raise Refused(f"the inbox is incomplete, since the server did not answer ({unanswered}): run it again", result)
    if failed := [one.uri for one in fulfilled or () if one.outcome == "failed"]:
        others = "; the others are" if any(one.outcome == "fulfilled" for one in fulfilled or ()) else ""
        raise Refused(f"not fulfilled on {', '.join(failed)}: the table says why{others}", result)
    if inbox.unreadable:
        raise Refused(
            f"no longer a forget request: {counted(len(inbox.unreadable), 'tag')}, see the lines above", result
        )
    return result


def _checked(options: config.Requests) -> list[str]:
    """The options of `unlearn`, as its command line takes them.

    Raises:
        UnlearnError: they are none, or belong to something that is not asked for.
    """
    if options.withdraw is None and options.reason is not None:
        raise UnlearnError(
            f"{spelled('reason', options.reason)} has no effect without {spelled('withdraw')}: add that, or leave it "
            "out"
        )
    for name in ("fulfil", "case", "model", "subject"):
        if options.withdraw is not None and getattr(options, name):
            raise UnlearnError(
                f"{spelled(name, getattr(options, name))} has no effect with {spelled('withdraw')}: leave it out"
            )
    for name in ("within", "unlearn_options"):
        if getattr(options, name) is not None and not options.fulfil:
            raise UnlearnError(
                f"{spelled(name, getattr(options, name))} has no effect without {spelled('fulfil', True)}: add that, "
                "or leave it out"
            )
    for name in ("model", "subject"):
        if options.case is not None and getattr(options, name) is not None:
            raise UnlearnError(
                f"{spelled(name, getattr(options, name))} has no effect with {spelled('case')}: leave one of them out"
            )
    if options.output is not None and options.format != "html":
        raise UnlearnError(
            f"{spelled('output', options.output)} has no effect without {spelled('format', 'html')}: add that, or "
            "leave it out"
        )
    given = parse_params(options.unlearn_options, "unlearn_options", example="method=transpose")
    if taken := given.keys() & {"model_uri", "forget", "plan", "format"}:
        raise UnlearnError(
            f"{spelled('unlearn_options')} names {sorted(taken)[0]!r}, which `requests` decides: leave it out"
        )
    try:
        checked = config.Unlearn.model_validate({**given, "model_uri": "models:/name/1"})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UnlearnError(
            f"{spelled('unlearn_options')}: {where} = {first['input']!r} is not usable: {said(first)}"
        ) from error
    arguments = config.as_arguments(checked)
    at = arguments.index("--model-uri")
    return arguments[:at] + arguments[at + 2 :]


def _withdraw(
    client: MlflowClient, registry: Registry, cases: Sequence[InboxCase], given: str, reason: str | None
) -> str:
    """Take back what is pending of a request or of a case, and return the case.

    Args:
        client: of tracking server and registry.
        registry: all that is there.
        cases: all.
        given: id of either.
        reason: for the record.

    Raises:
        UnlearnError: there is neither.
        Refused: nothing of it is pending.
    """
    found = [case for case in cases if given in (case.id, *(request.id for request in case.requests))]
    if not found:
        raise UnlearnError(
            f"there is no filed forget request and no case {given!r}: `{command_line('requests', '--state', 'all')}` "
            "lists them"
        )
    case = next((one for one in found if one.id == given), found[0])
    asked = [one for one in case.requests if given in (case.id, one.id)]
    pending = [one for one in asked if one.state == "pending"]
    if not pending:
        states = "; ".join(f"request {one.id} on {one.uri} is {one.state}" for one in asked)
        raise Refused(f"nothing of {given} is pending: {states}")
    keys = [(TAG + one.id, registry.by_uri[one.uri].tags[TAG + one.id]) for one in pending]
    withdraw(client, [ForgetRequest.from_tag(key, value) for key, value in keys], reason)
    for one in pending:
        say(f"Request {one.id} on {one.uri} is withdrawn: nothing will be forgotten for it.")
    return case.id


def _fulfil(
    client: MlflowClient, registry: Registry, cases: Sequence[InboxCase], model: str | None, options: Sequence[str]
) -> Iterator[Fulfilled]:
    """Unlearn version by version, each in a process of its own: what fails or dies there does not stop the others.

    Args:
        client: of the registry.
        registry: as it was read.
        cases: what is to be fulfilled, the most urgent first.
        model: only versions of models with this name or pattern.
        options: of `unlearn`.
    """
    wanted: dict[str, list[str]] = {}
    for case in chosen(cases, state="open", model=model):
        for request in case.requests:
            if request.state == "pending" and (model is None or fnmatchcase(model_of(request.uri), model)):
                wanted.setdefault(request.uri, []).append(request.id)
    models = list(dict.fromkeys(uri.rpartition("/")[0] for uri in wanted))  # the most urgent one first

    def rank(uri: str) -> tuple[int, bool, int]:
        version = registry.by_uri[uri]
        return models.index(uri.rpartition("/")[0]), not version.aliases, -int(version.version)

    for uri in sorted(wanted, key=rank):
        version = version_there(client, uri)
        began = time.monotonic()
        # Read again: another command may have been quicker.
        outcome, registered, message = _closed(version) or "", None, ""
        if not outcome:
            note(f"Unlearning {', '.join(wanted[uri])} of {uri} …")
            outcome, registered, message = _unlearned(client, uri, options)
        yield Fulfilled(
            uri=uri,
            request_ids=wanted[uri],
            outcome=outcome,
            registered=registered,
            message=message,
            seconds=round(time.monotonic() - began, 1),
        )


def _unlearned(client: MlflowClient, uri: str, options: Sequence[str]) -> tuple[str, str | None, str]:
    """Outcome, the version that came of it, and why not."""
    # -P: no module of the working folder hides one of Python's.
    command = [
        sys.executable,
        "-P",
        "-m",
        "mlflow_unlearn",
        "unlearn",
        "--model-uri",
        uri,
        *options,
        "--format",
        "json",
    ]
    # Where another command unlearns this version, the child waits for it, and finds nothing left to do.
    environment = {WAIT_VARIABLE: _PATIENCE, **tracking.child_environment()}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        out, _ = process.communicate()
    except BaseException:  # it closes its run before it ends
        process.terminate()
        try:
            process.wait(GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
        raise
    answer = _answer(out)
    if process.returncode == 0:
        found = (answer.get("result") or {}).get("registered") or {}
        return "fulfilled", found.get("uri"), ""
    if (closed := _closed(version_there(client, uri))) is not None:
        return closed, None, ""
    message = (answer.get("error") or {}).get("message") or f"its process ended with code {process.returncode}"
    return "failed", None, str(message)


def _closed(version: ModelVersion | None) -> str | None:
    """Why nothing is to be done on a version any more; None where something is."""
    if version is None:
        return "deleted"
    if retired(version) is not None:
        return "retired"
    try:
        return None if has_pending(version) else "done by another command"
    except UnlearnError:  # a tag beside it was edited, of which `unlearn` itself will tell
        return None


def _answer(out: str) -> Mapping[str, Any]:
    try:
        found = load_json(out)
    except ValueError:  # it was killed
        return {}
    return found if isinstance(found, dict) else {}


def _write(options: config.Requests, page: str, name: str) -> str:
    """Write a page, to a file of this name unless another one is asked for; where it is.

    Raises:
        UnlearnError: it cannot be written.
    """
    path = Path(options.output or name).expanduser().absolute()
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise UnlearnError(
            f"the page cannot be written to {str(path)!r} ({first_line(error)}): give {spelled('output')}"
        ) from error
    return str(path)
