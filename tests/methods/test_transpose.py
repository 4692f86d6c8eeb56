import pytest
import torch
from torch import nn
from toy import CPU, original, splits
from watching import watch

from mlflow_unlearn.engine.loop import RunOptions, run
from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.methods.transpose import Transpose, square_kernels
from mlflow_unlearn.testing import original as small


def test_the_axes_change_places_and_nothing_else_does():
    _, phases = watch(Transpose({"epochs": 1}))
    before, after = original().state_dict(), phases[0].before
    assert torch.equal(after["0.weight"], before["0.weight"].transpose(2, 3))
    assert [name for name in before if not torch.equal(before[name], after[name])] == ["0.weight"]


def test_a_fraction_is_the_last_kernels():
    _, phases = watch(Transpose({"epochs": 1, "fraction": 0.5}), small("cnn"))
    before, after = small("cnn").state_dict(), phases[0].before
    assert torch.equal(after["0.weight"], before["0.weight"])
    assert torch.equal(after["2.weight"], before["2.weight"].transpose(2, 3))


def test_only_square_kernels_above_one_are_counted():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, (1, 3)), nn.Conv2d(2, 2, 5, groups=2))
    assert [tuple(kernel.shape) for kernel in square_kernels(model)] == [(2, 1, 3, 3), (2, 1, 5, 5)]
    assert Transpose.unsuited(model) is None
    model[3].weight.requires_grad_(False)
    assert len(square_kernels(model)) == 1 and Transpose.unsuited(model) is not None


@pytest.mark.parametrize("model", ["vit", "linear"])
def test_where_it_would_do_nothing_it_refuses_and_names_what_would_do(model):
    model = small("vit") if model == "vit" else nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    with pytest.raises(UnlearnError, match=r"transpose would change \d of the \d+ layers .*: use perturb, which"):
        run(model, Transpose(), vars(splits()), CPU, RunOptions(0))
