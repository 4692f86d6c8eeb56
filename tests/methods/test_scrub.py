import math

import pytest
import torch
from toy import logits, net, original, splits
from watching import watch

from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.methods import Batch
from mlflow_unlearn.methods._distillation import distillation
from mlflow_unlearn.methods.scrub import Scrub, max_loss, min_loss

BUFFERS = {"1.running_mean", "1.running_var", "1.num_batches_tracked"}


def passes(phases):
    return ["max" if phase.phase.forget is not None else "min" for phase in phases]


class TestLosses:
    """KL((½, ½) ‖ (¼, ¾)) = ½ log 4/3, CE of the student with label 0 is log 4; T = 1."""

    BATCH = Batch(
        torch.tensor([[0.25, 0.75]]).log(), torch.tensor([0]), torch.tensor([True]), torch.tensor([[0.5, 0.5]]).log()
    )

    def test_max_by_hand(self):
        """−½ log 4/3: to minimise the loss is to move from the original."""
        assert max_loss(self.BATCH, 1.0).item() == pytest.approx(-math.log(4 / 3) / 2, rel=1e-6)

    def test_min_by_hand(self):
        """0.1 · ½ log 4/3 + 2 · log 4."""
        expected = 0.1 * math.log(4 / 3) / 2 + 2 * math.log(4)
        assert min_loss(self.BATCH, alpha=0.1, gamma=2.0, temperature=1.0).item() == pytest.approx(expected, rel=1e-6)

    def test_the_temperature_softens_the_divergence_alone(self):
        kl = distillation(self.BATCH.teacher_logits, self.BATCH.logits, 4.0).item()
        assert max_loss(self.BATCH, 4.0).item() == pytest.approx(-kl)
        assert min_loss(self.BATCH, 1.0, 1.0, 4.0).item() == pytest.approx(kl + math.log(4))

    @pytest.mark.parametrize("loss", [lambda b: max_loss(b, 1.0), lambda b: min_loss(b, 1.0, 1.0, 1.0)])
    def test_need_the_original(self, loss):
        with pytest.raises(ValueError, match="^SCRUB needs the original's logits: its phases must name it as teacher$"):
            loss(Batch(torch.zeros(1, 2), torch.zeros(1).long(), torch.ones(1).bool(), None))


def test_published_defaults():
    assert Scrub().params.model_dump() == {
        "alpha": 0.001,
        "gamma": 0.99,
        "temperature": 4.0,
        "msteps": 2,
        "epochs": 10,
        "lr": 5e-4,
        "lr_decay": 0.1,
        "lr_decay_epochs": (5, 8),
        "batch_size": 128,
        "forget_batch_size": 0,
        "weight_decay": 5e-4,
        "momentum": 0.9,
    }


@pytest.mark.parametrize(
    ("epochs", "msteps", "expected"),
    [
        (4, 2, "max min max min min min"),
        (2, 0, "min min"),
        (2, 5, "max min max min"),
        (1, 1, "max min"),
    ],
)
def test_passes_alternate_and_the_last_is_a_min_pass(epochs, msteps, expected):
    outcome, phases = watch(Scrub({"epochs": epochs, "msteps": msteps}))
    assert passes(phases) == expected.split()
    for phase, kind in zip(phases, passes(phases), strict=True):
        forget = phase.column("forget")
        assert len(forget) == (30 if kind == "max" else 170) and forget.all() == forget.any() == (kind == "max")
    assert [row["epoch"] for row in outcome.history] == list(range(epochs))
    assert ["loss_max" in row for row in outcome.history] == [epoch < msteps for epoch in range(epochs)]


def test_the_losses_on_record_are_those_of_the_passes():
    """One batch a pass, so that its loss is that of the batch it saw."""
    outcome, phases = watch(Scrub({"epochs": 1, "msteps": 1, "batch_size": 170, "temperature": 2.0, "alpha": 0.5}))
    (away,), (stay,) = (phase.batches for phase in phases)
    assert outcome.history[0]["loss_max"] == pytest.approx(max_loss(away, 2.0).item(), rel=1e-4)
    assert outcome.history[0]["loss"] == pytest.approx(min_loss(stay, 0.5, 0.99, 2.0).item(), rel=1e-4)


def test_as_its_authors_run_it():
    """Three epochs, two with a max pass first, which has batches of its own size."""
    preset = Scrub.preset("authors-large")
    assert (preset["epochs"], preset["forget_batch_size"], preset["batch_size"]) == (3, 512, 128)
    _, phases = watch(Scrub({**preset, "forget_batch_size": 10, "batch_size": 85}))
    assert passes(phases) == "max min max min min".split()
    assert [len(phase.batches) for phase in phases] == [3, 2, 3, 2, 2]


class TestLearningRate:
    @staticmethod
    def rates(**params):
        _, phases = watch(Scrub({"batch_size": 170, **params}))
        return [round(phase.phase.optimizer.lr * phase.phase.lr_scale, 12) for phase in phases]

    def test_it_decays_at_its_epochs_for_both_passes(self):
        """Epochs 0 to 4 at the rate itself, 5 to 7 at a tenth, 8 and 9 at a hundredth; the first three have two."""
        assert self.rates(lr=0.01, msteps=3) == [0.01] * 8 + [0.001] * 3 + [0.0001] * 2
        assert self.rates(lr=0.01, msteps=2, epochs=2, lr_decay_epochs=[1], lr_decay=0.5) == [0.01] * 2 + [0.005] * 2
        assert self.rates(lr=0.01, msteps=0, epochs=3, lr_decay_epochs=()) == [0.01] * 3

    def test_the_student_walks_by_it(self):
        """Without momentum and weight decay, a step at a hundredth of the rate is a hundredth as long."""
        params = {"epochs": 2, "msteps": 0, "lr_decay_epochs": [1], "lr_decay": 0.01, "weight_decay": 0, "momentum": 0}
        model = net()
        model[5].p = 0.0
        _, phases = watch(Scrub(params | {"batch_size": 170, "lr": 0.01}), model)
        steps = [(phase.after["6.weight"] - phase.before["6.weight"]).norm().item() for phase in phases]
        assert steps[1] == pytest.approx(0.01 * steps[0], rel=0.2)

    @pytest.mark.parametrize("epochs", [[2, "late"], [2, -1], 5, "58", [0.5]])
    def test_epochs_that_are_none(self, epochs):
        with pytest.raises(UnlearnError, match="lr_decay_epochs.* of scrub is not usable"):
            Scrub({"lr_decay_epochs": epochs})


@pytest.mark.parametrize("cache_teacher", [True, False])
def test_the_teacher_does_not_move_with_the_student(cache_teacher):
    """Sums over a pass of its outputs are those of the original in eval mode, to the end."""
    _, phases = watch(Scrub({"epochs": 3, "lr": 0.05, "batch_size": 32}), cache_teacher=cache_teacher)
    for phase, kind in zip(phases, passes(phases), strict=True):
        said = logits(original(), splits().forget if kind == "max" else splits().retain)
        torch.testing.assert_close(phase.column("teacher_logits").sum(0), said.sum(0), rtol=1e-4, atol=1e-3)
    assert not torch.allclose(phases[-1].after["6.weight"], original()[6].weight, atol=1e-2)


@pytest.mark.parametrize("dropout", [0.2, 0.0])
def test_each_max_pass_raises_the_divergence_on_the_forget_set(dropout):
    """The first one too: the statistics of its batches make the student differ from the teacher that it still is."""
    model = original()
    model[5].p = dropout

    def divergence(weights):
        student = original()
        student.load_state_dict(weights)
        return distillation(logits(model, splits().forget), logits(student, splits().forget), 4.0).item()

    _, phases = watch(Scrub({"epochs": 3, "msteps": 3, "batch_size": 16}), model)
    for phase, kind in zip(phases, passes(phases), strict=True):
        if kind == "max":
            assert divergence(phase.after) > divergence(phase.before) + 1e-4


def test_statistics_move_in_both_passes():
    _, phases = watch(Scrub({"epochs": 3, "msteps": 2}))
    for phase in phases:
        changed = {name for name, value in phase.before.items() if not torch.equal(value, phase.after[name])}
        assert changed >= BUFFERS | {"6.weight"}


def test_both_passes_share_one_optimizer_and_its_velocity():
    _, phases = watch(Scrub({"epochs": 2, "msteps": 2}))
    assert len({phase.phase.optimizer for phase in phases}) == 1
