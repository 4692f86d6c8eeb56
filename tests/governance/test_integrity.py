"""What `verify` finds: everything that is not as the evidence says."""

import re
from pathlib import Path

import pytest
from chains import changed, evidence_of, flipped, folder_of, rewritten, tagged
from stores import call

from mlflow_unlearn.evidence.record import Evidence


@pytest.mark.parametrize("version", ["2", "3", "4"])
def test_the_chain_is_verified(chain, version):
    done = call("verify", "--model-uri", f"models:/clf/{version}")
    assert done.code == 0, done.err
    assert "agrees with its evidence" in done.out


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("evidence/report.html", b"<h1>PASS</h1>", "report: the version's tag names its digest"),
        ("evidence/report.html", None, "report:"),
        ("evidence/model_card.md", b"All is well.", "model card: it is what the evidence says"),
        ("evidence/approval.txt", b"yes", "evidence/approval.txt was added"),
    ],
)
def test_what_people_read_is_checked(chain, name, content, sentence):
    with changed(folder_of("3") / name, content):
        done = call("verify", "--model-uri", "models:/clf/3")
    assert done.code == 3 and sentence in done.err


def test_a_metric_that_was_never_measured(chain):
    with tagged(chain, "3", unlearn__metric__avg_gap="0.0"):
        done = call("verify", "--model-uri", "models:/clf/3")
    assert done.code == 3 and "tag unlearn.metric.avg_gap" in done.err


def test_a_source_that_was_changed(chain):
    """The model that is served is another one, and the weights beside it are as they were."""
    for version, later in (("1", "2"), ("2", "4")):
        [model] = (folder_of(version) / "data").glob("model.p*")
        with changed(model, b"another"):
            done = call("verify", "--model-uri", f"models:/clf/{later}")
        assert done.code == 3 and f"chain models:/clf/{version}: data/{model.name}" in done.err
    with changed(folder_of("2") / "extra_files" / "weights.safetensors", None):
        done = call("verify", "--model-uri", "models:/clf/3")
    assert done.code == 3 and "chain models:/clf/2: extra_files/weights.safetensors" in done.err


def test_a_source_that_only_says_that_it_is_retired(chain):
    with tagged(chain, "2", unlearn__retired="x"):
        done = call("verify", "--model-uri", "models:/clf/3")
    assert done.code == 3 and "chain models:/clf/2: it was retired (x), and can still be read" in done.err


@pytest.mark.parametrize("part", ["weights", "manifest", "evidence", "config", "tag"])
def test_one_byte_is_noticed(chain, part):
    evidence, folder = evidence_of("2"), folder_of("2")
    run = chain.client.get_run(evidence.run.id)
    config = Path(run.info.artifact_uri.removeprefix("file://")) / "config.yaml"
    paths = {
        "weights": folder / "extra_files" / "weights.safetensors",
        "manifest": folder / "extra_files" / "training_manifest.csv",
        "evidence": folder / "evidence" / "evidence.json",
        "config": config,
    }
    if part == "tag":
        value = chain.tags("2")["unlearn.metric.acc_test"]
        chain.client.set_model_version_tag("clf", "2", "unlearn.metric.acc_test", value[:-1] + "0")
        done = call("verify", "--model-uri", "models:/clf/2")
        chain.client.set_model_version_tag("clf", "2", "unlearn.metric.acc_test", value)
    else:
        with flipped(paths[part]):
            done = call("verify", "--model-uri", "models:/clf/2")
    assert done.code == 3
    assert re.search(rf"\b{part}\b", done.err.split("evidence", 1)[1] if part != "evidence" else done.err)
    assert call("verify", "--model-uri", "models:/clf/2").code == 0


def test_a_missing_manifest_and_an_added_file(chain):
    path = folder_of("2") / "extra_files" / "training_manifest.csv"
    aside = path.rename(path.with_suffix(".aside"))
    try:
        done = call("verify", "--model-uri", "models:/clf/2")
    finally:
        aside.rename(path)
    assert done.code == 3
    assert "training_manifest.csv is missing" in done.err and "training_manifest.aside was added" in done.err


def test_a_request_whose_list_was_changed(chain):
    request = evidence_of("2").requests[0]
    run = chain.client.get_run(request.run_id)
    path = Path(run.info.artifact_uri.removeprefix("file://")) / "request" / "manifest.csv"
    text = path.read_text()
    try:
        path.write_text("\n".join(text.splitlines()[:-1]) + "\n")
        done = call("verify", "--model-uri", "models:/clf/2")
    finally:
        path.write_text(text)
    assert done.code == 3 and f"request {request.id}" in done.err


def test_a_broken_chain(chain):
    """Evidence of an earlier step that was edited, with its tag."""
    path = folder_of("2") / "evidence" / "evidence.json"
    text, tag = path.read_text(), chain.tags("2")["unlearn.evidence_sha256"]
    try:
        path.write_text(text.replace("pseudonym-7", "pseudonym-8"))
        done = call("verify", "--model-uri", "models:/clf/4")
    finally:
        path.write_text(text)
    assert tag == chain.tags("2")["unlearn.evidence_sha256"]
    assert done.code == 3 and "chain models:/clf/2" in done.err


def test_signatures(chain, keys):
    ours, theirs = str(keys / "ours.pub"), str(keys / "theirs.pub")
    assert "the evidence is unsigned" in call("verify", "--model-uri", "models:/clf/2").out
    assert call("verify", "--model-uri", "models:/clf/2", "--key", ours).code == 3
    assert "the evidence was signed by" in call("verify", "--model-uri", "models:/clf/4", "--key", ours).out
    other = call("verify", "--model-uri", "models:/clf/4", "--key", theirs)
    assert other.code == 3 and "signature" in other.err
    # With EDIT on the version and its run everything that names the digest can be rewritten, but not the signature.
    edited = Evidence.model_validate_json(evidence_of("4").to_json().replace("pseudonym-7", "pseudonym-8"))
    with rewritten(chain, "4", edited):
        assert call("verify", "--model-uri", "models:/clf/4").code == 0
        done = call("verify", "--model-uri", "models:/clf/4", "--key", ours)
    assert done.code == 3 and "signature" in done.err


@pytest.mark.parametrize("command", ["verify", "review", "promote"])
def test_a_version_without_evidence(chain, command):
    refused = call(command, "--model-uri", "models:/clf/1")
    assert refused.code == 3
    assert "models:/clf/1: it has no evidence" in refused.err


@pytest.mark.parametrize("command", ["verify", "review", "promote", "exposure", "retire"])
def test_no_such_version(chain, command):
    refused = call(command, "--model-uri", "models:/clf/99")
    assert refused.code == 2
    assert "has no version '99'" in refused.err
