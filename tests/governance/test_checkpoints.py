"""What becomes of checkpoints when a version is retired."""

import hashlib
import json

import mlflow
import pytest
from sharding import checkpoint_files, listed, placed_at
from stores import DATA, call

from mlflow_unlearn.commands import retire as command

RETIRE = ("retire", "--model-uri", "models:/clf/1", "--yes", "true")


def retirement(store, number: str = "1"):
    mark = json.loads(store.tags(number)["unlearn.retired"])
    return json.loads(mlflow.artifacts.load_text(f"runs:/{mark['run_id']}/evidence/retirement.json"))


def test_those_that_no_version_that_stays_lists(sharded):
    """The second slice of shard 0 has the sample: only what was kept after it has seen it."""
    [(run_id, path)] = gone = listed(sharded, "1") - listed(sharded, "2")
    file = checkpoint_files(sharded)[run_id, path]
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    assert path == "checkpoints/shard-0-stage-2.pt"
    plan = call("retire", "--model-uri", "models:/clf/1")
    assert f"would delete 1 checkpoint of run {run_id}" in plan.out and file.exists()
    assert "3 of its checkpoints stay, listed by models:/clf/2" in plan.out
    kept = listed(sharded, "2")
    done = call(*RETIRE)
    assert done.code == 0, done.err
    assert "Proven" in done.out
    assert {*checkpoint_files(sharded)} == kept and not gone & kept
    record = retirement(sharded)
    assert [(one["run_id"], one["path"], one["sha256"]) for one in record["checkpoints"]] == [(run_id, path, sha256)]
    assert {one["place"] for one in record["checkpoints_kept"]} == {f"runs:/{r}/{p}" for r, p in kept if r == run_id}
    assert call("verify", "--model-uri", "models:/clf/2").code == 0
    done = call("unlearn", "--model-uri", "models:/clf/2", "--method", "exact", "--forget", "random:1")
    assert done.code == 0, done.err


def test_the_last_one_takes_the_rest_along(sharded):
    for number in "12":
        done = call("retire", "--model-uri", f"models:/clf/{number}", "--yes", "true")
        assert done.code == 0, done.err
    assert checkpoint_files(sharded) == {}


def test_in_the_other_order(sharded):
    """Those that both list go with the second one, whichever that is."""
    kept = listed(sharded, "1")
    assert call("retire", "--model-uri", "models:/clf/2", "--yes", "true").code == 0
    assert {*checkpoint_files(sharded)} == kept
    assert call(*RETIRE).code == 0
    assert checkpoint_files(sharded) == {}


@pytest.mark.parametrize("moment", ["before", "after"])
def test_killed_at_the_deletion_the_same_command_goes_on(sharded, monkeypatch, moment):
    kept, gone, real = listed(sharded, "2"), listed(sharded, "1") - listed(sharded, "2"), command.delete_checkpoint

    def killed(*arguments):
        if moment == "after":
            real(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "delete_checkpoint", killed)
    assert call(*RETIRE).code == 130
    monkeypatch.setattr(command, "delete_checkpoint", real)
    done = call(*RETIRE)
    assert done.code == 0, done.err
    assert {*checkpoint_files(sharded)} == kept
    assert {(one["run_id"], one["path"]) for one in retirement(sharded)["checkpoints"]} == gone


def test_a_copy_of_one_elsewhere_is_found(sharded):
    """By its SHA-256, as copies of weights are."""
    [gone] = listed(sharded, "1") - listed(sharded, "2")
    with mlflow.start_run():
        mlflow.log_artifact(str(checkpoint_files(sharded)[gone]), "mine")
    done = call(*RETIRE)
    assert done.code == 3 and "mine/shard-0-stage-2.pt (the same bytes as checkpoints/shard-0-stage-2.pt" in done.err


def test_the_same_bits_of_a_training_that_stays_are_no_copy(sharded):
    """Shard 1 is trained alike with the sample and without: nothing of the sample is in it."""
    sharded.client.delete_model_version("clf", "2")
    done = call(
        *("train", "--data", DATA, "--architecture", "toy:trainable", "--epochs", "2", "--batch-size", "32"),
        *("--ensemble", "2", "--slices", "3", "--name", "gold", "--exclude", "ids.csv"),
    )
    assert done.code == 0, done.err
    own, files = listed(sharded, "1"), checkpoint_files(sharded)
    shared = {files[one].read_bytes() for one in own} & {files[one].read_bytes() for one in files if one not in own}
    assert len(shared) == 3
    done = call(*RETIRE)
    assert done.code == 0, done.err
    assert not own & {*checkpoint_files(sharded)}


def test_what_a_version_that_stays_lists_must_be_known(sharded):
    """Its MLmodel is gone: what it needs cannot be told, and nothing is deleted."""
    before = {*checkpoint_files(sharded)}
    location = sharded.client.get_model_version_download_uri("clf", "2").removeprefix("file://")
    (sharded.folder / "kept").write_bytes(open(f"{location}/MLmodel", "rb").read())
    open(f"{location}/MLmodel", "w").close()
    refused = call(*RETIRE)
    assert refused.code == 2, refused.err
    assert "which checkpoints models:/clf/2 lists is not known" in refused.err
    assert {*checkpoint_files(sharded)} == before and "unlearn.retired" not in sharded.tags("1")


def test_one_that_another_version_lists_by_now(sharded, monkeypatch):
    """A command registers it between the plan and the deletion."""
    real = command.whoami

    def and_register():
        model = sharded.client.get_model_version("clf", "1")
        copied = mlflow.artifacts.download_artifacts(str(model.source), dst_path=str(sharded.folder / "copy"))
        sharded.client.create_registered_model("other")
        sharded.client.create_model_version("other", copied, tags={"unlearn.checkpoints": "4"})
        return real()

    monkeypatch.setattr(command, "whoami", and_register)
    refused = call(*RETIRE)
    assert refused.code == 3 and "listed by models:/other/1" in refused.err
    assert listed(sharded, "1") <= {*checkpoint_files(sharded)} and "unlearn.retired" not in sharded.tags("1")


def test_samples_of_the_last_slice_are_in_no_checkpoint(sharded):
    (sharded.folder / "last.csv").write_text("id\n" + "\n".join(placed_at(1, 2)[:2]) + "\n")
    done = call("unlearn", "--model-uri", "models:/clf/2", "--method", "exact", "--forget", "last.csv")
    assert done.code == 0, done.err
    assert listed(sharded, "3") == listed(sharded, "2")
    plan = call("retire", "--model-uri", "models:/clf/2")
    assert plan.code == 0 and "checkpoint of run" not in plan.out
    assert "3 of its checkpoints stay, listed by models:/clf/1, 3" in plan.out
    assert "1 of its checkpoints stay, listed by models:/clf/3" in plan.out
