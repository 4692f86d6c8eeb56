import math

import pytest
import torch
from toy import CPU, Listed, digits, original, same, splits, state
from watching import watch

from mlflow_unlearn import Splits, unlearn
from mlflow_unlearn.engine.loop import RunOptions, run
from mlflow_unlearn.methods import Batch
from mlflow_unlearn.methods.neggrad_plus import NegGradPlus, neggrad_plus_loss


class TestLoss:
    P = torch.tensor([[0.5, 0.5], [0.25, 0.75], [0.125, 0.875]])

    def test_by_hand(self):
        """p of the label: ½ and ¼ in the retain set, ⅛ in the forget set. The means are (log 2 + log 4)/2 = 1.5 log 2
        and 3 log 2; β = ¾ makes ¾ · 1.5 log 2 − ¼ · 3 log 2 = ⅜ log 2. A mean over all three would be another number.
        """
        batch = Batch(self.P.log() + 7, torch.zeros(3, dtype=torch.long), torch.tensor([False, False, True]), None)
        assert neggrad_plus_loss(batch, 0.75).item() == pytest.approx(3 / 8 * math.log(2), rel=1e-6)
        assert neggrad_plus_loss(batch, 1.0).item() == pytest.approx(1.5 * math.log(2), rel=1e-6)
        assert neggrad_plus_loss(batch, 0.0).item() == pytest.approx(-3 * math.log(2), rel=1e-6)

    def test_its_gradient_by_hand(self):
        """d CE / dz = p − one-hot: at p = (½, ½) and label 0, (−½, ½), times β for retain and −(1 − β) for forget."""
        z = torch.zeros(2, 2, requires_grad=True)
        batch = Batch(z, torch.zeros(2, dtype=torch.long), torch.tensor([False, True]), None)
        neggrad_plus_loss(batch, 0.75).backward()
        torch.testing.assert_close(z.grad, torch.tensor([[-0.375, 0.375], [0.125, -0.125]]))


def test_published_defaults():
    assert NegGradPlus().params.model_dump() == {
        "beta": 0.95,
        "epochs": 10,
        "lr": 0.01,
        "batch_size": 128,
        "weight_decay": 5e-4,
        "momentum": 0.9,
    }


@pytest.mark.parametrize(("forget", "retain"), [(30, 170), (150, 50), (1, 60)])
def test_parity_with_the_method_written_out(forget, retain):
    """Two epochs in plain torch, in which the shorter set starts again, shuffled anew, until the other one ends."""
    sets = splits(forget, retain)
    recipe = NegGradPlus({"beta": 0.75, "epochs": 2, "batch_size": 16, "lr": 0.005})
    outcome = run(original(), recipe, vars(sets), CPU, RunOptions(4))

    def shuffled(count):
        return torch.randperm(count, generator=generator).tensor_split(max(1, math.ceil(count / 16)))

    student, generator = original().train(), torch.Generator().manual_seed(4)
    optimizer = torch.optim.SGD(student.parameters(), 0.005, momentum=0.9, weight_decay=5e-4)
    torch.manual_seed(4)
    ce = torch.nn.functional.cross_entropy
    for _ in range(2):
        sides = [list(shuffled(forget)), list(shuffled(retain))]
        short = 0 if len(sides[0]) < len(sides[1]) else 1
        while len(sides[short]) < len(sides[1 - short]):
            sides[short] += shuffled((forget, retain)[short])
        for f, r in zip(*sides, strict=False):
            images = torch.cat([sets.forget.tensors[0][f], sets.retain.tensors[0][r]])
            out = student(images)
            forgotten = ce(out[: len(f)], sets.forget.tensors[1][f])
            optimizer.zero_grad()
            (0.75 * ce(out[len(f) :], sets.retain.tensors[1][r]) - 0.25 * forgotten).backward()
            optimizer.step()
    torch.testing.assert_close(state(outcome.model), state(student), rtol=1e-4, atol=1e-5)
    assert not same(state(outcome.model), state(original()))


@pytest.mark.parametrize(
    ("forget", "retain", "steps"), [(30, 170, 6), (150, 50, 5), (1, 100, 4), (100, 1, 4), (1, 1, 1)]
)
def test_every_step_has_both_sets(forget, retain, steps):
    _, (phase,) = watch(NegGradPlus({"epochs": 1, "batch_size": 32}), sets=splits(forget, retain))
    assert len(phase.batches) == steps
    assert all(batch.forget.any() and not batch.forget.all() for batch in phase.batches)


def test_the_longer_set_is_read_once_an_epoch():
    sets = splits(30, 170)
    forget, retain = Listed(sets.forget), Listed(sets.retain)
    for data in (forget, retain):
        data.targets = data.data.tensors[1]  # So that it is not read for its labels.
    sets = Splits(forget, retain, sets.val, digits(350, 500))
    unlearn(original(), sets, "neggrad_plus", {"epochs": 3, "batch_size": 32})
    assert retain.readings == 3 * 170 and forget.readings == 3 * 6 * 30
