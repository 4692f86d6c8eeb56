"""`request`: file a forget request."""

from functools import partial

import numpy as np
from pydantic import Field

from mlflow_unlearn import config
from mlflow_unlearn.answer import CommandResult
from mlflow_unlearn.data.loaders import load_source
from mlflow_unlearn.data.manifest import Manifest
from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.registry import forget_requests, tracking
from mlflow_unlearn.registry.dataset_inputs import log_manifests
from mlflow_unlearn.registry.loading import admitted
from mlflow_unlearn.registry.versions import open_version
from mlflow_unlearn.session.canaries import next_tranche
from mlflow_unlearn.session.forget_set import select
from mlflow_unlearn.session.view import data_spec, salt_of, training_mask


class RequestResult(CommandResult):
    """The request as it is filed now."""

    run_id: str
    request_id: str
    uri: str = Field(description="The version that it is about.")
    new: bool = Field(description="False: it was filed before, and nothing has changed.")
    samples: int = Field(description="To be forgotten, canaries among them.")
    canaries: int
    done_by: list[str] = Field(description="Versions that have fulfilled it; empty: it is pending.")


def request(options: config.Request) -> RequestResult:
    """File a forget request: its manifest in a run of its own, its state on the version.

    Raises:
        UnlearnError: the model is not a registered version, or the forget set is bad.
    """
    with tracking.run("request", options) as run_id, tracking.scratch() as folder:
        client = tracking.client()
        version = admitted(open_version(client, options.model_uri, folder), options)
        if version.name is None:
            raise UnlearnError(
                f"{version.uri} is not a registered version and cannot carry a request: "
                "register it, or give forget= to unlearn"
            )
        source = load_source(data_spec(version, options.data, options.split))
        read = partial(forget_requests.read_manifest, client)
        mask = training_mask(version, source)
        forget, matched = select(options.forget, version, source, mask, read)
        twins = next_tranche(version, source, mask, forget, options.canaries)
        forget = np.union1d(forget, twins)
        manifest = Manifest(tuple(source.train.ids[i] for i in forget))
        salt = salt_of(version, source) if options.hash_ids else None
        details = tracking.recorded_options(options, "forget", "reason", "requester", "hash_ids")
        details |= {"canaries": len(twins)} if len(twins) else {}
        filed, new = forget_requests.file_request(
            client,
            version,
            manifest,
            {**details, "data": source.spec, "split": source.split, "matched": matched.model_dump()},
            folder=folder,
            salt=salt,
        )
        if new:
            log_manifests(source.spec, {"forget": manifest if salt is None else manifest.hashed(salt)})
            print(
                f"Filed request {filed.id}: {len(forget)} samples of {version.uri} are to be forgotten"
                f"{f', {len(twins)} of them canaries' if len(twins) else ''} (run {run_id})."
            )
        else:
            state = "is pending" if filed.pending else f"was carried out by {', '.join(filed.done_by)}"
            print(f"Request {filed.id} was filed before and {state}.")
        return RequestResult(
            run_id=run_id,
            request_id=filed.id,
            uri=version.uri,
            new=new,
            samples=len(forget),
            canaries=len(twins),
            done_by=list(filed.done_by),
        )
