"""Checkpoints as artifacts of runs."""

import mlflow
import pytest
import torch

from mlflow_unlearn.registry.checkpoints import (
    LostCheckpoint,
    delete_checkpoint,
    delete_checkpoints,
    read_checkpoint,
    store_checkpoint,
    stored_checkpoints,
)


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
