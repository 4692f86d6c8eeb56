"""`manifest`: record what a version was trained on that another tool has made."""

from pathlib import Path
from typing import Any

import mlflow
from pydantic import Field

from mlflow_unlearn import config
from mlflow_unlearn.answer import CommandResult
from mlflow_unlearn.console import counted, say
from mlflow_unlearn.data.ids import read_ids
from mlflow_unlearn.data.loaders import load_source
from mlflow_unlearn.data.manifest import Manifest
from mlflow_unlearn.data.spec import without_options
from mlflow_unlearn.errors import UnlearnError, shortlist
from mlflow_unlearn.governance.training_lists import own_manifest
from mlflow_unlearn.registry import tracking
from mlflow_unlearn.registry.clients import registry_client
from mlflow_unlearn.registry.lock import model_lock
from mlflow_unlearn.registry.versions import MANIFEST_PATH, TRAINED_ON_TAG, TrainedOn, registered_version, trained_on
from mlflow_unlearn.spelling import command_line, spelled

_OWN = "{uri} already has its own list of {samples} training ids: there is nothing to record"


class ManifestResult(CommandResult):
    """What was recorded."""

    uri: str
    run_id: str
    samples: int
    source: str
    manifest_sha256: str = Field(description="Of the list of hashed ids.")

    def next_step(self, options: Any) -> str | None:
        """To file a request on it."""
        return command_line("request", "--model-uri", self.uri, "--forget", "ids.csv", "--data", options.data)


def manifest(options: config.Manifest) -> ManifestResult:
    """Store the list in a run, its ids hashed, and tag the version with its digest.

    Raises:
        UnlearnError: the version has a list of its own, or the ids are not those of the source.
    """
    with tracking.prepared("manifest", options) as run, tracking.scratch() as folder:
        client = tracking.client()
        version = registered_version(client, options.model_uri)
        uri = f"models:/{version.name}/{version.version}"
        _check_has_none(uri, trained_on(version.tags), TRAINED_ON_TAG in version.tags)
        if (own := own_manifest(uri)) is not None:
            raise UnlearnError(_OWN.format(uri=uri, samples=len(own.ids)))
        source = load_source(options.data)
        splits = [split for split in (source.train, source.val, source.test, source.unused) if split is not None]
        if options.ids is not None:
            listed = read_ids(Path(options.ids).expanduser(), "list of training ids")
            known = [i for split in splits for i, named in zip(split.ids, listed.mask(split.ids), strict=True) if named]
            if len(known) < len(set(listed.ids)):
                unknown = shortlist(sorted(set(listed.ids) - set(map(listed.key, known))))
                raise UnlearnError(f"{options.ids!r} lists ids that {source.spec!r} does not have: {unknown}")
        elif source.drawn:
            raise UnlearnError(
                f"{source.spec!r} does not record what {uri} was trained on, since its training split is drawn by this "
                f"tool: give {spelled('ids')}, a file of the training ids, or ,split=drawn behind the source"
            )
        else:
            known = list(source.train.ids)
        stored = Manifest(tuple(known)).hashed(Manifest.salt_of(source.samples_digest))
        stored.to_csv(folder / "manifest.csv")
        run_id = run.begin(version)
        mlflow.log_text((folder / "manifest.csv").read_text(encoding="utf-8"), MANIFEST_PATH)
        record = TrainedOn.of(stored, without_options(source.spec), source.samples_digest, run_id)
        with model_lock(client, version.name) as (lock, _):
            lock.check()
            for key, value in record.tag().items():
                registry_client(client).set_model_version_tag(version.name, version.version, key, value)
    say(f"Recorded that {uri} was trained on {counted(len(known), 'sample')} of {source.spec} (run {run_id}).")
    return ManifestResult(
        uri=uri, run_id=run_id, samples=len(known), source=record.source, manifest_sha256=stored.digest
    )


def _check_has_none(uri: str, recorded: TrainedOn | None, tagged: bool) -> None:
    """A list that came with the version is not replaced; one that was recorded is, by a better one."""
    if recorded is not None and recorded.run_id is None:
        raise UnlearnError(_OWN.format(uri=uri, samples=recorded.samples))
    if tagged and recorded is None:
        raise UnlearnError(f"the tag {TRAINED_ON_TAG} of {uri} was edited: correct or remove it, and start again")
