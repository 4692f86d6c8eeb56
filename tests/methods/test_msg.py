import pytest
import torch
from toy import net, original
from watching import watch

from mlflow_unlearn.methods.msg import Msg, scale_gradients, smallest


def test_the_smallest_are_as_many_as_asked_also_among_equals():
    """A dead unit's zeros are all equally small: three of ten are chosen all the same."""
    chosen = smallest(torch.zeros(2, 5), 0.3)
    assert chosen.shape == (2, 5) and int(chosen.sum()) == 3
    assert smallest(torch.tensor([-5.0, 4.0, 3.0]), 0.01).tolist() == [False, False, True]


def test_gradients_are_scaled_where_there_are_any():
    model = net()
    model[0].weight.grad = torch.ones_like(model[0].weight)
    scale_gradients(model, {"0.weight": torch.full_like(model[0].weight, 0.1), "6.weight": torch.zeros(10, 128)})
    assert torch.equal(model[0].weight.grad, torch.full_like(model[0].weight, 0.1)) and model[6].weight.grad is None


def test_a_fraction_is_drawn_anew_and_the_rest_stays():
    """72 entries in the one kernel, 30 % of them are 22; statistics see no forget sample before the repair."""
    _, phases = watch(Msg({"epochs": 1, "reset": 0.3}))
    before, after = original().state_dict(), phases[0].before
    assert int((before["0.weight"] != after["0.weight"]).sum()) == 22
    assert [name for name in before if not torch.equal(before[name], after[name])] == ["0.weight"]


def test_what_is_kept_moves_by_the_factor():
    """One plain step: with kept = 0 those entries stay as they are, bit for bit."""
    _, phases = watch(Msg({"epochs": 1, "kept": 0.0, "weight_decay": 0.0, "momentum": 0.0, "batch_size": 170}))
    anew = original().state_dict()["0.weight"] != phases[0].before["0.weight"]
    moved = phases[0].before["0.weight"] != phases[0].after["0.weight"]
    assert moved.any() and not (moved & ~anew).any()


@pytest.mark.parametrize("seed", [0, 1])
def test_which_ones_depends_on_the_sets(seed):
    """Gradients of the retain sample less those of the forget set: other samples, other weights."""
    first, second = (
        watch(Msg({"epochs": 1}), seed=s)[1][0].before["0.weight"] != original().state_dict()["0.weight"]
        for s in (seed, seed + 2)
    )
    assert not torch.equal(first, second)
