"""Real versions opened for work, whose records are what a test says of them."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache

import mlflow
import pytest
from stores import FORGET, copied

from mlflow_unlearn import config
from mlflow_unlearn.data.manifest import Manifest
from mlflow_unlearn.engine.architectures import weights_digest
from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.evidence.checkpoints import Origin
from mlflow_unlearn.registry.checkpoints import store_checkpoint
from mlflow_unlearn.registry.flavor import load_module
from mlflow_unlearn.registry.loading import admitted
from mlflow_unlearn.registry.versions import TRAINING_TAG, open_version
from mlflow_unlearn.session.recipe import training_recipe
from mlflow_unlearn.session.session import open_session


@pytest.fixture(scope="module")
def opened(gold_template, tmp_path_factory) -> Iterator[Callable]:
    """clf/1, which is to forget a fifth; gold/1 has never seen that fifth, and clf/2 was made to forget it by LoTUS.

    With ``stages=`` it keeps checkpoints of so many epochs, with ``origin=`` it went on from the version of that URI.
    """
    yield from versions(gold_template, tmp_path_factory.mktemp("ways"))


@pytest.fixture(scope="class")
def ensemble(ensemble_template, tmp_path_factory) -> Iterator[Callable]:
    """clf/1, two shards of three slices, likewise. Last in a file: its store stands in the place of the other one."""
    yield from versions(ensemble_template, tmp_path_factory.mktemp("ensemble_ways"))


def versions(template, folder):
    with copied(template, folder / "store") as store:

        @cache
        def session_of(forget):
            options = config.Unlearn(model_uri="models:/clf/1", forget=forget, device="cpu")
            with mlflow.start_run() as run:
                session = open_session(store.client, options, folder, progress=False)
            return session, options, run.info.run_id

        @cache
        def kept(forget, stage):
            session, _, run_id = session_of(forget)
            return store_checkpoint(run_id, {"model": session.module.state_dict()}, stage=stage)

        def version(forget=FORGET, *, stages=(), origin=None, **recorded):
            session, options, _ = session_of(forget)
            if stages:
                recorded["checkpoints"] = tuple(kept(forget, stage) for stage in stages)
            if origin is not None:
                recorded["origin"] = origin_of(session, origin)
            record = session.version.record.model_copy(update=recorded)
            tags = {**session.version.tags, TRAINING_TAG: record.training_sha256}
            session = replace(
                session, version=replace(session.version, record=record, tags=tags, model_id=None, name=None)
            )
            return session, training_recipe(session, options), options

        yield version


def origin_of(session, uri):
    """As `train --from` records it: its weights, and the list of what clf/1 has and it has not, where it is there."""
    origin = Origin(uri=uri, model_id=None, weights_sha256="0", samples=43, added_sha256="0", at="2026-01-01T00:00:00Z")
    own, train = session.version.training_manifest, session.view.source.train.ids
    try:
        before = open_version(session.client, uri, session.folder)
    except UnlearnError:
        return origin
    seen, had = own.mask(train), before.training_manifest.mask(train)
    added = [i for i, late in zip(train, seen & ~had, strict=True) if late]
    digest = weights_digest(load_module(admitted(before, session.read), None, len(session.view.classes)))
    return origin.model_copy(
        update={"added_sha256": Manifest(tuple(added)).hashed(own.salt).digest, "weights_sha256": digest}
    )
