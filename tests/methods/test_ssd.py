import math

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset
from toy import CPU, accuracy, class_splits, original, same, splits, state

from mlflow_unlearn import Splits, unlearn
from mlflow_unlearn.engine.architectures import build_model, weights_digest
from mlflow_unlearn.engine.loop import RunOptions, run
from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.methods.ssd import Ssd, dampened, squared_gradients

IMAGES, LABELS = splits().retain.tensors


def importances(model, order=None, size=50):
    order = torch.arange(len(LABELS)) if order is None else order
    return squared_gradients(model, ((IMAGES[part], LABELS[part]) for part in order.split(size)))


def by_a_plain_loop(model, images, labels):
    """Σ over samples of the squared gradient of each one's own loss, by one backward pass a sample."""
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    total = {name: torch.zeros_like(model.get_parameter(name)) for name in names}
    for image, label in zip(images, labels, strict=True):
        loss = -torch.log_softmax(model(image[None]), dim=1)[0, label]
        for name, gradient in zip(
            names, torch.autograd.grad(loss, [model.get_parameter(n) for n in names]), strict=True
        ):
            total[name] += gradient**2
    return total


class TestSquaredGradients:
    def test_by_hand(self):
        """A linear layer of zeros: p = (½, ½), and d log p / dw = ±½ x for either class. Over x = 1 and x = −3 the
        squares sum to ¼ + 9/4 = 5/2, and those of the bias to ½. The square of the mean gradient of the batch would
        have been (½ · (½ − 3/2))² = ¼ at best.
        """
        model = nn.Sequential(nn.Flatten(), nn.Linear(1, 2))
        nn.init.zeros_(model[1].weight), nn.init.zeros_(model[1].bias)
        batch = torch.tensor([1.0, -3.0]).view(2, 1, 1, 1), torch.tensor([0, 0])
        total, count = squared_gradients(model, [batch])
        assert count == 2 and total["1.weight"].tolist() == [[2.5], [2.5]] and total["1.bias"].tolist() == [0.5, 0.5]

    def test_blocks_of_64_are_added_up_in_float64(self):
        """Squares of 0, 63 · 1, and, in the next block, 2²⁴: their sum is odd and has 25 bits, one more than float32.

        The model of zeros has the gradient x / 2, so that x is 0, 2 and 2¹³.
        """
        model = nn.Sequential(nn.Flatten(), nn.Linear(1, 2))
        nn.init.zeros_(model[1].weight), nn.init.zeros_(model[1].bias)
        images = torch.tensor([0.0, *[2.0] * 63, 2.0**13]).view(65, 1, 1, 1)
        total, count = squared_gradients(model, [(images, torch.zeros(65, dtype=torch.long))])
        assert count == 65 and total["1.weight"].tolist() == [[2**24 + 63], [2**24 + 63]]
        assert total["1.bias"].tolist() == [65 / 4, 65 / 4]

    def test_parity_with_a_loop_over_samples(self):
        model = original().train()
        model[0].bias.requires_grad_(False)
        total, count = importances(model)
        expected = by_a_plain_loop(original().requires_grad_(True), IMAGES, LABELS)
        assert count == 170 and total.keys() == expected.keys() - {"0.bias"}
        for name, value in total.items():
            torch.testing.assert_close(value.float(), expected[name], rtol=1e-4, atol=1e-9)
        assert all(module.training for module in model.modules()) and model[6].weight.grad is None

    def test_neither_the_size_nor_the_order_of_batches_matters(self):
        expected, _ = importances(original(), size=170)
        order = torch.randperm(170, generator=torch.Generator().manual_seed(0))
        for size in (1, 7, 64):
            total, count = importances(original(), order, size)
            assert count == 170
            for name, value in total.items():
                torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-12)

    @pytest.mark.parametrize("at_once", [2, 64, 1000])
    def test_several_at_once_give_the_same(self, at_once):
        """As a GPU computes them; BatchNorm in eval mode, a frozen layer, and a rest of a batch."""
        model = original()
        model[0].bias.requires_grad_(False)
        batches = [(IMAGES[part], LABELS[part]) for part in torch.arange(170).split(64)]
        expected, _ = squared_gradients(model, batches)
        total, count = squared_gradients(model, batches, at_once=at_once)
        assert count == 170 and total.keys() == expected.keys()
        for name, value in total.items():
            torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-9)
            assert value.dtype == torch.float64

    @pytest.mark.parametrize("architecture", [pytest.param("resnet18", marks=pytest.mark.slow), "vit_tiny"])
    def test_of_real_architectures_too(self, architecture):
        # In float64: a unit that rounding moves across zero has another gradient.
        model = build_model(architecture, 10, (1, 8, 8)).eval().double()
        batch = [(IMAGES[:4].double(), LABELS[:4])]
        calls, forward = [], model.forward
        model.forward = lambda images: (calls.append(len(images)), forward(images))[1]
        expected, _ = squared_gradients(model, batch)
        assert calls == [1] * 4
        total, _ = squared_gradients(model, batch, at_once=4)
        assert len(calls) == 4 + 2, "one to check the outputs, and one for all"
        for name, value in total.items():
            torch.testing.assert_close(value, expected[name], rtol=1e-6, atol=1e-12)

    def test_what_cannot_be_vectorised_is_taken_one_by_one(self):
        class Choosing(nn.Module):
            def __init__(self):
                super().__init__()
                self.net = original()

            def forward(self, images):
                return self.net(images) * (2 if images.sum().item() > 20 else 1)

        batches = [(IMAGES[part], LABELS[part]) for part in torch.arange(170).split(64)]
        expected, _ = squared_gradients(Choosing().eval(), batches)
        total, count = squared_gradients(Choosing().eval(), batches, at_once=64)
        assert count == 170 and all(torch.equal(value, expected[name]) for name, value in total.items())

    def test_labels_that_are_no_output_are_refused_at_once_as_well(self):
        with pytest.raises(UnlearnError, match="the data has label 10"):
            squared_gradients(original(), [(IMAGES[:4], torch.tensor([0, 1, 2, 10]))], at_once=4)

    def test_a_parameter_without_a_part_in_the_output_has_none(self):
        class Half(nn.Module):
            def __init__(self):
                super().__init__()
                self.used, self.unused = nn.Linear(64, 10), nn.Parameter(torch.ones(3))

            def forward(self, images):
                return self.used(images.flatten(1))

        total, _ = importances(Half())
        assert total["unused"].tolist() == [0, 0, 0] and (total["used.bias"] > 0).all()


class TestDampened:
    FORGET, EVERYTHING = torch.tensor([8.0, 2.0, 2.0, 1.0, 0.0]), torch.tensor([2.0, 1.0, 2.0, 2.0, 0.0])

    @pytest.mark.parametrize(
        ("alpha", "lam", "factors"),
        [
            (1, 1, [0.25, 0.5, 1, 1, 1]),  # 8 > 2 and 2 > 1; equal ones do not fire, nor does 0 > 0
            (1, 0.5, [0.125, 0.25, 1, 1, 1]),
            (1, 3, [0.75, 1, 1, 1, 1]),  # 3 · ½ would grow the weight: at most 1
            (3, 1, [0.25, 1, 1, 1, 1]),  # 2 > 3 · 1 is not
            (4, 1, [1, 1, 1, 1, 1]),  # 8 > 4 · 2 is not
        ],
    )
    def test_by_hand(self, alpha, lam, factors):
        """θ · min(λ · I_D / I_f, 1) where I_f > α · I_D."""
        weight = torch.tensor([1.0, -2.0, 3.0, -4.0, 5.0])
        assert (
            dampened(weight, self.FORGET, self.EVERYTHING, alpha, lam).tolist()
            == (weight * torch.tensor(factors)).tolist()
        )

    def test_what_matters_to_nothing_else_goes_to_zero(self):
        assert dampened(torch.ones(1), torch.ones(1), torch.zeros(1), 10, 1).tolist() == [0]

    def test_the_type_of_the_weight_is_kept(self):
        args = self.FORGET.double(), self.EVERYTHING.double(), 1.0, 1.0
        assert dampened(torch.ones(5, dtype=torch.bfloat16), *args).dtype == torch.bfloat16


def test_published_defaults():
    assert Ssd().params.model_dump() == {"alpha": 10.0, "lam": 1.0} and not Ssd.stochastic


class TestTheWhole:
    @pytest.mark.parametrize(("alpha", "lam"), [(1.0, 1.0), (1.5, 0.5)])
    def test_parity_with_the_method_written_out(self, alpha, lam):
        """I_f is a mean over D_f and I_D one over all of D; each weight is dampened once."""
        sets = splits()
        result = unlearn(original(), sets, "ssd", {"alpha": alpha, "lam": lam})
        model, after = original(), dict(result.model.named_parameters())
        forget = by_a_plain_loop(model, *sets.forget.tensors)
        retain = by_a_plain_loop(model, *sets.retain.tensors)
        selected = 0
        for name, weight in model.named_parameters():
            i_f, i_d = forget[name] / 30, (forget[name] + retain[name]) / 200
            expected = weight.detach().clone()
            chosen = i_f > alpha * i_d
            expected[chosen] *= (lam * i_d / i_f).clamp(max=1)[chosen]
            torch.testing.assert_close(after[name].detach(), expected, rtol=1e-3, atol=1e-6)
            selected += chosen.sum().item()
        assert selected > 100 and result.history == [] and result.warnings == ()

    def test_what_is_frozen_and_the_statistics_are_untouched(self):
        model = original()
        model[0].requires_grad_(False)
        before, after = state(model), state(unlearn(model, splits(), "ssd", {"alpha": 1.0}).model)
        assert {name for name in before if not torch.equal(before[name], after[name])} == {
            name for name, p in model.named_parameters() if p.requires_grad
        }

    def test_no_seed_no_mode_and_no_order_matter(self):
        digest = weights_digest(unlearn(original(), splits(), "ssd", {"alpha": 1.0}).model)
        assert weights_digest(unlearn(original().train(), splits(), "ssd", {"alpha": 1.0}, seed=9).model) == digest
        sets = splits()
        back = Splits(
            *(TensorDataset(*(t.flip(0) for t in s.tensors)) for s in (sets.forget, sets.retain)), sets.val, sets.test
        )
        other = unlearn(original(), back, "ssd", {"alpha": 1.0}).model
        torch.testing.assert_close(
            state(other), state(unlearn(original(), sets, "ssd", {"alpha": 1.0}).model), rtol=1e-5, atol=1e-7
        )

    def test_the_forgotten_class_pays(self):
        sets = class_splits()
        result = unlearn(original(), sets, "ssd", {"alpha": 3.0})
        assert accuracy(result.model, sets.forget) < 0.1 and accuracy(result.model, sets.retain) > 0.95


class TestWhereItCannotFire:
    """I_D contains I_f: at a share s of forgotten samples I_f / I_D ≤ 1 / s, which α must be below."""

    @pytest.mark.parametrize(
        ("forget", "retain", "alpha", "bound"),
        [(30, 170, 10.0, "6.7"), (30, 170, 7.0, "6.7"), (50, 50, 2.0, "2.0"), (20, 180, 10.0, "10.0")],
    )
    def test_it_warns_and_changes_nothing(self, forget, retain, alpha, bound):
        outcome = run(original(), Ssd({"alpha": alpha}), vars(splits(forget, retain)), CPU, RunOptions(0))
        (sentence,) = outcome.warnings
        assert f"at most {bound} and never above alpha = {alpha:g}; use a smaller alpha" in sentence
        assert same(state(outcome.model), state(original()))

    @pytest.mark.parametrize(("forget", "alpha"), [(30, 6.6), (30, 1.0), (2, 10.0)])
    def test_it_does_not_warn_where_it_can(self, forget, alpha):
        outcome = run(original(), Ssd({"alpha": alpha}), vars(splits(forget, 200 - forget)), CPU, RunOptions(0))
        assert outcome.warnings == ()

    def test_nor_does_it_fire_by_rounding(self):
        """α · s = 1, and pixels that the retain set never has: I_f = α · I_D there, but for the last bit."""
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        sets = splits(20, 180)
        retain = sets.retain.tensors[0].clone()
        retain[..., 4:] = 0
        sets = Splits(sets.forget, TensorDataset(retain, sets.retain.tensors[1]), sets.val, sets.test)
        assert math.isclose(10.0 * 20 / 200, 1)
        assert same(state(run(model, Ssd(), vars(sets), CPU, RunOptions(0)).model), state(model))
