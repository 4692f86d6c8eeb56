"""`verify` holds a claim of exactness against checkpoints and weights."""

import re
from dataclasses import replace

import mlflow
import pytest
from chains import folder_of
from sharding import checkpoint_files, record_of
from stores import call

from mlflow_unlearn.evidence.record import CARD, DIGEST_TAG, Evidence
from mlflow_unlearn.governance.exactness import check_exactness
from mlflow_unlearn.governance.integrity import examine
from mlflow_unlearn.report.card import model_card


@pytest.fixture
def findings(sharded, tmp_path):
    """Of clf/2, with some of its claim changed."""

    def found(**claimed) -> dict[str, str]:
        folder = tmp_path / "files"
        folder.mkdir()
        examined = examine(sharded.client, "models:/clf/2", folder)
        exactness = examined.evidence.exactness.model_copy(update=claimed)
        evidence = examined.evidence.model_copy(update={"exactness": exactness})
        checked = check_exactness(sharded.client, replace(examined, evidence=evidence), folder)
        return {finding.part: f"{finding.outcome}: {finding.message}" for finding in checked}

    mlflow.set_tracking_uri(sharded.uri)
    return found


def test_a_claim_that_holds(findings):
    assert findings() == {
        "checkpoints": "same: all 4 are there, with their digests",
        "checkpoints and what was forgotten": (
            "same: by 1 unlearning none has seen what was forgotten after it was made"
        ),
        "shards of what was forgotten": "same: those of all 1 samples were trained again",
        "untouched shards": "same: the weights of shards 1 are those that it names",
        "untouched shards in models:/clf/1": "same: the weights of shards 1 are those that it names",
    }


@pytest.mark.parametrize("how", ["missing", "changed"])
def test_a_checkpoint_that_is(sharded, how):
    kept = record_of(sharded, "2").checkpoints[0]
    file = checkpoint_files(sharded)[kept.run_id, kept.path]
    if how == "missing":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes() + b"x")
    done = call("verify", "--model-uri", "models:/clf/2")
    assert done.code == 3
    sentence = "cannot be read" if how == "missing" else "was changed since it was written"
    assert f"checkpoints: the checkpoint {kept.path} of run {kept.run_id} {sentence}" in done.err


def test_a_checkpoint_that_has_seen_what_was_forgotten(findings):
    """Were shard 0 taken back to its start, the checkpoint of its first slice would be from after that."""
    found = findings(retrained={"0": 0})
    assert found["checkpoints and what was forgotten"].startswith("differs: checkpoints/shard-0-stage-1.pt of run")


def test_a_shard_that_was_touched(findings):
    found = findings(untouched={"0": "0" * 64})
    assert found["untouched shards"].startswith("differs: the weights of shard 0")
    assert found["untouched shards in models:/clf/1"].startswith("differs: the weights of shard 0")


@pytest.mark.parametrize("retrained", [{}, {"0": 3}, {"1": 0}])
def test_a_shard_that_was_not_trained_again_from_before_the_samples(findings, retrained):
    part = "shards of what was forgotten"
    assert re.fullmatch(
        r"differs: \S+ of request \w+ lay in slice \d of shard 0, which was not trained again from before it",
        findings(retrained=retrained)[part],
    )


def test_a_shard_of_which_nothing_is_said(findings):
    assert findings(untouched={})["untouched shards"] == "differs: of 2 shards it does not say what became of all"


def test_nothing_is_decided_about_a_claim_that_does_not_hold(sharded):
    """Whoever may write all files and tags of a version can make its evidence agree with itself."""
    path = folder_of("2")
    evidence = Evidence.model_validate_json((path / "evidence" / "evidence.json").read_text())
    exactness = evidence.exactness.model_copy(update={"retrained": {"1": 0}})
    forged = evidence.model_copy(update={"exactness": exactness})
    (path / "evidence" / "evidence.json").write_text(forged.to_json())
    (path / "evidence" / CARD).write_text(model_card(forged))
    sharded.client.set_model_version_tag("clf", "2", DIGEST_TAG, forged.sha256)
    for command in ("review", "promote", "verify"):
        done = call(command, "--model-uri", "models:/clf/2")
        assert done.code == 3 and "shards of what was forgotten" in done.err, done.err


@pytest.mark.nightly
def test_after_the_source_is_retired(sharded):
    """Each earlier step's evidence is read from its run."""
    for number in "23":
        done = call("unlearn", "--model-uri", f"models:/clf/{number}", "--method", "exact", "--forget", "random:1")
        assert done.code == 0, done.err
    for number in "123":
        assert call("retire", "--model-uri", f"models:/clf/{number}", "--yes", "true").code == 0
    done = call("verify", "--model-uri", "models:/clf/4")
    assert done.code == 0, done.err
    assert "by 3 unlearnings none has seen" in " ".join(done.out.split())
    # Somebody has changed the copy on the run.
    run = sharded.client.get_run(sharded.tags("3")["unlearn.run_id"])
    path = sharded.folder / run.info.artifact_uri.removeprefix("file://") / "evidence" / "evidence.json"
    path.write_text(path.read_text() + " ")
    done = call("verify", "--model-uri", "models:/clf/4")
    assert done.code == 0 and "the evidence of models:/clf/3 cannot be read (it was changed)" in " ".join(
        done.out.replace("│", " ").split()
    )


def test_a_plain_version_is_asked_for_nothing(chain):
    assert "checkpoints" not in call("verify", "--model-uri", "models:/clf/2").out
