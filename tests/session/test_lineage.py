"""What was forgotten on the way to a version."""

from dataclasses import replace
from pathlib import Path

import mlflow
import numpy as np
import pytest
import records
from chains import evidence_of, folder_of
from stores import call

from mlflow_unlearn.data.manifest import Manifest
from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.registry import forget_requests
from mlflow_unlearn.session.lineage import earlier_requests, lineage, previous, request_record


def test_a_trained_version_has_none(opened):
    assert previous(opened.version) is None and lineage(None) == []
    assert earlier_requests(opened.client, opened.version, opened.view.source, np.ones(270, dtype=bool)) == ()


def test_a_version_is_the_last_step_of_its_lineage():
    evidence = records.evidence()
    [step] = lineage((evidence, "digest"))
    assert (step.uri, step.source_uri, step.evidence_sha256) == ("models:/digits/4", "models:/digits/3", "digest")
    assert step.request_ids == evidence.request_ids
    assert lineage((evidence.model_copy(update={"lineage": [step]}), "later"))[0] == step


def test_what_a_version_of_an_earlier_release_forgot(opened, store, tmp_path):
    """It has no evidence: its record names the requests, and their runs the samples."""
    with mlflow.start_run():
        details = {"reason": "asked", "requester": "p-7", "forget": "ids.txt"}
        request, _ = forget_requests.file_request(
            store.client, opened.version, opened.manifest(np.array([3, 5])), details, folder=tmp_path
        )
    record = opened.version.record.model_copy(update={"request_ids": (request.id,)})
    version, retained = replace(opened.version, record=record), np.ones(270, dtype=bool)
    with pytest.raises(UnlearnError, match=f"2 samples that request {request.id} had models:/clf/1 forget"):
        earlier_requests(store.client, version, opened.view.source, retained)
    retained[[3, 5]] = False
    [earlier] = earlier_requests(store.client, version, opened.view.source, retained)
    assert earlier.indices.tolist() == [3, 5]
    assert earlier.record == request_record(request.id, request.run_id, by="models:/clf/1")
    assert (earlier.record.samples, earlier.record.reason, earlier.record.requester) == (2, "asked", "p-7")


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("group:customer=Jane Doe", "group:customer=…"),
        ("random:5,seed=1", "random:5,seed=1"),
        ("jane-doe.csv", None),
        ("class:…", None),
    ],
)
def test_the_evidence_names_no_person(opened, store, tmp_path, spec, told):
    """Whoever may read the version reads it, for as long as it is there."""
    with mlflow.start_run():
        request, _ = forget_requests.file_request(
            store.client, opened.version, opened.manifest(np.array([3, 5])), {"forget": spec}, folder=tmp_path
        )
    record = request_record(request.id, request.run_id, by="models:/clf/1")
    assert record.forget == told and "doe" not in record.model_dump_json().lower()


def test_retaining_what_was_forgotten_is_refused(chain):
    """A sample is put back into the training manifest of version 3."""
    path = folder_of("3") / "extra_files" / "training_manifest.csv"
    before = path.read_text()
    request = evidence_of("3").requests[0]
    stored = Path(mlflow.artifacts.download_artifacts(run_id=request.run_id, artifact_path="request/manifest.csv"))
    forgotten = Manifest.from_csv(stored).ids[0]
    try:
        path.write_text(before + Manifest.from_csv(path).key(forgotten) + "\n")
        refused = call("unlearn", "--model-uri", "models:/clf/3", "--forget", "random:5")
        assert refused.code == 2
        assert f"1 samples that request {request.id} had models:/clf/2 forget" in refused.err
        checked = call("verify", "--model-uri", "models:/clf/3")
        assert checked.code == 3 and "are in the training manifest" in checked.err
    finally:
        path.write_text(before)
    assert chain.versions() == ["1", "2", "3", "4"]
