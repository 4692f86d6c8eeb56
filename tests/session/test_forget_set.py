"""Which samples a command forgets."""

from dataclasses import replace
from pathlib import Path

import mlflow
import numpy as np
import pytest
from chains import changed

from mlflow_unlearn import config
from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.registry import forget_requests
from mlflow_unlearn.registry.forget_requests import TAG
from mlflow_unlearn.session.forget_set import evaluated_forget_set, requested_forget_set


@pytest.fixture
def file(opened, store, tmp_path):
    """File a request for samples by their indices; gives the version with the request's tag."""

    def run(*indices: int, version=opened.version, salt: str | None = None):
        with mlflow.start_run():
            manifest = opened.manifest(np.array(indices))
            request, _ = forget_requests.file_request(store.client, version, manifest, {}, folder=tmp_path, salt=salt)
        return replace(version, tags={**version.tags, TAG + request.id: request.tag()}), request

    return run


@pytest.fixture
def requested(opened, store):
    def choose(version, **options):
        mask = np.ones(270, dtype=bool)
        given = config.Unlearn(model_uri=version.uri, **options)
        return requested_forget_set(store.client, version, opened.view.source, mask, given)

    return choose


def test_all_pending_requests_together(file, requested):
    version, first = file(3, 5)
    version, second = file(5, 8, version=version, salt="00")
    chosen = requested(version)
    assert chosen.indices.tolist() == [3, 5, 8] and chosen.salt == "00"
    assert {request.id for request in chosen.requests} == {first.id, second.id}


def test_a_request_that_was_changed_after_it_was_filed(file, requested, store):
    version, request = file(3, 5)
    path = Path(store.client.get_run(request.run_id).info.artifact_uri.removeprefix("file://")) / "request"
    with changed(path / "request.json", (path / "request.json").read_bytes() + b" "):
        with pytest.raises(UnlearnError, match=f"request {request.id} is not what was filed"):
            requested(version)
    assert requested(version).requests == (request,)


def test_fulfilled_requests_come_along_and_trials_do_not(file, requested, capsys):
    version, done = file(3)
    version, trial = file(4, version=version)
    done, trial = replace(done, done_by=("models:/clf/2",)), replace(trial, done_by=("models:/clf/2",), ad_hoc=True)
    version = replace(version, tags={TAG + one.id: one.tag() for one in (done, trial)})
    with pytest.raises(UnlearnError, match="has no pending forget request"):
        requested(version)
    version, _ = file(9, version=version)
    assert requested(version).indices.tolist() == [3, 9]
    assert f"request {done.id} was carried out by models:/clf/2" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("spec", ["ids.txt", "request"])
def test_a_spec_finds_the_request_for_its_samples(file, requested, opened, store, spec):
    version, request = file(3, 5)
    version, other = file(7, version=version)
    (store.folder / "ids.txt").write_text("\n".join(opened.manifest(np.array([5, 3])).ids))
    chosen = requested(version, forget=f"request:{request.id}" if spec == "request" else spec)
    assert chosen.indices.tolist() == [3, 5] and [one.id for one in chosen.requests] == [request.id]


def test_a_new_spec_has_no_request_yet(opened, requested):
    plain, hashed = (requested(opened.version, forget="random:9", hash_ids=hidden) for hidden in (False, True))
    assert len(plain.indices) == 9 and plain.requests == () and plain.salt is None
    assert len(bytes.fromhex(hashed.salt)) == 16


def test_what_a_spec_names_and_is_not_forgotten_is_said(opened, requested, capsys):
    held_out = [int((split.labels == 3).sum()) for split in (opened.view.source.val, opened.view.source.test)]
    matched = requested(opened.version, forget="class:3").matched
    assert [matched.untrained, matched.val, matched.test, matched.nowhere] == [0, *held_out, 0]
    said = " ".join(capsys.readouterr().err.split())
    assert (
        f"class:3 names {matched.trained} samples that models:/clf/1 is trained on, and {held_out[0]} in the " in said
    )
    assert "which are not forgotten; the split was made by this tool: 270 samples drawn for training, seed 0." in said


def test_not_everything_can_be_forgotten(file, requested):
    version, _ = file(*range(0, 270, 2))
    version, _ = file(*range(1, 270, 2), version=version)
    with pytest.raises(UnlearnError, match="name every training sample: keep some of them"):
        requested(version)


def test_what_is_measured(file, opened, store):
    def measured(version, **options):
        given = config.Evaluate(model_uri=version.uri, **options)
        everything = np.ones(270, dtype=bool)
        return evaluated_forget_set(store.client, version, opened.version, opened.view.source, everything, given)

    with pytest.raises(UnlearnError, match="has carried out no forget request and none is pending: give forget="):
        measured(opened.version)
    version, request = file(3, 5, salt="00")
    assert (measured(version).indices.tolist(), measured(version).salt) == ([3, 5], "00")
    unlearned = replace(opened.version, record=opened.version.record.model_copy(update={"request_ids": (request.id,)}))
    assert measured(unlearned).indices.tolist() == [3, 5]
    assert len(measured(unlearned, forget="random:9").indices) == 9
