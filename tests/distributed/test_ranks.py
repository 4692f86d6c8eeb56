"""Two or three ranks compute what one process computes."""

import os
import subprocess
import sys
from pathlib import Path

import crew
import numpy as np
import pytest
import torch
from toy import PLAIN_METHODS

HERE = Path(__file__).parents[1]
LAUNCH = """
import sys
from mlflow_unlearn.distributed.launch import launch

sys.exit(launch(sys.argv[2:], int(sys.argv[1]), module="crew"))
"""


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    crew.work(folder)
    return torch.load(folder / "found.pt", weights_only=False)


@pytest.fixture(scope="module", params=[2, pytest.param(3, marks=pytest.mark.slow)])
def crowd(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("crowd")
    path = os.pathsep.join([str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", LAUNCH, str(request.param), str(folder)],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return torch.load(folder / "found.pt", weights_only=False)


def difference(a, b) -> float:
    """Largest relative to the largest weight, over tensors."""
    return max(((a[name] - b[name]).abs().max() / a[name].abs().max()).item() for name in a)


@pytest.mark.nightly
def test_the_gradient_is_that_of_the_whole_batch(alone, crowd):
    """51 samples, for a loss that compares sets and means over the batch."""
    before = crew.plain().state_dict()
    gradients = [{name: before[name] - found["one step"][name] for name in before} for found in (alone, crowd)]
    assert difference(*gradients) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", [*PLAIN_METHODS, "prefix"])
def test_every_method_ends_at_the_same_weights(name, alone, crowd):
    assert difference(alone[name], crowd[name]) < 1e-4
    assert difference(alone[name], crew.plain().state_dict()) > 1e-3 or name == "ssd"


@pytest.mark.slow
def test_callbacks_stay_with_rank_0(alone, crowd):
    """This one writes to an open file, which no other process could be sent."""
    assert crowd["heard"] == alone["heard"] != ""


@pytest.mark.slow
@pytest.mark.parametrize("what", ["read", "read twisted"])
def test_every_sample_is_read_once_and_in_order(what, alone, crowd):
    for split, outputs in alone[what].items():
        for name, value in outputs.items():
            if value is None:
                assert crowd[what][split][name] is None
            else:
                np.testing.assert_allclose(crowd[what][split][name], value, rtol=1e-4, atol=1e-6)
    assert crowd[f"{what}, passes"] == alone[f"{what}, passes"]
    for split, predictions in alone[f"{what}, taught"].items():
        assert torch.equal(predictions, crowd[f"{what}, taught"][split])


@pytest.mark.slow
def test_statistics_of_batchnorm_are_those_of_a_share(alone, crowd):
    """Near those of the whole batch, and not the same."""
    assert 0 < difference(*({"mean": found["norm"]["1.running_mean"]} for found in (alone, crowd))) < 0.2


@pytest.mark.slow
def test_each_rank_has_its_own_dropout_masks_and_the_same_draws_after(alone, crowd):
    """Of 34 samples a step, each rank's share is one image over and over: equal masks would be equal bit by bit."""
    (mine, after), *others = crowd["masks"]
    assert others and len(mine) == 5 and all(mask.any() for mask in mine)
    for masks, drawn in others:
        assert drawn == after
        assert len(masks) == len(mine) and not any(torch.equal(a, b) for a, b in zip(masks, mine, strict=True))
    [(whole, _)] = alone["masks"]
    assert all(len(mask) == 34 for mask in whole)


@pytest.mark.slow
def test_all_ranks_measure_the_model_that_rank_0_returns(crowd):
    """Also the last step of a pass, after which nothing else would bring rank 0's running statistics to the others."""
    first, *others = crowd["means"]
    assert others and all(torch.equal(first, mean) for mean in others)
