"""Which samples a command forgets: those of a spec, or of the pending requests."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from mlflow.tracking import MlflowClient

from mlflow_unlearn.config import Measuring, Unlearning
from mlflow_unlearn.console import counted, note
from mlflow_unlearn.data.forget import ReadRequest, Selected, resolve_forget
from mlflow_unlearn.data.manifest import Manifest
from mlflow_unlearn.data.source import Source
from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.evidence.provenance import ATTEMPTS_TAG
from mlflow_unlearn.evidence.record import Matched
from mlflow_unlearn.methods import get_method
from mlflow_unlearn.registry import forget_requests
from mlflow_unlearn.registry.forget_requests import ForgetRequest
from mlflow_unlearn.registry.versions import Version, find_version
from mlflow_unlearn.session.view import salt_of
from mlflow_unlearn.spelling import spelled


@dataclass(frozen=True)
class ForgetSet:
    """What a command forgets.

    Attributes:
        indices: into ``source.train``.
        salt: under which the ids are to be recorded; None where they may be recorded as they are.
        requests: that name the samples; none yet for a spec that is still to be filed.
        matched: where the samples lie that a spec names, for its request.
    """

    indices: npt.NDArray[np.int64]
    salt: str | None
    requests: tuple[ForgetRequest, ...] = ()
    matched: Matched | None = None


def select(
    spec: str,
    version: Version,
    source: Source,
    mask: npt.NDArray[np.bool_],
    read: ReadRequest,
    *,
    lenient: bool = False,
) -> tuple[npt.NDArray[np.int64], Matched]:
    """The training samples ``[F]`` that a spec names, and where the others lie that it names, which a note reports.

    Args:
        spec: of the forget set.
        version: that was trained on them.
        source: of its data.
        mask: what of ``source.train`` it was trained on ``[N]``.
        read: gives the manifest of a request.
        lenient: nothing may be left of them.

    Raises:
        UnlearnError: the spec is bad, or some of what the version was trained on would be left out.
    """
    found: Selected = resolve_forget(spec, source, mask, read, lambda: version.training_manifest, lenient=lenient)
    matched = Matched(trained=len(found.indices), **found.elsewhere)
    if (rest := matched.others()) or source.drawn:
        also = f", and {rest}, which are not forgotten" if rest else ""
        made = f"; the split was {source.split}" if source.drawn else ""
        note(f"Note: {spec} names {counted(matched.trained, 'sample')} that {version.uri} is trained on{also}{made}.")
    return found.indices, matched


class _Manifests:
    """Reads the manifests of requests, and collects their salts; None for plain ids."""

    def __init__(self, client: MlflowClient, filed: Sequence[ForgetRequest] = ()) -> None:
        self._client = client
        self._filed = {request.id: request for request in filed}
        self.salts: list[str | None] = []

    def __call__(self, request_id: str) -> Manifest:
        # What the version's tag names needs no search, and has to be what was filed.
        if request_id in self._filed:
            manifest = forget_requests.read_filed(self._filed[request_id])
        else:
            manifest = forget_requests.read_manifest(self._client, request_id)
        self.salts.append(manifest.salt)
        return manifest


def evaluated_forget_set(
    client: MlflowClient,
    version: Version,
    original: Version,
    source: Source,
    mask: npt.NDArray[np.bool_],
    options: Measuring,
) -> ForgetSet:
    """The spec's samples, else those that the version has forgotten, else those of its pending requests.

    Args:
        client: of the registry.
        version: that is measured.
        original: that it came from.
        source: of its data.
        mask: what of ``source.train`` the original was trained on ``[N]``.
        options: of the command.

    Raises:
        UnlearnError: there is no request and no spec, or the spec is bad.
    """
    read = _Manifests(client)
    ids: tuple[str, ...] = version.record.request_ids if version.record is not None else ()
    if not ids:
        own, _ = forget_requests.of_version(version)
        ids = tuple(filed.id for filed in own if filed.pending)
    specs = [options.forget] if options.forget is not None else [f"request:{request_id}" for request_id in ids]
    if not specs:
        raise UnlearnError(
            f"{version.uri} has carried out no forget request and none is pending: give {spelled('forget')}"
        )
    indices = np.unique(np.concatenate([select(spec, original, source, mask, read)[0] for spec in specs]))
    return ForgetSet(indices, next((salt for salt in read.salts if salt is not None), None))


def requested_forget_set(
    client: MlflowClient, version: Version, source: Source, mask: npt.NDArray[np.bool_], options: Unlearning
) -> ForgetSet:
    """The spec's samples, or those of all pending requests together, and the requests that name them.

    Args:
        client: of the registry.
        version: that is to forget.
        source: of its data.
        mask: what of ``source.train`` the version was trained on ``[N]``.
        options: of the command.

    Raises:
        UnlearnError: no request is pending and no spec is given, or the spec is bad.
    """
    own, copied = forget_requests.of_version(version)
    for request in copied:
        note(f"Note: request {request.id} came with a copy of {request.of}, it is not about {version.uri}.")
    read = _Manifests(client, own)
    if options.forget is None:
        asked = _asked(client, version, own, options)
        requests, indices = _of_requests(version, asked, source, mask, read, anew=_trains_anew(options))
        matched = None
    else:
        indices, matched = select(options.forget, version, source, mask, read)
        requests = _naming(options.forget, version, own, Manifest(tuple(source.train.ids[i] for i in indices)))
    # That of a request, so that its digest is the same everywhere; that of the version where its ids are plain.
    salts = [salt for salt in read.salts if salt is not None]
    new_salt = salt_of(version, source) if options.hash_ids else None
    return ForgetSet(indices, salts[0] if salts else new_salt, requests, matched)


def _asked(
    client: MlflowClient, version: Version, own: list[ForgetRequest], options: Unlearning
) -> list[ForgetRequest]:
    """The version's requests, if one is still to be fulfilled: a pending one, or for ``until=pass`` any filed one.

    Args:
        client: of the registry.
        version: that is to forget.
        own: its requests.
        options: of the command.

    Raises:
        UnlearnError: there is none, or the version that passed is there already.
    """
    if any(request.pending for request in own):
        return own
    filed = [request for request in own if not request.ad_hoc]
    if getattr(options, "until", "once") == "pass" and filed:
        for uri in dict.fromkeys(uri for request in filed for uri in request.done_by):
            if _went_on(client, uri):
                raise UnlearnError(
                    f"{version.uri} has no pending forget request: {uri} has fulfilled them, and went on until it "
                    f"passed; give {spelled('forget')} to do it again"
                )
        return own
    if own:
        done = "; ".join(f"request {one.id} was carried out by {', '.join(one.done_by)}" for one in own[-3:])
        raise UnlearnError(
            f"{version.uri} has no pending forget request: {done}; to do it again, give "
            f"{spelled('forget', f'request:{own[-1].id}')}, or file another one with `request`"
        )
    raise UnlearnError(
        f"{version.uri} has no pending forget request: file one with `request`, or give {spelled('forget')}"
        if version.name is not None
        else f"{version.uri} is not a registered version and carries no request: give {spelled('forget')}"
    )


def _went_on(client: MlflowClient, uri: str) -> bool:
    """Whether a version is there that ``until=pass`` has made. Whoever edits its tag can make us ask, nothing else."""
    try:
        found = find_version(client, uri)
    except UnlearnError:  # deleted since, or not a version's URI: it stands in no one's way
        return False
    return found is not None and ATTEMPTS_TAG in found.tags


def _trains_anew(options: Unlearning) -> bool:
    """Whether all that has seen samples which are not retained is trained again."""
    once = getattr(options, "until", "once") == "once"
    return once and hasattr(options, "method") and get_method(options.method).by_shards


def _of_requests(
    version: Version,
    own: list[ForgetRequest],
    source: Source,
    mask: npt.NDArray[np.bool_],
    read: _Manifests,
    *,
    anew: bool,
) -> tuple[tuple[ForgetRequest, ...], npt.NDArray[np.int64]]:
    """The pending requests, and those fulfilled by other versions, since this one still contains their samples.

    Args:
        version: that is to forget.
        own: its requests.
        source: of its data.
        mask: what of ``source.train`` it was trained on ``[N]``.
        read: gives the manifest of a request.
        anew: whether what has left the data source is forgotten as well.

    Raises:
        UnlearnError: all samples are requested.
    """
    pending = [request for request in own if request.pending]
    earlier = [request for request in own if not request.pending and not request.ad_hoc]
    for request in earlier:
        note(
            f"Note: request {request.id} was carried out by {', '.join(request.done_by)}; it is carried out "
            "again here, since this version still contains its samples."
        )
    requests, found = list[ForgetRequest](), list[npt.NDArray[np.int64]]()
    for request in (*pending, *earlier):
        # The samples of fulfilled requests may have left the data source by now.
        indices, matched = select(f"request:{request.id}", version, source, mask, read, lenient=request in earlier)
        note(f"Request {request.id}: {counted(len(indices), 'sample')} to forget.")
        found.append(indices)
        if (lost := matched.val + matched.test + matched.nowhere) and not anew:
            note(
                f"Note: {lost} samples of request {request.id} are no longer in the training split, and {version.uri} "
                "knows them: the new version will not count as having carried it out. Training anew takes them out "
                f"({spelled('method', 'retrain')}, or exact for shards); so has {', '.join(request.done_by)}."
            )
        else:
            requests.append(request)
    together = np.unique(np.concatenate(found))
    if len(together) == mask.sum():
        raise UnlearnError("the requests together name every training sample: keep some of them")
    return tuple(requests), together


def _naming(spec: str, version: Version, own: list[ForgetRequest], samples: Manifest) -> tuple[ForgetRequest, ...]:
    """The request that names the same samples as a spec, if there is one; a note tells of the others.

    Args:
        spec: of the forget set.
        version: that is to forget.
        own: its requests.
        samples: what the spec names, plain ids.
    """
    same_samples = forget_requests.request_id(version, samples)
    named = [request for request in own if spec == f"request:{request.id}"]
    named = named or [request for request in own if request.id == same_samples]
    for request in own:
        if request not in named:
            state = "stays pending" if request.pending else "is not carried out again"
            note(f"Note: request {request.id} {state}: only the given forget set is carried out.")
    return tuple(named)
