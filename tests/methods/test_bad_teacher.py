import math

import pytest
import torch
from toy import digits, logits, original, splits
from watching import watch

from mlflow_unlearn import Splits
from mlflow_unlearn.methods import Batch
from mlflow_unlearn.methods.bad_teacher import BadTeacher, bad_teacher_loss


def batch(teacher, student):
    labels, forget = torch.zeros(len(student)).long(), torch.tensor([True, False])
    return Batch(student, labels, forget, teacher)


class TestLoss:
    HALF, QUARTER = [0.5, 0.5], [0.25, 0.75]

    def test_by_hand(self):
        """KL((½, ½) ‖ (¼, ¾)) = ½ log 4/3 for the forget sample, 0 for the other: the mean over samples is ¼ log 4/3.

        Labels have no part in it. At T = 2 doubled log-probabilities give the same: no factor T² is left.
        """
        teacher = torch.tensor([self.HALF, self.QUARTER]).log()
        student = torch.tensor([self.QUARTER, self.QUARTER]).log()
        for t in (1.0, 2.0):
            loss = bad_teacher_loss(batch(t * teacher, t * student + 7), t)
            assert loss.item() == pytest.approx(math.log(4 / 3) / 4, rel=1e-6)

    def test_needs_the_teachers(self):
        with pytest.raises(ValueError, match="^Bad Teacher needs its teachers' logits: its phase must name them$"):
            bad_teacher_loss(batch(None, torch.zeros(2, 2)), 1.0)


def test_published_defaults():
    assert BadTeacher().params.model_dump() == {
        "temperature": 1.0,
        "retain_fraction": 0.3,
        "epochs": 1,
        "lr": 1e-4,
        "batch_size": 256,
        "weight_decay": 0.0,
    }
    _, (phase,) = watch(BadTeacher())
    assert phase.phase.optimizer.name == "adam"


def heard(model, seed=0):
    """Labels and teachers' logits of 100 forget samples and of the sampled retain set, in the order of training."""
    sets = Splits(digits(0, 100), digits(100, 200), digits(200, 350), digits(350, 500))
    _, (phase, _) = watch(BadTeacher({"epochs": 2, "batch_size": 20}), model, sets, seed)
    forget = phase.column("forget")
    parts = phase.column("labels"), phase.column("teacher_logits")
    return *(part[forget] for part in parts), *(part[~forget] for part in parts)


class TestTheIncompetentTeacher:
    @pytest.mark.parametrize("seed", [0, 1, 2])
    def test_it_is_at_chance_where_the_original_knows_everything(self, seed):
        labels, bad, retained, good = heard(original(), seed)
        assert (bad.argmax(1) == labels).double().mean() < 0.3
        assert (good.argmax(1) == retained).all() and len(bad) == 100 and len(good) == 30
        assert (bad.softmax(1).amax(1).mean() < 0.5) and (good.softmax(1).amax(1).mean() > 0.9)

    def test_it_shares_nothing_with_the_original(self):
        """Whatever the original has learned, the bad teacher returns the same, bit for bit; and never its outputs."""
        other = original()
        with torch.no_grad():
            for value in other.state_dict().values():
                value.add_(1)
        (_, bad, _, good), (_, same_bad, _, other_good) = heard(original()), heard(other)
        assert torch.equal(bad, same_bad) and not torch.equal(good, other_good)
        assert (bad.sum(0) - logits(original(), digits(0, 100)).sum(0)).abs().max() > 10
        assert not torch.equal(bad, heard(original(), seed=1)[1])

    def test_it_does_not_learn(self):
        """Two epochs of one forget set, at a learning rate that moves the student: the teachers stay as they are."""
        outcome, phases = watch(BadTeacher({"epochs": 2, "lr": 0.1}), cache_teacher=False)
        for own in (True, False):
            first, second = (p.column("teacher_logits")[p.column("forget") == own].sum(0) for p in phases)
            torch.testing.assert_close(first, second)
        assert not torch.allclose(outcome.model[6].weight, original()[6].weight)


def test_both_sets_are_shuffled_together():
    """30 forget samples among 51 retain samples, in batches of 27: each holds both, in another order each epoch."""
    _, phases = watch(BadTeacher({"epochs": 2, "batch_size": 30}))
    for phase in phases:
        assert len(phase.batches) == 3 and phase.column("forget").sum() == 30 and len(phase.column("labels")) == 81
        assert all(b.forget.any() and not b.forget.all() for b in phase.batches)
    assert not torch.equal(phases[0].column("forget"), phases[1].column("forget"))


@pytest.mark.parametrize(("fraction", "count"), [(0.3, 51), (1.0, 170), (1e-6, 1)])
def test_the_share_of_the_retain_set(fraction, count):
    _, (phase,) = watch(BadTeacher({"retain_fraction": fraction}))
    assert (~phase.column("forget")).sum() == count == len(set(phase.phase.retain.tolist()))


def test_the_student_comes_to_know_as_little():
    outcome, _ = watch(BadTeacher({"epochs": 5, "lr": 0.01, "batch_size": 32}))
    assert list(outcome.history[0]) == ["epoch", "loss", "seconds"]
    assert outcome.history[-1]["loss"] < outcome.history[0]["loss"] / 2
    sure = [logits(model, splits().forget).softmax(1).amax(1).mean() for model in (original(), outcome.model)]
    assert sure[0] > 0.9 > sure[1] + 0.1
