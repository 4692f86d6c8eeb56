"""What `verify` finds: everything that is not as the evidence says."""

import json
import re
from pathlib import Path

import pytest
from chains import changed, evidence_of, flipped, folder_of, resigned, rewritten, tagged
from stores import call

from mlflow_unlearn.evidence.record import CARD, Evidence, Wording, sha256


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


@pytest.mark.slow
@pytest.mark.parametrize(
    "content", [b"a: b: c", b"flavors: {", b"[]", b"text", b"", b"\xff\xfe\x00", b"a: &b [*b]", None]
)
def test_a_file_that_is_not_an_mlmodel(chain, content):
    """Every command that reads a version ends in a sentence, whatever stands there."""
    with changed(folder_of("3") / "MLmodel", content):
        done = call("verify", "--model-uri", "models:/clf/3")
        assert done.code == 3 and ("MLmodel" in done.err or "cannot be read" in done.err), done.err
        for command in ("evaluate", "unlearn", "exposure"):
            found = call(
                command, "--model-uri", "models:/clf/3", *(["--forget", "random:1"] if command != "exposure" else [])
            )
            assert found.code in ((0, 3) if command == "exposure" else (2,)), found.err
            assert "Traceback" not in found.err and "internal error" not in found.err, found.err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recorded", "outcome"),
    [
        (Wording.of("Other words."), ["same", "same"]),
        (Wording.of("Their words."), ["differs", "differs"]),
        (None, ["not checked", "not checked"]),
    ],
)
def test_words_of_another_release(chain, recorded, outcome):
    """What it wrote is held against what the record says of it; one of before that was recorded cannot be."""
    texts = None if recorded is None else {"description": recorded, CARD: recorded}
    edited = evidence_of("3").model_copy(update={"texts": texts})
    with rewritten(chain, "3", edited), changed(folder_of("3") / "evidence" / CARD, b"Other words."):
        chain.client.update_model_version("clf", "3", description="A verdict.\n\nOther words.\n\nAnd ours.")
        answer = json.loads(call("verify", "--model-uri", "models:/clf/3", "--format", "json").out)
    found = {one["part"]: one["outcome"] for one in answer["result"]["findings"]}
    assert [found["model card"], found["description"]] == outcome


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


@pytest.mark.parametrize("what", ["fulfilled", "filed since"])
def test_what_was_recorded_when_a_request_was_filed(chain, what):
    """Version 3 was made for one request, and the next one was filed on it."""
    request = evidence_of("3").requests[-1] if what == "fulfilled" else evidence_of("4").requests[-1]
    run = chain.client.get_run(request.run_id)
    path = Path(run.info.artifact_uri.removeprefix("file://")) / "request" / "request.json"
    with changed(path, path.read_bytes().replace(b"pseudonym-7", b"pseudonym-8")):
        done = call("verify", "--model-uri", "models:/clf/3")
    assert done.code == 3
    found = "its request.json, as it was fulfilled" if what == "fulfilled" else "is not what was filed"
    assert request.id in done.err and found in done.err


def test_tags_that_nothing_has_written(chain):
    """An unlearning that never warned, froze nothing and was never reviewed."""
    for name in ("warning", "prefix", "verdict", "review.1", "new"):
        with tagged(chain, "3", **{f"unlearn.{name}": "none"}):
            done = call("verify", "--model-uri", "models:/clf/3")
        assert done.code == 3, name
        assert name.replace(".", " ") in done.err


def test_files_in_folders_of_the_evidence_and_on_the_run(chain):
    run = Path(chain.client.get_run(evidence_of("3").run.id).info.artifact_uri.removeprefix("file://"))
    folder = folder_of("3") / "evidence" / "more"
    folder.mkdir()
    with changed(folder / "approval.txt", b"yes"):
        done = call("verify", "--model-uri", "models:/clf/3")
    folder.rmdir()
    assert done.code == 3 and "evidence/more/approval.txt was added" in done.err
    for name, content in (("report.html", b"PASS"), ("approval.txt", b"yes")):
        with changed(run / "evidence" / name, content):
            done = call("verify", "--model-uri", "models:/clf/3")
        assert done.code == 3 and f"evidence on the run: evidence/{name} is not the version's" in done.err


def test_the_description_begins_with_what_the_evidence_says(chain):
    text = chain.client.get_model_version("clf", "3").description
    record = evidence_of("3")
    assert record.reading == record.membership and f"Membership: {record.reading}" in text
    for other, code in ((f"{text}\n\nMind the gap.", 0), (f"PASS. {text}", 3), ("All is well.", 3)):
        chain.client.update_model_version("clf", "3", description=other)
        done = call("verify", "--model-uri", "models:/clf/3")
        assert done.code == code and ("description" in done.err) is (code == 3)
    chain.client.update_model_version("clf", "3", description=text)


def test_the_tags_for_people_are_checked(chain):
    tags = chain.tags("3")
    assert tags["unlearn-asked-by"].startswith("pseudonym-7; filed by ")
    assert tags["unlearn-reason"] == "<script>alert('x')</script>"
    for name in ("unlearn-reason", "unlearn-verdict", "unlearn-approved"):
        with tagged(chain, "3", **{name: "PASS"}):
            done = call("verify", "--model-uri", "models:/clf/3")
        assert done.code == 3 and f"tag {name}" in done.err


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


@pytest.mark.slow
def test_signatures(chain, keys):
    ours, theirs = str(keys / "ours.pub"), str(keys / "theirs.pub")
    assert "the evidence is unsigned" in call("verify", "--model-uri", "models:/clf/2").out
    assert call("verify", "--model-uri", "models:/clf/2", "--key", ours).code == 3
    words = " ".join(call("verify", "--model-uri", "models:/clf/4", "--key", ours).out.replace("│", " ").split())
    assert "the evidence was signed by the holder of the key sha256:" in words
    assert "it covers evidence, report and model card" in words
    other = call("verify", "--model-uri", "models:/clf/4", "--key", theirs)
    assert other.code == 3 and "signature" in other.err
    # With EDIT on the version and its run everything that names the digest can be rewritten, but not the signature.
    edited = Evidence.model_validate_json(evidence_of("4").to_json().replace("pseudonym-7", "pseudonym-8"))
    for more in ((), ("--key", ours)):
        with rewritten(chain, "4", edited):
            done = call("verify", "--model-uri", "models:/clf/4", *more)
        assert done.code == 3 and "signature" in done.err
    # Nor is it another's who has rewritten it all.
    with resigned(chain, "4", edited, keys / "theirs.pem"):
        assert call("verify", "--model-uri", "models:/clf/4").code == 0
        done = call("verify", "--model-uri", "models:/clf/4", "--key", ours)
    assert done.code == 3 and "it was made with the key sha256:" in done.err


def test_a_report_that_was_changed_with_its_tag_is_found_by_the_signature(chain):
    """Its digest is in a tag, which whoever changes the one may change as well."""
    report = b"<h1>PASS</h1>"
    with changed(folder_of("4") / "evidence" / "report.html", report):
        with tagged(chain, "4", unlearn__report_sha256=sha256(report)):
            done = call("verify", "--model-uri", "models:/clf/4")
    assert done.code == 3 and "signature: it does not hold" in done.err and "report:" not in done.err


def test_a_signature_that_was_removed(chain):
    with changed(folder_of("4") / "evidence" / "evidence.sig", None):
        done = call("verify", "--model-uri", "models:/clf/4")
    assert done.code == 3 and "signature: it is missing: the evidence says that it was signed" in done.err


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
