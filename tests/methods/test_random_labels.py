import math

import pytest
import torch
from scipy import stats
from toy import CPU, Listed, original, splits, state
from watching import watch

from mlflow_unlearn import Splits, unlearn
from mlflow_unlearn.engine.loop import RunOptions, run
from mlflow_unlearn.methods import Batch
from mlflow_unlearn.methods.random_labels import RandomLabels, random_labels_loss, wrong_labels


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


class TestWrongLabels:
    @pytest.mark.parametrize("label", [0, 3, 9])
    def test_uniform_over_the_others_and_never_the_true_one(self, label):
        """Chi-square of 9,000 draws against 1,000 for each of the nine other classes."""
        drawn = wrong_labels(torch.full((9000,), label), 10, generator(label)).bincount(minlength=10)
        assert len(drawn) == 10 and drawn[label] == 0
        assert stats.chisquare([n for k, n in enumerate(drawn.tolist()) if k != label]).pvalue > 0.01

    def test_each_sample_has_its_own_draw(self):
        """Were one shift drawn for all, the wrong labels would be as many as the right ones."""
        labels = torch.arange(10).repeat(50)
        shifts = (wrong_labels(labels, 10, generator()) - labels) % 10
        assert set(shifts.tolist()) == set(range(1, 10))

    def test_counted_on_from_the_right_label_by_the_draw(self):
        """And from the last class on to the first: which other class it is has to be the same on every machine."""
        labels = torch.tensor([0, 5, 9, 9])
        shift = torch.randint(1, 10, (4,), generator=generator(3))
        assert wrong_labels(labels, 10, generator(3)).tolist() == [
            (label + by) % 10 for label, by in zip([0, 5, 9, 9], shift.tolist(), strict=True)
        ]

    def test_where_the_labels_are(self):
        assert wrong_labels(torch.zeros(2, dtype=torch.long, device="meta"), 10, generator()).device.type == "meta"

    def test_of_two_classes_the_other(self):
        assert wrong_labels(torch.tensor([0, 1, 1]), 2, generator()).tolist() == [1, 0, 0]

    def test_from_its_generator_alone(self):
        labels = torch.zeros(20, dtype=torch.long)
        torch.manual_seed(0)
        first = wrong_labels(labels, 10, generator(1))
        torch.manual_seed(1)
        assert torch.equal(first, wrong_labels(labels, 10, generator(1)))
        assert not torch.equal(first, wrong_labels(labels, 10, generator(2)))


class TestLoss:
    def test_by_hand(self):
        """Two classes: a forget sample of class 0 can only get class 1. p = (¼, ¾) for both samples of class 0:
        −log ¾ for the forgotten one, −log ¼ for the other; the mean is ½ · log 16/3.
        """
        batch = Batch(torch.tensor([[0.25, 0.75]] * 2).log(), torch.zeros(2).long(), torch.tensor([True, False]), None)
        assert random_labels_loss(batch, generator()).item() == pytest.approx(math.log(16 / 3) / 2, rel=1e-6)

    def test_drawn_anew_at_each_reading(self):
        batch = Batch(torch.randn(8, 10, generator=generator()), torch.arange(8), torch.ones(8, dtype=torch.bool), None)
        g = generator()
        losses = [random_labels_loss(batch, g).item() for _ in range(5)]
        assert len(set(losses)) == 5 and losses[0] == random_labels_loss(batch, generator()).item()


def test_published_defaults():
    assert RandomLabels().params.model_dump() == {
        "epochs": 10,
        "lr": 0.01,
        "batch_size": 128,
        "weight_decay": 5e-4,
        "momentum": 0.9,
    }


def test_parity_with_the_method_written_out():
    """Three epochs in plain torch: labels are drawn for each batch, so in each epoch anew, after its shuffle."""
    sets = splits()
    recipe = RandomLabels({"epochs": 3, "batch_size": 64})
    outcome = run(original(), recipe, vars(sets), CPU, RunOptions(6))
    images, labels = (torch.cat(parts) for parts in zip(sets.forget.tensors, sets.retain.tensors, strict=True))
    student, g = original().train(), generator(6)
    optimizer = torch.optim.SGD(student.parameters(), 0.01, momentum=0.9, weight_decay=5e-4)
    torch.manual_seed(6)
    for _ in range(3):
        order = torch.randperm(200, generator=g)
        for batch in order.tensor_split(4):
            targets = labels[batch].clone()
            others = torch.randint(1, 10, targets.shape, generator=g)
            targets[batch < 30] = (targets + others)[batch < 30] % 10
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(student(images[batch]), targets).backward()
            optimizer.step()
    torch.testing.assert_close(state(outcome.model), state(student))


def test_both_sets_are_shuffled_together():
    _, phases = watch(RandomLabels({"epochs": 2, "batch_size": 50}))
    for phase in phases:
        assert len(phase.batches) == 4 and len(phase.column("labels")) == 200
        assert all(batch.forget.any() and not batch.forget.all() for batch in phase.batches)
        assert phase.column("forget").sum() == 30


def test_the_forget_set_is_never_held_as_a_whole():
    """When the student sees its first batch, no more than that batch has been read."""
    sets = splits(100, 100)
    forget = Listed(sets.forget)
    forget.targets = sets.forget.tensors[1]
    model, read = original(), []
    model.register_forward_hook(lambda *_: read.append(forget.readings))
    unlearn(model, Splits(forget, sets.retain, sets.val, sets.test), "random_labels", {"epochs": 2, "batch_size": 20})
    assert 0 < read[0] <= 20 and all(b - a <= 20 for a, b in zip(read, read[1:], strict=False)) and read[-1] == 200
