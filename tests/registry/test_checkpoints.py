"""Checkpoints of a training as artifacts of its run."""

from pathlib import Path

import mlflow
import pytest
import torch

from mlflow_unlearn.evidence.checkpoints import CHECKPOINTS_TAG
from mlflow_unlearn.registry.checkpoints import LostCheckpoint, keeper, read_checkpoint

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
