"""Checkpoints of a training as artifacts of its run."""

from pathlib import Path

import mlflow
import pytest
import torch

from mlflow_unlearn.evidence.checkpoints import CHECKPOINTS_TAG
from mlflow_unlearn.registry.checkpoints import (
    LostCheckpoint,
    delete_checkpoint,
    delete_checkpoints,
    keeper,
    read_checkpoint,
    store_checkpoint,
    stored_checkpoints,
)

STATE = {"model": {"weight": torch.arange(3.0)}, "optimizers": [[{"lr": 0.1}, 4, {"state": {}}, None]]}


@pytest.fixture
def kept(empty_store):
    with mlflow.start_run() as run:
        store = keeper(run.info.run_id)
        return [store(STATE, epochs) for epochs in (3, 6)]


def file_of(kept) -> Path:
    artifacts = mlflow.get_run(kept.run_id).info.artifact_uri.removeprefix("file://")
    return Path(artifacts) / kept.path


def test_what_is_read_is_what_was_stored(kept):
    for one, epochs in zip(kept, (3, 6), strict=True):
        found = read_checkpoint(one)
        assert torch.equal(found["model"]["weight"], STATE["model"]["weight"])
        assert found["optimizers"] == STATE["optimizers"] and one.stage == epochs


def test_the_run_says_how_many_it_keeps(kept):
    assert mlflow.get_run(kept[0].run_id).data.tags[CHECKPOINTS_TAG] == "2"


def test_one_that_was_changed(kept):
    file = file_of(kept[1])
    file.write_bytes(file.read_bytes() + b" ")
    with pytest.raises(
        LostCheckpoint, match="checkpoints/shard-0-stage-6.pt of run .* was changed since it was written"
    ):
        read_checkpoint(kept[1])
    assert read_checkpoint(kept[0])


def test_one_that_is_gone(kept):
    file_of(kept[0]).unlink()
    with pytest.raises(LostCheckpoint, match="the checkpoint checkpoints/shard-0-stage-3.pt of run .* cannot be read"):
        read_checkpoint(kept[0])


@pytest.fixture
def run(empty_store):
    with mlflow.start_run() as active:
        yield active.info


def test_stored_and_read_again(run):
    kept = store_checkpoint(run.run_id, {"weights": torch.arange(3), "epoch": 2}, shard=1, stage=2)
    assert (kept.run_id, kept.path, kept.shard, kept.stage) == (run.run_id, "checkpoints/shard-1-stage-2.pt", 1, 2)
    found = read_checkpoint(kept)
    assert found["epoch"] == 2 and torch.equal(found["weights"], torch.arange(3))
    with pytest.raises(LostCheckpoint, match="was changed since it was written"):
        read_checkpoint(kept.model_copy(update={"sha256": "0" * 64}))
    delete_checkpoint(kept.run_id, kept.path)
    with pytest.raises(LostCheckpoint, match=f"checkpoint {kept.path} of run {run.run_id} cannot be read"):
        read_checkpoint(kept)


def test_what_is_ours_in_a_run_and_what_is_not(run):
    assert stored_checkpoints(run.run_id) == {}
    for shard in (0, 1):
        store_checkpoint(run.run_id, {"epoch": shard}, shard=shard, stage=1)
    mlflow.log_text("of the team", "checkpoints/last.pt")
    found = stored_checkpoints(run.run_id)
    assert "checkpoints/shard-1-stage-1.pt" in found and "checkpoints/last.pt" not in found
    delete_checkpoints(run.run_id)
    assert stored_checkpoints(run.run_id) == {}
    assert mlflow.artifacts.load_text(f"{run.artifact_uri}/checkpoints/last.pt") == "of the team"


@pytest.mark.parametrize("path", ["evidence/evidence.json", "checkpoints/../config.yaml", "checkpoints", ""])
def test_nothing_else_is_deleted(run, path):
    """Whoever may write a version's files may name any path in them."""
    mlflow.log_text("x", "evidence/evidence.json")
    with pytest.raises(ValueError, match="is not the path of a checkpoint"):
        delete_checkpoint(run.run_id, path)
    assert mlflow.artifacts.load_text(f"{run.artifact_uri}/evidence/evidence.json") == "x"


def test_a_run_that_is_not_there(empty_store):
    assert stored_checkpoints("0" * 32) == {}
