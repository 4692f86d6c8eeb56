"""The evidence of a chain of three requests: one record, in several places."""

import json
from pathlib import Path

import jsonschema
import mlflow
import pytest
from chains import evidence_of, folder_of

from mlflow_unlearn.registry.digests import file_digests


def test_one_record_in_four_places(chain):
    registered = chain.client.get_model_version("clf", "2")
    evidence = evidence_of("2")
    on_run = Path(mlflow.artifacts.download_artifacts(run_id=evidence.run.id, artifact_path="evidence/evidence.json"))
    assert on_run.read_text() == evidence.to_json()
    assert registered.tags["unlearn.evidence_sha256"] == evidence.sha256
    assert {k: v for k, v in registered.tags.items() if k in evidence.tags()} == evidence.tags()
    card = (folder_of("2") / "evidence" / "model_card.md").read_text()
    report = (folder_of("2") / "evidence" / "report.html").read_text()
    value = f"{evidence.metrics['unlearned'].values['acc_test']:.4f}"
    assert value in registered.description and value in card and value in report
    for text in (card, report, registered.description):
        assert "certificate" not in text.lower()
        assert "<script>alert" not in text


def test_the_published_schema(chain):
    schema = json.loads((Path(__file__).parents[2] / "docs" / "evidence.schema.json").read_text())
    record = json.loads(evidence_of("4").to_json())
    jsonschema.validate(record, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(record | {"verdict": "deleted"}, schema)


def test_files_are_told_by_their_digests(chain):
    assert evidence_of("3").result.files == file_digests(folder_of("3"))
    assert {"MLmodel", "extra_files/weights.safetensors"} <= evidence_of("3").result.files.keys()


def test_requests_add_up(chain):
    """Each version knows all that was forgotten on the way to it, and by whom."""
    first, second, third = evidence_of("2"), evidence_of("3"), evidence_of("4")
    assert [r.carried_out_by for r in third.requests] == ["models:/clf/2", "models:/clf/3", "models:/clf/4"]
    assert [step.uri for step in third.lineage] == ["models:/clf/2", "models:/clf/3"]
    assert [step.evidence_sha256 for step in third.lineage] == [first.sha256, second.sha256]
    assert third.source.evidence_sha256 == second.sha256
    assert {r.requester for r in third.requests} == {"pseudonym-7"}
    assert {r.exchangeable for r in third.requests} == {True}  # drawn at random
    assert (first.data.forgotten_before, third.data.forgotten_before.samples) == (None, 40)
    assert [e.data.retain.samples for e in (first, second, third)] == [250, 230, 210]


def test_each_request_and_the_union_are_measured(chain):
    evidence = evidence_of("4")
    assert evidence_of("2").union == {} and evidence_of("2").requests[0].metrics == {}
    for request in evidence.requests:
        assert request.metrics["unlearned"].counts["n_forget"] == 20
        assert "mia_auc" in request.metrics["unlearned"].values
    assert evidence.union["unlearned"].counts["n_forget"] == 60
    means = [r.metrics["unlearned"].values["acc_forget"] for r in evidence.requests]
    assert evidence.union["unlearned"].values["acc_forget"] == pytest.approx(sum(means) / 3)
    # The last request is the forget set of this step.
    assert evidence.requests[-1].metrics["unlearned"].values["acc_forget"] == pytest.approx(
        evidence.metrics["unlearned"].values["acc_forget"]
    )
    run = chain.client.get_run(evidence.run.id)
    assert run.data.metrics["unlearned.union.acc_forget"] == evidence.union["unlearned"].values["acc_forget"]
