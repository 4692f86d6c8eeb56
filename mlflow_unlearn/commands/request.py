"""`request`: file a forget request, on one version or on all that hold the samples."""

import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from mlflow.tracking import MlflowClient
from pydantic import Field

from mlflow_unlearn import config
from mlflow_unlearn.answer import CommandResult
from mlflow_unlearn.console import counted, note, say, track
from mlflow_unlearn.data.ids import listed_ids
from mlflow_unlearn.data.loaders import load_source
from mlflow_unlearn.data.manifest import Manifest
from mlflow_unlearn.data.source import Source
from mlflow_unlearn.data.spec import without_options
from mlflow_unlearn.errors import Refused, UnlearnError, shortlist
from mlflow_unlearn.governance.inbox import due_days
from mlflow_unlearn.governance.looking import wanted_by
from mlflow_unlearn.governance.places import Places, look
from mlflow_unlearn.registry import forget_requests, tracking
from mlflow_unlearn.registry.dataset_inputs import log_manifests
from mlflow_unlearn.registry.inputs import Inputs, keep_inputs
from mlflow_unlearn.registry.loading import admitted
from mlflow_unlearn.registry.tracking import CommandRun
from mlflow_unlearn.registry.uris import in_ranges
from mlflow_unlearn.registry.versions import Version, open_version
from mlflow_unlearn.registry.walk import walk
from mlflow_unlearn.session.canaries import next_tranche
from mlflow_unlearn.session.forget_set import select
from mlflow_unlearn.session.missing import asked, missing, require
from mlflow_unlearn.session.view import data_spec, given_inputs, salt_of, training_mask
from mlflow_unlearn.spelling import command_line, spelled


class FiledRequest(CommandResult):
    """One request as it is filed now."""

    run_id: str
    request_id: str
    uri: str = Field(description="The version that it is about.")
    new: bool = Field(description="False: it was filed before, and nothing has changed.")
    samples: int = Field(description="To be forgotten, canaries among them.")
    canaries: int
    case_id: str = Field(description="Of all requests that name the same samples, on whatever version.")
    due: str | None = Field(
        description="Day by which it is to be fulfilled, as it was filed; null where none was named."
    )
    done_by: list[str] = Field(description="Versions that have fulfilled it; empty: it is pending.")


class RequestResult(CommandResult):
    """The requests that were filed, mostly of one case."""

    run_id: str
    case_id: str = Field(description="Of the first; `requests` says where they are several, one for each data source.")
    due: str | None = Field(description="First day by which one of them is to be fulfilled; null where none names one.")
    requests: list[FiledRequest]
    failed: dict[str, str] = Field(description="Version → why no request could be filed on it.")
    unknown: list[str] = Field(description="With `all`: versions where it is unknown whether they contain them.")
    logged_models: list[str] = Field(description="With `all`: unregistered LoggedModels with them; none has a request.")

    def next_step(self, options: Any) -> str | None:
        """To fulfil what is pending; else to review what has fulfilled it."""
        pending = [one.uri for one in self.requests if not one.done_by]
        if len(pending) == 1:
            return command_line("unlearn", "--model-uri", pending[0])
        if pending:
            cases = {one.case_id for one in self.requests if not one.done_by}
            return command_line("requests", *(("--case", *cases) if len(cases) == 1 else ()), "--fulfil", "true")
        return command_line("review", "--model-uri", self.requests[0].done_by[-1]) if self.requests else None


class _Meant(NamedTuple):
    """Versions; and with `all` what else there is or may be."""

    uris: Sequence[str]
    unknown: Sequence[str] = ()
    logged_models: Sequence[str] = ()


def request(options: config.Request) -> RequestResult:
    """File a request in a run of its own for each version, their state on the versions.

    Raises:
        UnlearnError: a model is not a registered version, or the forget set is bad.
        Refused: on some of several versions it could not be filed.
    """
    with tracking.prepared("request", options) as run, tracking.scratch() as folder:
        client, due = tracking.client(), options.due or _in_days(due_days())
        meant = _named(client, options)
        uris = meant.uris
        lenient = options.all_ or len(uris) > 1
        filed: list[FiledRequest] = []
        failed: dict[str, str] = {}
        reasons: dict[str, str] = {}
        if len(uris) > 1:
            run.begin(f"on {len(uris)} versions")
        for uri in track(uris, "filing", enabled=sys.stderr.isatty() and len(uris) > 1):
            try:
                with tracking.nested_run("request") if len(uris) > 1 else nullcontext():
                    filed.append(_file(client, uri, options, run, folder, due, lenient=lenient))
            except (UnlearnError, *tracking.FAILURES) as error:
                if len(uris) == 1:
                    raise
                reasons[uri] = tracking.sentence_of(error)
                failed[uri] = tracking.recorded_reason(error)
        result = RequestResult(
            run_id=run.begin(),
            case_id=filed[0].case_id if filed else "",
            due=min((one.due for one in filed if one.due is not None), default=None),
            requests=filed,
            failed=failed,
            unknown=[*meant.unknown],
            logged_models=[*meant.logged_models],
        )
    _print(result, reasons)
    if failed:
        others = "; the others are: see the lines above" if filed else ": see the lines above"
        raise Refused(f"no request could be filed on {', '.join(failed)}{others}", result)
    return result


def _print(result: RequestResult, reasons: Mapping[str, str]) -> None:
    for uri, reason in reasons.items():
        say(f"Not filed on {uri}: {reason}")
    cases: dict[str, list[FiledRequest]] = {}
    for one in result.requests:
        cases.setdefault(one.case_id, []).append(one)
    if len(result.requests) + len(reasons) > 1:
        for case, requests in cases.items():
            days = ", ".join(sorted({one.due for one in requests if one.due is not None}))
            say(f"Case {case}: {counted(len(requests), 'request')}{f', due {days}' if days else ''}.")
    if len(cases) > 1:
        note(f"Note: these are {len(cases)} cases, since the versions were trained on different data sources.")
    if result.unknown:
        say(f"May also contain the samples, which is unknown: {', '.join(in_ranges(result.unknown))}: see `locate`.")
    if result.logged_models:
        say(
            f"LoggedModels that hold them and are not registered, without a request: {', '.join(result.logged_models)}."
        )


def _named(client: MlflowClient, options: config.Request) -> _Meant:
    """What is meant.

    Raises:
        UnlearnError: none is, or it is said twice.
        Refused: whether others hold the samples too could not be found out.
    """
    named = [uri.strip() for uri in (options.model_uri or "").split(",") if uri.strip()]
    if bool(named) == options.all_:
        raise UnlearnError(
            f"give {spelled('model_uri')} with one or more versions, or {spelled('all', True)} for all that hold the "
            "samples"
        )
    if named:
        return _Meant(list(dict.fromkeys(named)))
    registry = walk(client)
    places: Places = look(client, registry, wanted_by(client, registry, options.forget, options.data, options.no_code))
    if places.unanswered is not None:
        raise Refused(
            f"which versions hold the samples is not known, since the server did not answer ({places.unanswered})"
        )
    unknown = [place.uri for place in places.in_state("unknown")]
    if found := [place.uri for place in places.in_state("contains")]:
        return _Meant(found, unknown, places.logged_models)
    others = [f"{counted(len(unknown), 'version')} may: see `locate`"] if unknown else []
    others += [f"LoggedModels that are not registered do: {shortlist(places.logged_models)}"] * bool(
        places.logged_models
    )
    more = f" ({'; '.join(others)})" if others else ""
    raise UnlearnError(f"no registered version holds samples of {options.forget!r}{more}: there is nothing to forget")


def _file(
    client: MlflowClient, uri: str, options: config.Request, run: CommandRun, folder: Path, due: str, *, lenient: bool
) -> FiledRequest:
    """File it on one version, in the active run.

    Args:
        client: of the registry.
        uri: of the version.
        options: of the command.
        run: of the command; it is begun now, unless the active run is one inside it.
        folder: for temporary files.
        due: ISO date.
        lenient: the version may know but some of what the spec names.

    Raises:
        UnlearnError: it is not a registered version, or the forget set is bad.
    """
    version = admitted(open_version(client, uri, folder), options)
    if version.name is None:
        raise UnlearnError(
            f"{version.uri} is not a registered version and cannot carry a request: register it, or name "
            f"the samples to `unlearn` with {spelled('forget')}"
        )
    if options.data is None and version.reads.data is None:
        require(version, options, trains=True)  # and with it what `unlearn` will need
    source = load_source(data_spec(version, options.data, options.split))
    given = given_inputs(version, source, options, lenient=lenient)
    read = partial(forget_requests.read_manifest, client)
    mask = training_mask(version, source)
    forget, matched = select(options.forget, version, source, mask, read, lenient=lenient)
    if not len(forget):
        raise UnlearnError(f"{options.forget!r} names no sample of {source.spec!r} that {version.uri} is trained on")
    case = _case(client, options.forget, source, forget)
    twins = next_tranche(version, source, mask, forget, options.canaries)
    forget = np.union1d(forget, twins)
    manifest = Manifest(tuple(source.train.ids[i] for i in forget))
    salt = salt_of(version, source) if options.hash_ids else None
    details = tracking.recorded_options(options, "forget", "reason", "requester", "hash_ids")
    details |= {"canaries": len(twins)} if len(twins) else {}
    about = {"data": source.spec, "source_sha256": source.samples_digest, "split": source.split}
    about["source"] = without_options(source.spec)
    run.begin(version)
    filed, new = forget_requests.file_request(
        client,
        version,
        manifest,
        {**details, **about, "matched": matched.model_dump()},
        folder=folder,
        salt=salt,
        case=case,
        due=due,
    )
    if new:
        log_manifests(source.spec, {"forget": manifest if salt is None else manifest.hashed(salt)})
        say(
            f"Filed request {filed.id}: {counted(len(forget), 'sample')} of {version.uri} to be forgotten"
            f"{f', {len(twins)} of them canaries' if len(twins) else ''} (run {filed.run_id}), due {filed.due}."
        )
        if filed.due is not None and filed.due < datetime.now(UTC).date().isoformat():
            note(f"Warning: the day by which it is due, {filed.due}, has passed: it is overdue.")
    else:
        state = "is pending" if filed.pending else f"was carried out by {', '.join(filed.done_by)}"
        say(f"Request {filed.id} was filed before and {state}.")
        if options.due not in (None, filed.due) and filed.pending:
            note(
                f"Note: request {filed.id} stays due {filed.due or 'as it was filed'}, not {options.due}: to "
                f"change that, delete the tag {forget_requests.TAG}{filed.id} of {version.uri} and file it again."
            )
    _keep(client, version, given, options)
    return FiledRequest(
        run_id=filed.run_id,
        request_id=filed.id,
        uri=version.uri,
        new=new,
        samples=len(forget),
        canaries=len(twins),
        case_id=filed.case_id,
        due=filed.due,
        done_by=list(filed.done_by),
    )


def _keep(client: MlflowClient, version: Version, given: Inputs, options: config.Request) -> None:
    """Keep on a version of another tool how it is read, and say what `unlearn` will ask for."""
    if version.record is not None or version.name is None or version.version is None:
        return
    kept = keep_inputs(client, version.name, version.version, given)
    version = replace(version, kept=kept, unconfirmed=Inputs())
    if found := missing(version, options, trains=True):
        again = config.Unlearn(model_uri=version.uri)
        note(f"Note: to be unlearned, {version.uri} lacks {asked(version, again, found)}")


def _case(client: MlflowClient, spec: str, source: Source, forget: np.ndarray) -> str:
    """Who is meant says another request, or the spec of a group; else the samples that are named, known or not."""
    if spec.startswith("request:"):
        request_id = spec.removeprefix("request:")
        return str(forget_requests.read_request(client, request_id)[1].get("case", request_id))
    if spec.startswith(("group:", "class:")):
        named = spec
    elif spec.startswith("random:"):
        named = "\n".join(sorted(source.train.ids[i] for i in forget))
    else:
        named = "\n".join(sorted(set(listed_ids(spec).ids)))
    return forget_requests.case_id(without_options(source.spec), named)


def _in_days(days: int) -> str:
    return (datetime.now(UTC) + timedelta(days=days)).date().isoformat()
