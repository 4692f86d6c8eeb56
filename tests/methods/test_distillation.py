import math

import pytest
import torch
from torch import nn

from mlflow_unlearn.methods._distillation import distillation

HALF, QUARTER = torch.tensor([0.5, 0.5, 1e-30]), torch.tensor([0.25, 0.75, 1e-30])


def test_by_hand():
    """KL((½, ½) ‖ (¼, ¾)) = ½ log 2 + ½ log ⅔ = ½ log 4/3 = 0.1438; the second sample agrees, and the mean is over
    the two samples, not over the six numbers: 0.0719.
    """
    teacher = torch.stack([HALF, QUARTER]).log()
    student = torch.stack([QUARTER, QUARTER]).log()
    assert distillation(teacher + 5, student - 3, 1.0).item() == pytest.approx(math.log(4 / 3) / 4, rel=1e-6)


def test_the_teacher_comes_first():
    """KL((¼, ¾) ‖ (½, ½)) = ¼ log ½ + ¾ log 3/2 = 0.1308 is another number than 0.1438."""
    value = distillation(QUARTER.log()[None], HALF.log()[None], 1.0).item()
    assert value == pytest.approx(0.25 * math.log(0.5) + 0.75 * math.log(1.5), rel=1e-6)


def test_by_hand_at_a_temperature():
    """T = 2 halves the logits: log-probabilities doubled beforehand give the same KL, times T² = 4."""
    value = distillation(2 * HALF.log()[None], 2 * QUARTER.log()[None], 2.0).item()
    assert value == pytest.approx(4 * math.log(4 / 3) / 2, rel=1e-6)


def test_the_gradient_by_hand():
    """T² · d KL / dz = T · (q − p): at T = 2, p = (½, ½) and q = (¼, ¾), (−½, ½)."""
    z = (2 * torch.tensor([[0.25, 0.75]]).log()).requires_grad_()
    distillation(torch.zeros(1, 2), z, 2.0).backward()
    torch.testing.assert_close(z.grad, torch.tensor([[-0.5, 0.5]]))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_parity_with_torch(temperature):
    generator = torch.Generator().manual_seed(0)
    teacher, student = (torch.randn(7, 5, generator=generator) for _ in range(2))
    log_q, p = (student / temperature).log_softmax(1), (teacher / temperature).softmax(1)
    expected = temperature**2 * nn.functional.kl_div(log_q, p, reduction="batchmean")
    torch.testing.assert_close(distillation(teacher, student, temperature), expected)


def test_finite_for_outputs_far_apart():
    """The teacher is sure of class 0, the student of class 1: KL = 2e4, with gradient q − p."""
    z = torch.tensor([[-1e4, 1e4]], requires_grad=True)
    loss = distillation(torch.tensor([[1e4, -1e4]]), z, 1.0)
    loss.backward()
    assert loss.item() == 2e4 and z.grad.tolist() == [[-1.0, 1.0]]
