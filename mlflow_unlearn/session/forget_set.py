"""Which samples a command forgets: those of a spec, or of the pending requests."""

import secrets
from typing import Any

import numpy as np
import numpy.typing as npt
from mlflow.tracking import MlflowClient

from mlflow_unlearn.config import Evaluate
from mlflow_unlearn.console import note
from mlflow_unlearn.data.forget import resolve_forget
from mlflow_unlearn.data.manifest import Manifest
from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.registry import forget_requests
from mlflow_unlearn.registry.forget_requests import ForgetRequest
from mlflow_unlearn.registry.versions import Version
from mlflow_unlearn.session.view import InputSpec


def evaluated_forget_set(
    client: MlflowClient, version: Version, view: InputSpec, mask: npt.NDArray[np.bool_], config: Evaluate
) -> tuple[npt.NDArray[np.int64], str | None]:
    """The spec's samples, else those that the version was made to forget, else those of its pending requests.

    The second value is the salt of a hashed request, under which the set's digest is to be recorded.
    """
    salts: list[str | None] = [None]

    def read_request(request_id: str) -> Manifest:
        manifest = forget_requests.read_manifest(client, request_id)
        salts.append(manifest.salt)
        return manifest

    ids: tuple[str, ...] = version.record.request_ids if version.record is not None else ()
    if not ids:
        own, _ = forget_requests.of_version(version)
        ids = tuple(filed.id for filed in own if filed.pending)
    specs = [config.forget] if config.forget is not None else [f"request:{request_id}" for request_id in ids]
    if not specs:
        raise UnlearnError(f"{version.uri} carried out no forget request and none is pending: give forget=")
    forget = np.unique(np.concatenate([resolve_forget(spec, view.source, mask, read_request) for spec in specs]))
    return forget, salts[-1]


def find_requests(
    client: MlflowClient, version: Version, view: InputSpec, mask: npt.NDArray[np.bool_], config: Any
) -> tuple[tuple[ForgetRequest, ...], npt.NDArray[np.int64], str | None]:
    """The requests and what they forget: those of the spec (none where it is new), or all pending ones together.

    The third value is the salt under which the forgotten ids may be recorded, None where they may be told.

    Raises:
        UnlearnError: no request is pending and no spec is given, or the spec is bad.
    """
    own, copied = forget_requests.of_version(version)
    for request in copied:
        note(f"Note: request {request.id} came with a copy of {request.of}, it is not about {version.uri}.")
    pending = [request for request in own if request.pending]

    salts: list[str] = []

    def read(request_id: str) -> Manifest:
        manifest = forget_requests.read_manifest(client, request_id)
        salts.extend([manifest.salt] if manifest.salt is not None else [])
        return manifest

    def salt() -> str | None:
        """That of a request, so that its digest is the same everywhere; a new one where its ids are plain."""
        return next(iter(salts), secrets.token_hex(16) if config.hash_ids else None)

    if config.forget is None:
        if not pending:
            raise UnlearnError(
                f"{version.uri} has no pending forget request: file one with `request`, or give forget="
                if version.name is not None
                else f"{version.uri} is no registered version and carries no request: give forget="
            )
        earlier = [request for request in own if not request.pending and not request.ad_hoc]
        for request in earlier:
            note(
                f"Note: request {request.id} was carried out by {', '.join(request.done_by)}; it is carried out "
                "again here, since this version still knows its samples."
            )
        found = [resolve_forget(f"request:{request.id}", view.source, mask, read) for request in pending]
        # What was carried out before may have left the data source by now.
        again = [np.flatnonzero(read(request.id).mask(view.source.train.ids) & mask) for request in earlier]
        together = np.unique(np.concatenate([*found, *again]))
        for request, indices in zip([*pending, *earlier], [*found, *again], strict=True):
            note(f"Request {request.id}: {len(indices)} samples to forget.")
        if len(together) == mask.sum():
            raise UnlearnError("the requests together name every training sample: keep some of them")
        return (*pending, *earlier), together, salt()
    forget = resolve_forget(config.forget, view.source, mask, read)
    scheme, _, request_id = config.forget.partition(":")
    known = [request for request in own if scheme == "request" and request.id == request_id]
    if not known:
        request_id = forget_requests.request_id(version, Manifest(tuple(view.source.train.ids[i] for i in forget)))
        known = [request for request in own if request.id == request_id]
    for request in own:
        if request not in known:
            state = "stays pending" if request.pending else "is not carried out again"
            note(f"Note: request {request.id} {state}: only the given forget set is carried out.")
    return tuple(known), forget, salt()
