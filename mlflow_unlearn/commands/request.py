"""`request`: file a forget request, on one version or on all that hold the samples."""

import sys
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import numpy as np
from mlflow.tracking import MlflowClient
from pydantic import Field

from mlflow_unlearn import config
from mlflow_unlearn.answer import CommandResult
from mlflow_unlearn.console import note, track
from mlflow_unlearn.data.ids import listed_ids
from mlflow_unlearn.data.loaders import load_source
from mlflow_unlearn.data.manifest import Manifest
from mlflow_unlearn.data.source import Source
from mlflow_unlearn.data.spec import without_options
from mlflow_unlearn.errors import NoAnswer, Refused, UnlearnError
from mlflow_unlearn.governance.inbox import due_days
from mlflow_unlearn.governance.looking import wanted_by
from mlflow_unlearn.governance.places import Places, look
from mlflow_unlearn.registry import forget_requests, tracking
from mlflow_unlearn.registry.dataset_inputs import log_manifests
from mlflow_unlearn.registry.loading import admitted
from mlflow_unlearn.registry.versions import open_version
from mlflow_unlearn.registry.walk import walk
from mlflow_unlearn.session.canaries import next_tranche
from mlflow_unlearn.session.forget_set import select
from mlflow_unlearn.session.view import data_spec, salt_of, training_mask


class FiledRequest(CommandResult):
    """One request as it is filed now."""

    run_id: str
    request_id: str
    uri: str = Field(description="The version that it is about.")
    new: bool = Field(description="False: it was filed before, and nothing has changed.")
    samples: int = Field(description="To be forgotten, canaries among them.")
    canaries: int
    done_by: list[str] = Field(description="Versions that have fulfilled it; empty: it is pending.")


class RequestResult(CommandResult):
    """The requests of one case."""

    run_id: str
    case_id: str = Field(description="Of all requests that name the same samples, on whatever version.")
    due: str = Field(description="Day by which they are to be fulfilled.")
    requests: list[FiledRequest]
    failed: dict[str, str] = Field(description="Version → why no request could be filed on it.")


def request(options: config.Request) -> RequestResult:
    """File a request in a run of its own for each version, their state on the versions.

    Raises:
        UnlearnError: a model is not a registered version, or the forget set is bad.
        Refused: on some of several versions it could not be filed.
    """
    with tracking.run("request", options) as run_id, tracking.scratch() as folder:
        client, due = tracking.client(), options.due or _in_days(due_days())
        uris = _named(client, options)
        lenient = options.all_ or len(uris) > 1
        filed: list[FiledRequest] = []
        failed: dict[str, str] = {}
        reasons: dict[str, str] = {}
        case = ""
        for uri in track(uris, "filing", enabled=sys.stderr.isatty() and len(uris) > 1):
            nested = tracking.nested_run("request") if len(uris) > 1 else nullcontext(run_id)
            try:
                with nested as own_run:
                    one, case_of_it = _file(client, uri, options, own_run, folder, due, lenient=lenient)
            except (UnlearnError, NoAnswer) as error:
                if len(uris) == 1:
                    raise
                reasons[uri] = str(error)
                failed[uri] = tracking.recorded_reason(error)
                continue
            filed.append(one)
            case = case or case_of_it
        result = RequestResult(run_id=run_id, case_id=case, due=due, requests=filed, failed=failed)
    for uri, reason in reasons.items():
        print(f"Not filed on {uri}: {reason}")
    if len(uris) > 1:
        print(f"Case {case}: {len(filed)} requests, due {due}.")
    if failed:
        raise Refused(f"no request could be filed on {', '.join(failed)}; the others are: see the lines above", result)
    return result


def _named(client: MlflowClient, options: config.Request) -> list[str]:
    """The versions that are meant.

    Raises:
        UnlearnError: none is, or it is said twice.
        Refused: whether others hold the samples too could not be found out.
    """
    named = [uri.strip() for uri in (options.model_uri or "").split(",") if uri.strip()]
    if bool(named) == options.all_:
        raise UnlearnError("give model_uri= with one or more versions, or all=true for all that hold the samples")
    if named:
        return list(dict.fromkeys(named))
    registry = walk(client)
    places: Places = look(client, registry, wanted_by(client, registry, options.forget, options.data, options.no_code))
    if places.unanswered is not None:
        raise Refused(f"which versions hold the samples is not known, since no answer came ({places.unanswered})")
    unknown = len(places.in_state("unknown"))
    if found := [place.uri for place in places.in_state("contains")]:
        if unknown:
            note(f"Note: of {unknown} more versions it cannot be told whether they hold the samples: see `locate`.")
        return found
    more = f" ({unknown} versions cannot be told: see `locate`)" if unknown else ""
    raise UnlearnError(f"no registered version holds samples of {options.forget!r}{more}: there is nothing to forget")


def _file(
    client: MlflowClient, uri: str, options: config.Request, run_id: str, folder: Path, due: str, *, lenient: bool
) -> tuple[FiledRequest, str]:
    """File it on one version, in the active run; the request, and the id of its case.

    Args:
        client: of the registry.
        uri: of the version.
        options: of the command.
        run_id: of the active run.
        folder: for temporary files.
        due: ISO date.
        lenient: the version may know but some of what the spec names.

    Raises:
        UnlearnError: it is not a registered version, or the forget set is bad.
    """
    version = admitted(open_version(client, uri, folder), options)
    if version.name is None:
        raise UnlearnError(
            f"{version.uri} is not a registered version and cannot carry a request: "
            "register it, or give forget= to unlearn"
        )
    source = load_source(data_spec(version, options.data, options.split))
    read = partial(forget_requests.read_manifest, client)
    mask = training_mask(version, source)
    forget, matched = select(options.forget, version, source, mask, read, lenient=lenient)
    if not len(forget):
        raise UnlearnError(f"{options.forget!r} names no sample of {source.spec!r} that {version.uri} is trained on")
    case = _case(options.forget, source, forget)
    twins = next_tranche(version, source, mask, forget, options.canaries)
    forget = np.union1d(forget, twins)
    manifest = Manifest(tuple(source.train.ids[i] for i in forget))
    salt = salt_of(version, source) if options.hash_ids else None
    details = tracking.recorded_options(options, "forget", "reason", "requester", "hash_ids")
    details |= {"canaries": len(twins)} if len(twins) else {}
    about = {"data": source.spec, "source_sha256": source.samples_digest, "split": source.split}
    about["source"] = without_options(source.spec)
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
        print(
            f"Filed request {filed.id}: {len(forget)} samples of {version.uri} are to be forgotten"
            f"{f', {len(twins)} of them canaries' if len(twins) else ''} (run {run_id}), due {filed.due}."
        )
    else:
        state = "is pending" if filed.pending else f"was carried out by {', '.join(filed.done_by)}"
        print(f"Request {filed.id} was filed before and {state}.")
    one = FiledRequest(
        run_id=filed.run_id,
        request_id=filed.id,
        uri=version.uri,
        new=new,
        samples=len(forget),
        canaries=len(twins),
        done_by=list(filed.done_by),
    )
    return one, filed.case_id


def _case(spec: str, source: Source, forget: np.ndarray) -> str:
    """Who is meant says the spec of a group; else the samples that it names, whichever of them a version knows."""
    if spec.startswith(("group:", "class:")):
        named = spec
    elif spec.startswith("request:"):
        named = spec.removeprefix("request:")
    elif spec.startswith("random:"):
        named = "\n".join(sorted(source.train.ids[i] for i in forget))
    else:
        named = "\n".join(sorted(set(listed_ids(spec).ids)))
    return forget_requests.case_id(without_options(source.spec), named)


def _in_days(days: int) -> str:
    return (datetime.now(UTC) + timedelta(days=days)).date().isoformat()
