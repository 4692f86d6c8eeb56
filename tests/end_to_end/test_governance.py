"""Evidence, review, promotion and verification of a chain of three requests on digits."""

import hashlib
import json
import re
import subprocess
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path

import jsonschema
import mlflow
import pandas
import pytest
from stores import Outcome, call, copied, digits_folder

from mlflow_unlearn.data.manifest import Manifest
from mlflow_unlearn.evidence.record import Evidence, read_evidence
from mlflow_unlearn.registry.digests import file_digests
from mlflow_unlearn.report.card import model_card

QUICK = '{"epochs": 3, "lr": 0.003}'
LENIENT = """
name: lenient
rules: [{metric: acc_test, at_least: 0.1}]
membership: null
minimum: {forget: 2}
"""
STRICT = "name: strict\nrules: [{metric: acc_test, at_least: 1.1}]\nmembership: null\n"


@pytest.fixture(scope="module")
def keys(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("keys")
    for name in ("ours", "theirs"):
        private, public = folder / f"{name}.pem", folder / f"{name}.pub"
        subprocess.run(["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", private], check=True)
        subprocess.run(["openssl", "ec", "-in", private, "-pubout", "-out", public], check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def chain(template, keys, tmp_path_factory):
    """clf: 1 → 2 (request A) → 3 (request B) → 4 (request C, signed)."""
    with copied(template, tmp_path_factory.mktemp("chain")) as store:
        (store.folder / "lenient.yaml").write_text(LENIENT)
        (store.folder / "strict.yaml").write_text(STRICT)
        for version, more in (("1", ()), ("2", ()), ("3", ("--sign-key", keys / "ours.pem"))):
            uri = f"models:/clf/{version}"
            filed = call(
                *("request", "--model-uri", uri, "--forget", f"random:20,seed={version}"),
                *("--requester", "pseudonym-7", "--reason", "<script>alert('x')</script>"),
            )
            assert filed.code == 0, filed.err
            done = call("unlearn", "--model-uri", uri, "--params", QUICK, *more)
            assert done.code == 0, done.err
        yield store


def folder_of(version: str, name: str = "clf") -> Path:
    """Where the files of a version really lie."""
    model_id = mlflow.models.get_model_info(f"models:/{name}/{version}").model_id
    location = mlflow.MlflowClient().get_logged_model(model_id).artifact_location
    return Path(location.removeprefix("file://"))


def evidence_of(version: str) -> Evidence:
    return read_evidence(folder_of(version))[0]


@contextmanager
def flipped(path: Path):
    """One byte of a file is another one inside the block."""
    content = path.read_bytes()
    middle = len(content) // 2
    path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    try:
        yield
    finally:
        path.write_bytes(content)


def review(version: str, policy: str = "lenient.yaml") -> Outcome:
    return call("review", "--model-uri", f"models:/clf/{version}", "--policy", policy)


# Evidence


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


def test_retaining_what_was_forgotten_is_refused(chain):
    """Somebody puts a sample back into the training manifest of version 3."""
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


# verify


@pytest.mark.parametrize("version", ["2", "3", "4"])
def test_the_chain_is_verified(chain, version):
    done = call("verify", "--model-uri", f"models:/clf/{version}")
    assert done.code == 0, done.err
    assert "agrees with its evidence" in done.out


def test_measured_again(chain):
    done = call("verify", "--model-uri", "models:/clf/2", "--recompute", "true")
    assert done.code == 0, done.err
    assert re.search(r"metrics of unlearned.*same", done.out)
    # Everything that names the digest is rewritten: only measuring tells.
    record = evidence_of("2").model_dump()
    record["metrics"]["unlearned"]["values"]["acc_test"] += 0.01
    with rewritten(chain, "2", Evidence.model_validate(record)):
        assert call("verify", "--model-uri", "models:/clf/2").code == 0
        done = call("verify", "--model-uri", "models:/clf/2", "--recompute", "true")
    assert done.code == 3
    assert "metrics of unlearned" in done.err and "of acc_test" in done.err


def test_what_differs_is_not_loaded(chain, tmp_path):
    """A forged record names code as its data: it must not run."""
    (chain.folder / "forged_data.py").write_text(f"def splits():\n    open({str(tmp_path / 'ran')!r}, 'w')\n")
    record = evidence_of("2").model_dump()
    record["data"]["source"] = "python:forged_data:splits"
    path = folder_of("2") / "evidence" / "evidence.json"
    text = path.read_text()
    try:
        path.write_text(Evidence.model_validate(record).to_json())
        done = call("verify", "--model-uri", "models:/clf/2", "--recompute", "true")
    finally:
        path.write_text(text)
    assert done.code == 3 and "is not loaded" in done.out
    assert not (tmp_path / "ran").exists()


@contextmanager
def changed(path: Path, content: bytes | None):
    """A file has another content inside the block, or is gone."""
    before = path.read_bytes() if path.exists() else None
    try:
        path.unlink() if content is None else path.write_bytes(content)
        yield
    finally:
        path.unlink(missing_ok=True) if before is None else path.write_bytes(before)


@contextmanager
def tagged(chain, version: str, **tags: str):
    """A version has these tags inside the block."""
    before = chain.tags(version)
    names = {name.replace("__", "."): value for name, value in tags.items()}
    try:
        for name, value in names.items():
            chain.client.set_model_version_tag("clf", version, name, value)
        yield
    finally:
        for name in names:
            if name in before:
                chain.client.set_model_version_tag("clf", version, name, before[name])
            else:
                chain.client.delete_model_version_tag("clf", version, name)


@contextmanager
def rewritten(chain, version: str, edited: Evidence):
    """What somebody with EDIT on a version and its run can do: the record is another one wherever it is named."""
    folder = folder_of(version) / "evidence"
    run = chain.client.get_run(edited.run.id)
    copy = Path(run.info.artifact_uri.removeprefix("file://")) / "evidence" / "evidence.json"
    content = edited.to_json().encode()
    tags = {"unlearn__evidence_sha256": edited.sha256}
    tags |= {name.replace(".", "__"): value for name, value in edited.tags().items()}
    card = model_card(edited).encode()
    with changed(folder / "evidence.json", content), changed(copy, content), changed(folder / "model_card.md", card):
        with tagged(chain, version, **tags):
            yield


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


# review and promote


def test_review_by_the_default_policy(chain):
    done = call("review", "--model-uri", "models:/clf/2")
    assert done.code in (0, 3)
    word = "pass" if done.code == 0 else "fail"
    assert chain.tags("2")["unlearn.verdict"] == word
    assert f"by the policy 'default': {word}" in done.out
    assert "membership" in done.out


def test_review_and_promote(chain):
    refused = review("3", "strict.yaml")
    assert refused.code == 3
    assert "acc_test is" in refused.err and "needs ≥ 1.1 (fail)" in refused.err
    failed = call("promote", "--model-uri", "models:/clf/3")
    assert failed.code == 3 and "its review 1 says fail" in failed.err
    assert "champion" not in chain.client.get_registered_model("clf").aliases
    before = folder_of("3") / "evidence" / "evidence.json"
    content = before.read_bytes()
    assert review("3").code == 0
    assert before.read_bytes() == content
    told = json.loads(chain.tags("3")["unlearn.review.2"])
    run = chain.client.get_run(told["run_id"])
    assert run.info.status == "FINISHED"
    file = Path(mlflow.artifacts.download_artifacts(run_id=told["run_id"], artifact_path="evidence/review-2.json"))
    assert json.loads(file.read_text())["evidence_sha256"] == evidence_of("3").sha256
    other = call("promote", "--model-uri", "models:/clf/3", "--policy", "strict.yaml")
    assert other.code == 3 and "this one is 'strict'" in other.err
    done = call("promote", "--model-uri", "models:/clf/3", "--approver", "bob")
    assert done.code == 0, done.err
    assert chain.client.get_registered_model("clf").aliases["champion"] in ("3", 3)  # SQLite gives a number
    promotion = json.loads(chain.tags("3")["unlearn.promotion.champion"])
    assert (promotion["by"], promotion["review"], promotion["override"]) == ("bob (not authenticated)", 2, None)
    assert call("verify", "--model-uri", "models:/clf/3").code == 0
    # By hand nobody is kept from it, and it shows.
    chain.client.set_registered_model_alias("clf", "champion", "2")
    seen = call("verify", "--model-uri", "models:/clf/2")
    assert seen.code == 3 and "alias champion: it was moved by hand: no promotion" in seen.err
    left = call("verify", "--model-uri", "models:/clf/3")
    assert left.code == 3 and "alias champion: it was moved by hand from here to version 2" in left.err
    # A later promotion is no move by hand, and an earlier one does not cover moving it back.
    assert review("2").code == 0
    assert call("promote", "--model-uri", "models:/clf/2", "--override", "canary").code == 0
    assert call("verify", "--model-uri", "models:/clf/3").code == 0
    chain.client.set_registered_model_alias("clf", "champion", "3")
    back = call("verify", "--model-uri", "models:/clf/3")
    assert back.code == 3 and "it was moved back by hand: version 2 was promoted later" in back.err
    # Nor does a tag that no promotion has written.
    forged = {
        "uri": "models:/clf/3",
        "at": "2999-01-01",
        **{k: promotion[k] for k in promotion if k.endswith("sha256")},
    }
    for more in ({}, {"run_id": promotion["run_id"]}):
        with tagged(chain, "3", unlearn__promotion__champion=json.dumps(forged | more)):
            seen = call("verify", "--model-uri", "models:/clf/3")
        assert seen.code == 3 and "its promotion" in seen.err
    chain.client.delete_registered_model_alias("clf", "champion")


def test_open_requests_and_override(chain):
    """A request on the source that the new version did not carry out."""
    assert review("4").code == 0
    filed = call("request", "--model-uri", "models:/clf/3", "--forget", "random:3,seed=9")
    request = re.search(r"request ([0-9a-f]{12})", filed.out).group(1)
    try:
        refused = call("promote", "--model-uri", "models:/clf/4")
        assert refused.code == 3
        assert f"request {request} on models:/clf/3 is still open" in refused.err
        assert call("promote", "--model-uri", "models:/clf/4", "--override", "").code == 3
        done = call("promote", "--model-uri", "models:/clf/4", "--alias", "canary", "--override", "outage 12")
        assert done.code == 0 and "promoted in spite of this" in done.err
        promotion = json.loads(chain.tags("4")["unlearn.promotion.canary"])
        assert promotion["override"] == "outage 12" and request in promotion["objections"][0]
        checked = call("verify", "--model-uri", "models:/clf/4")
        assert "in spite of the verdict: outage 12" in re.sub(r"[│\s]+", " ", checked.out)
    finally:
        chain.client.delete_model_version_tag("clf", "3", f"unlearn.request.{request}")


def test_a_request_that_only_a_sibling_carried_out(chain):
    assert review("4").code == 0
    request = {"of": "models:/clf/3", "run_id": "r", "by": ["models:/clf/9"]}
    with tagged(chain, "3", unlearn__request__abcdefabcdef=f"done {json.dumps(request)}"):
        refused = call("promote", "--model-uri", "models:/clf/4")
    assert refused.code == 3
    assert "request abcdefabcdef on models:/clf/3 was carried out by models:/clf/9 alone" in refused.err


@pytest.mark.parametrize("value", ["pending []", "pending 5", "pending null", "pending {", "done {}"])
def test_a_request_tag_that_was_edited(chain, value):
    with tagged(chain, "3", unlearn__request__abcdefabcdef=value):
        refused = call("promote", "--model-uri", "models:/clf/4")
    assert refused.code in (2, 3) and "is not a forget request any more" in refused.err
    assert "Traceback" not in refused.err


def test_a_review_is_judged_again(chain):
    """Whoever may write the review's run and the version's tags can forge the file, but not what the evidence says."""
    assert review("2", "strict.yaml").code == 3
    n = max(int(k.rpartition(".")[2]) for k in chain.tags("2") if k.startswith("unlearn.review."))
    told = json.loads(chain.tags("2")[f"unlearn.review.{n}"])
    run = chain.client.get_run(told["run_id"])
    path = Path(run.info.artifact_uri.removeprefix("file://")) / "evidence" / f"review-{n}.json"
    record = json.loads(path.read_text())
    for checks in ([], [c | {"outcome": "pass"} for c in record["verdict"]["checks"]]):
        forged = json.dumps(record | {"verdict": record["verdict"] | {"checks": checks}}).encode()
        tag = json.dumps(told | {"sha256": hashlib.sha256(forged).hexdigest(), "verdict": "pass"})
        with changed(path, forged), tagged(chain, "2", **{f"unlearn__review__{n}": tag, "unlearn__review__note": "x"}):
            refused = call("promote", "--model-uri", "models:/clf/2", "--policy", "strict.yaml")
            lifted = call("promote", "--model-uri", "models:/clf/2", "--override", "now")
        assert refused.code == 3 and f"review {n} says what its policy does not say" in refused.err
        assert lifted.code == 3 and "give policy=, which says who may approve" in lifted.err
    assert "champion" not in chain.client.get_registered_model("clf").aliases


@contextmanager
def forged_review(chain, version: str):
    """With EDIT on the version and its last review's run: the review's file says that the signature holds."""
    n = max(int(k.rpartition(".")[2]) for k in chain.tags(version) if k.startswith("unlearn.review."))
    told = json.loads(chain.tags(version)[f"unlearn.review.{n}"])
    run = chain.client.get_run(told["run_id"])
    path = Path(run.info.artifact_uri.removeprefix("file://")) / "evidence" / f"review-{n}.json"
    record = json.loads(path.read_text())
    *checks, last = record["verdict"]["checks"]
    checks.append(last | {"outcome": "pass", "value": "true", "note": "signed"})
    forged = json.dumps(record | {"verdict": record["verdict"] | {"checks": checks}}).encode()
    tag = json.dumps(told | {"sha256": hashlib.sha256(forged).hexdigest(), "verdict": "pass"})
    with changed(path, forged), tagged(chain, version, **{f"unlearn__review__{n}": tag}):
        yield


def test_a_required_signature_is_checked_again(chain, keys):
    (chain.folder / "signed.yaml").write_text(LENIENT + "required: [signature]\n")
    ours, theirs = str(keys / "ours.pub"), str(keys / "theirs.pub")

    def promote(version: str, *more: str) -> Outcome:
        return call("promote", "--model-uri", f"models:/clf/{version}", *more)

    # Reviewed without a key; and a version that nobody has signed.
    assert review("4", "signed.yaml").code == review("2", "signed.yaml").code == 3
    with forged_review(chain, "4"), forged_review(chain, "2"):
        refused = promote("4")
        assert refused.code == 3 and "'lenient' requires a signature, which only key= can check" in refused.err
        refused = promote("4", "--policy", "signed.yaml")
        assert refused.code == 3 and "give key=" in refused.err
        refused = promote("4", "--key", theirs)
        assert refused.code == 3 and "signature: it does not hold" in refused.err
        refused = promote("2", "--policy", "signed.yaml")
        assert refused.code == 3 and "says what its policy does not say" in refused.err
    assert promote("4", "--key", "none.pem").code == 2
    late = promote("4", "--key", ours)
    assert late.code == 3 and "review it again" in late.err
    assert "champion" not in chain.client.get_registered_model("clf").aliases
    # Only with both keys; and an override has to say so.
    assert call("review", "--model-uri", "models:/clf/4", "--policy", "signed.yaml", "--key", ours).code == 0
    assert promote("4").code == 3
    assert promote("4", "--override", "now").code == 3
    done = promote("4", "--override", "now", "--policy", "signed.yaml", "--alias", "canary")
    assert done.code == 0, done.err
    assert "requires a signature" in json.loads(chain.tags("4")["unlearn.promotion.canary"])["objections"][0]
    done = promote("4", "--key", ours)
    assert done.code == 0, done.err
    assert json.loads(chain.tags("4")["unlearn.promotion.champion"])["objections"] == []
    for alias in ("champion", "canary"):
        chain.client.delete_registered_model_alias("clf", alias)


def test_a_key_where_no_signature_is_required(chain, keys):
    assert review("4").code == 0
    for more in ((), ("--key", str(keys / "ours.pub"))):
        done = call("promote", "--model-uri", "models:/clf/4", *more)
        assert done.code == 0, done.err
    refused = call("promote", "--model-uri", "models:/clf/4", "--key", str(keys / "theirs.pub"))
    assert refused.code == 3 and "signature: it does not hold" in refused.err
    chain.client.delete_registered_model_alias("clf", "champion")


def test_a_copy_and_other_weights_are_refused(chain):
    assert review("2").code == 0
    chain.client.copy_model_version("models:/clf/2", "copied")
    refused = call("promote", "--model-uri", "models:/copied/1")
    assert refused.code == 3 and "this is a copy of it" in refused.err
    assert call("verify", "--model-uri", "models:/copied/1").code == 3
    weights = folder_of("2") / "extra_files" / "weights.safetensors"
    content = weights.read_bytes()
    try:
        weights.write_bytes((folder_of("3") / "extra_files" / "weights.safetensors").read_bytes())
        refused = call("promote", "--model-uri", "models:/clf/2")
    finally:
        weights.write_bytes(content)
    assert refused.code == 3 and "weights.safetensors was changed" in refused.err
    assert "champion" not in chain.client.get_registered_model("clf").aliases


def test_a_changed_review(chain):
    assert review("2").code == 0
    n = max(int(k.rpartition(".")[2]) for k in chain.tags("2") if k.startswith("unlearn.review."))
    told = json.loads(chain.tags("2")[f"unlearn.review.{n}"])
    run = chain.client.get_run(told["run_id"])
    path = Path(run.info.artifact_uri.removeprefix("file://")) / "evidence" / f"review-{n}.json"
    with flipped(path):
        refused = call("promote", "--model-uri", "models:/clf/2")
    assert refused.code == 3 and f"review {n}" in refused.err


@pytest.mark.parametrize(
    ("rules", "approver", "sentence"),
    [
        ("two_person: true", "pseudonym-7", "asked for request"),
        ("two_person: true", "Pseudonym-7", "asked for request"),
        ("approvers: [alice]", "bob", "may not approve"),
    ],
)
def test_who_may_approve(chain, rules, approver, sentence):
    (chain.folder / "people.yaml").write_text(LENIENT + rules + "\n")
    assert review("2", "people.yaml").code == 0
    refused = call("promote", "--model-uri", "models:/clf/2", "--approver", approver)
    assert refused.code == 3 and sentence in refused.err
    # Nor does an override help.
    assert call("promote", "--model-uri", "models:/clf/2", "--approver", approver, "--override", "now").code == 3
    allowed = "alice" if approver == "bob" else "carol"
    done = call("promote", "--model-uri", "models:/clf/2", "--approver", allowed)
    assert done.code == 0, done.err
    chain.client.delete_registered_model_alias("clf", "champion")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("promote", "--model-uri", "models:/clf/2", "--alias", "latest"), "reserved"),
        (("promote", "--model-uri", "models:/clf/2", "--alias", "v7"), "reserved"),
        (("promote", "--model-uri", "models:/clf/2", "--alias", "a b!"), "cannot be set"),
        (("review", "--model-uri", "models:/clf/2", "--policy", "none.yaml"), "cannot be read"),
        (("review", "--model-uri", "models:/m-00000000000000000000000000000000"), "not a registered version"),
        (("verify", "--model-uri", "models:/clf/4", "--key", "none.pem"), "is not a public key"),
        (("review", "--model-uri", "models:/clf/2", "--key", "none.pem"), "is not a public key"),
        (("unlearn", "--model-uri", "models:/clf/1", "--sign-key", "none.pem"), "cannot sign"),
        (("retire", "--model-uri", "models:/clf/2", "--aliases", "nope"), "clf@nope does not point to"),
    ],
)
def test_bad_input(chain, arguments, sentence):
    before = chain.everything_registered()
    refused = call(*arguments)
    assert refused.code == 2, refused.err
    assert sentence in refused.err
    assert "Traceback" not in refused.err
    assert chain.everything_registered() == before


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("rules: [", "is not YAML"),
        ("- a", "holds no names"),
        ("rules: [{metric: acc_tset, at_least: 1}]", "did you mean 'acc_test'"),
        ("rules: [{metric: acc_test}]", "has no bound"),
        ("rules: [{metric: acc_test, at_least: .nan}]", "finite"),
        ("rules: [{metric: acc_test, at_least: 1, at_most: 0}]", "can never pass"),
        ("membership: {accept: [over-forgotten]}", "membership.accept"),
        ("approvers: bob", "approvers"),
        ("tow_person: true", "tow_person = True: there is no such key; did you mean 'two_person'?"),
        ("rules: [{metric: acc_test, atleast: 1}]", "did you mean 'at_least'?"),
        ("minimum: {forget: 0}", "minimum"),
    ],
)
def test_bad_policies(chain, text, sentence):
    (chain.folder / "bad.yaml").write_text(text)
    refused = call("review", "--model-uri", "models:/clf/2", "--policy", "bad.yaml")
    assert refused.code == 2, refused.err
    assert sentence in refused.err


@pytest.mark.slow
def test_ids_of_every_kind(empty_store, tmp_path):
    """Unicode, markup, quotes, formulas and 4 KB in ids: from the table of the data to what is verified."""
    digits_folder(tmp_path)
    kinds = ("größe/日本\u202e{}", "x" * 4096 + "{}", "<script>alert({})</script>", '"quoted", {}', " {} ", "=1+{}")
    files = sorted((tmp_path / "train").rglob("*.png")) + sorted((tmp_path / "test").rglob("*.png"))
    ids = [kind.format(number) for number, kind in zip(range(len(files)), cycle(kinds), strict=False)]
    splits = ["train" if "train" in path.parts else ("val", "test")[n % 2] for n, path in enumerate(files)]
    table = {"path": files, "label": [path.parent.name for path in files], "id": ids, "split": splits}
    pandas.DataFrame(table).to_csv(tmp_path / "table.csv", index=False)
    pandas.DataFrame({"id": ids[:24]}).to_csv(tmp_path / "ids.csv", index=False)
    for arguments in (
        ("train", "--data", f"csv:{tmp_path / 'table.csv'}", "--name", "clf", "--architecture", "toy:trainable"),
        ("request", "--model-uri", "models:/clf/1", "--forget", tmp_path / "ids.csv"),
        ("unlearn", "--model-uri", "models:/clf/1", "--params", QUICK, "--show-samples", "true", "--force", "true"),
        ("verify", "--model-uri", "models:/clf/2", "--recompute", "true"),
    ):
        done = call(*arguments)
        assert done.code == 0, done.err
    report = (folder_of("2") / "evidence" / "report.html").read_text(encoding="utf-8")
    assert "<script>alert" not in report
    assert Manifest.from_csv(folder_of("2") / "extra_files" / "training_manifest.csv").salt is not None


@pytest.mark.parametrize("stored", [(), ("--hash-ids", "true")])
def test_hashed_ids_of_a_filed_request_are_measured_again(store, stored):
    """The digest of the forget set has the salt of the request, or, where that keeps plain ids, one in the record."""
    assert call("request", "--model-uri", "models:/clf/1", "--forget", "random:20", *stored).code == 0
    hidden = ("--hash-ids", "true", "--params", QUICK)
    done = call("unlearn", "--model-uri", "models:/clf/1", *hidden)
    assert done.code == 0, done.err
    assert evidence_of("2").data.salt is not None
    checked = call("verify", "--model-uri", "models:/clf/2", "--recompute", "true")
    assert checked.code == 0, checked.err
