import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset
from toy import logits, original, splits, state
from watching import watch

from mlflow_unlearn.methods.amun import Amun, nearest_mistakes

LINE = nn.Linear(1, 2, bias=False)
"""Class 1 where x > 0: the margin of class 1 is 2 x, and the boundary is 0."""
LINE.weight.data = torch.tensor([[-1.0], [1.0]])


class TestNearestMistakes:
    def test_by_hand(self):
        """From 0.35, ε = 1, steps of 0.1: −0.05 is the first place beyond the boundary; the far image gives the range.

        4 steps and the look after them are 5 passes; the other image is wrong already, which one pass shows.
        """
        images, labels = torch.tensor([[0.35], [-2.0]]), torch.tensor([1, 1])
        found, guesses, passes = nearest_mistakes(LINE, images, labels, torch.tensor(1.0), 50)
        torch.testing.assert_close(found, torch.tensor([[-0.05], [-2.0]]))
        assert guesses.tolist() == [0, 0] and passes == 6

    def test_the_radius_doubles_until_it_reaches(self):
        """From 0.36 ε = 0.25 reaches 0.11; with ε = 0.5 the eighth step of 0.05 crosses the boundary, at −0.04."""
        images, labels = torch.tensor([[0.36], [-2.0]]), torch.tensor([1, 0])
        found, guesses, _ = nearest_mistakes(LINE, images, labels, torch.tensor(0.25), 20)
        assert found[0].item() == pytest.approx(-0.04, abs=1e-5) and guesses[0] == 0

    def test_what_cannot_be_reached_keeps_its_label(self):
        """The range of the images ends before the boundary."""
        found, guesses, _ = nearest_mistakes(
            LINE, torch.tensor([[0.5], [0.9]]), torch.tensor([1, 1]), torch.tensor(1.0), 5
        )
        assert guesses.tolist() == [1, 1] and torch.equal(found, torch.tensor([[0.5], [0.9]]))

    def test_of_a_network(self):
        """All are mistaken, near, and in the range of the images; the network is left alone."""
        model, (images, labels) = original().train(), splits().forget.tensors
        before = state(model)
        radius = 0.1 * images.flatten(1).norm(dim=1).mean()
        found, guesses, _ = nearest_mistakes(model, images, labels, radius, 50)
        assert model.training and all(torch.equal(before[name], value) for name, value in state(model).items())
        assert all(p.grad is None for p in model.parameters())
        assert torch.equal(logits(model, TensorDataset(found, labels)).argmax(1), guesses) and (guesses != labels).all()
        assert found.min() >= images.min() and found.max() <= images.max()
        assert (found - images).flatten(1).norm(dim=1).max() < images.flatten(1).norm(dim=1).mean()


def test_it_costs_what_its_page_says():
    """epochs × (|D_r| + 2 |D_f|) training passes, and the attack's, which it returns: at most two radii of D_f."""
    outcome, phases = watch(Amun({"epochs": 2, "batch_size": 64}))
    assert [len(phase.column("labels")) for phase in phases] == [170 + 2 * 30] * 2
    assert 30 * 2 <= outcome.final["attack_passes"] < 2 * 51 * 30


def test_mistakes_are_taught_beside_the_true_labels():
    _, phases = watch(Amun({"epochs": 1}))
    mistakes = phases[0].phase.synthetic
    near, taught = mistakes.tensors
    assert len(mistakes) == 30 and (taught != splits().forget.tensors[1]).all()
    assert torch.equal(logits(original(), TensorDataset(near, taught)).argmax(1), taught)


def test_the_rate_decays_every_few_epochs():
    _, phases = watch(Amun({"epochs": 5, "lr_decay_every": 2}))
    assert [phase.phase.lr_scale for phase in phases] == pytest.approx([1, 1, 0.1, 0.1, 0.01])


def test_samples_without_a_mistake_are_counted():
    """An image of one value has no other value in its range."""
    flat = TensorDataset(torch.full((12, 1, 8, 8), 0.5), original()(torch.full((12, 1, 8, 8), 0.5)).argmax(1))
    sets = splits()
    outcome, phases = watch(Amun({"epochs": 1}), sets=type(sets)(flat, sets.retain, sets.val, sets.test))
    assert "AMUN found no mistake near 12 of the 12 forget samples" in outcome.warnings
    assert len(phases[0].column("labels")) == 170 + 12
