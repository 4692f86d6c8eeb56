import pytest
import torch
from torch import nn
from toy import original
from watching import watch

from mlflow_unlearn.methods._weights import towards_noise
from mlflow_unlearn.methods.perturb import Perturb


def test_noise_by_hand():
    """a = 0.6: 0.8 · w + 0.6 · σ · n, σ of (3, 4) the root of 25 / 2."""
    weight = torch.tensor([3.0, 4.0])
    noise = torch.randn(2, generator=torch.Generator().manual_seed(5))
    expected = 0.8 * weight + 0.6 * 12.5**0.5 * noise
    torch.testing.assert_close(towards_noise(weight, 0.6, torch.Generator().manual_seed(5)), expected)


@pytest.mark.parametrize("amount", [0.3, 0.8, 1.0])
def test_the_size_stays_and_the_direction_goes_as_far_as_asked(amount):
    """The correlation with what was there is √(1 − a²)."""
    weight = 0.02 * torch.randn(200, 500, generator=torch.Generator().manual_seed(1))
    moved = towards_noise(weight, amount, torch.Generator().manual_seed(2))
    assert moved.std().item() == pytest.approx(0.02, rel=0.02)
    correlation = torch.corrcoef(torch.stack([weight.flatten(), moved.flatten()]))[0, 1].item()
    assert correlation == pytest.approx((1 - amount**2) ** 0.5, abs=0.01)


def test_what_is_before_the_output_layer_moves_and_nothing_else():
    _, phases = watch(Perturb({"epochs": 1}))
    before, after = original().state_dict(), phases[0].before
    assert [name for name in before if not torch.equal(before[name], after[name])] == ["0.weight"]


def test_a_vit_has_its_own_defaults():
    assert (Perturb().params.amount, Perturb().params.epochs) == (0.8, 5)
    assert (Perturb(family="vit").params.amount, Perturb(family="vit").params.epochs) == (0.8, 20)


def test_an_output_layer_alone_is_refused():
    reason = Perturb.unsuited(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))
    assert reason.startswith("perturb would change 0 of the 1 layers") and "use finetune" in reason
