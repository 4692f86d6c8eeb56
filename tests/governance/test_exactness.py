"""`verify` holds a claim of exactness against checkpoints and weights."""

from dataclasses import replace

import mlflow
import pytest
from sharding import checkpoint_files, record_of
from stores import call

from mlflow_unlearn.governance.exactness import check_exactness
from mlflow_unlearn.governance.integrity import examine


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


@pytest.mark.slow
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
