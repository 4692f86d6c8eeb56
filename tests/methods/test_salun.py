import pytest
import torch
from toy import Net, accuracy, class_splits, original, same, splits, state
from watching import watch

from mlflow_unlearn import unlearn
from mlflow_unlearn.engine.architectures import weights_digest
from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.methods import get_method
from mlflow_unlearn.methods._gradients import mean_gradient
from mlflow_unlearn.methods.random_labels import RandomLabels
from mlflow_unlearn.methods.salun import SalUn, restore, saliency_mask, unmasked_weights

FAST = {"epochs": 3, "batch_size": 32}
FORGET = splits().forget


def gradient():
    """That of the mean cross-entropy over the whole forget set at once, in eval mode."""
    model = original().eval()
    images, labels = FORGET.tensors
    torch.nn.functional.cross_entropy(model(images), labels).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def most_salient(share):
    """The mask from its definition: |gradient| at or above the k-th largest of all coordinates."""
    sizes = {name: value.abs() for name, value in gradient().items()}
    everything = torch.cat([value.flatten() for value in sizes.values()]).sort(descending=True).values
    return {name: value >= everything[round(share * len(everything)) - 1] for name, value in sizes.items()}


class TestForgetGradient:
    @pytest.mark.parametrize("size", [1, 7, 30])
    def test_parity_with_one_backward_pass_whatever_the_batches(self, size):
        model = original().train()
        batches = zip(*(part.split(size) for part in FORGET.tensors), strict=True)
        found = mean_gradient(model, batches)
        for name, value in gradient().items():
            torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6)
        assert all(module.training for module in model.modules()) and model[6].weight.grad is None

    def test_of_what_can_be_trained_and_0_for_what_has_no_part(self):
        model = original()
        model[0].requires_grad_(False)
        model.register_parameter("unused", None)
        model[1].unused = torch.nn.Parameter(torch.ones(3))
        found = mean_gradient(model, [FORGET.tensors])
        assert found.keys() == {"1.weight", "1.bias", "1.unused", "6.weight", "6.bias"}
        assert found["1.unused"].tolist() == [0, 0, 0]


class TestMask:
    def test_by_hand(self):
        """Of |3|, |−4|, |½|, |−1|, |2| the largest: the share is taken of all five, not of each tensor."""
        gradient = {"w": torch.tensor([[3.0, -4.0]]), "b": torch.tensor([0.5, -1.0, 2.0])}
        for share, w, b in [
            (0.2, [[False, True]], [False] * 3),
            (0.4, [[True, True]], [False] * 3),
            (0.6, [[True, True]], [False, False, True]),
            (0.8, [[True, True]], [False, True, True]),
            (1.0, [[True, True]], [True] * 3),
            (1e-6, [[False, True]], [False] * 3),
        ]:
            mask = saliency_mask(gradient, share)
            assert mask["w"].tolist() == w and mask["b"].tolist() == b

    def test_of_those_with_a_gradient_alone(self):
        """Two of four weights have one: half of these is one weight, half of all are two."""
        gradient = {"w": torch.tensor([0.0, -4.0, 0.0, 1.0])}
        assert saliency_mask(gradient, 0.5, of="nonzero")["w"].tolist() == [False, True, False, False]
        assert int(saliency_mask(gradient, 0.5)["w"].sum()) == 2
        assert int(saliency_mask({"w": torch.zeros(4)}, 0.5, of="nonzero")["w"].sum()) == 1

    def test_ties_do_not_exceed_the_share(self):
        mask = saliency_mask({"w": torch.zeros(6, 2), "b": torch.zeros(4)}, 0.25)
        assert sum(part.sum().item() for part in mask.values()) == 4

    def test_ties_fill_up_what_the_larger_ones_leave(self):
        """Two of four: |3|, and the first of three ones."""
        assert saliency_mask({"w": torch.tensor([1.0, 3.0, -1.0, 1.0])}, 0.5)["w"].tolist() == [
            True,
            True,
            False,
            False,
        ]


@torch.no_grad()
def test_restoring_is_exact_outside_the_mask():
    model, before = original(), state(original())
    mask = {"6.bias": torch.arange(10) < 4, "6.weight": torch.zeros(10, 128, dtype=torch.bool)}
    kept = unmasked_weights(model, mask)
    for parameter in model.parameters():
        parameter.add_(1e-3)
    restore(model, kept)
    assert torch.equal(model[6].weight, before["6.weight"])
    assert torch.equal(model[6].bias == before["6.bias"], torch.arange(10) >= 4)
    assert torch.equal(model[0].weight, before["0.weight"] + 1e-3), "what has no mask is not its business"


class TestParameters:
    def test_published_defaults(self):
        """Without an objective or with it named: those of Random Labeling."""
        for given in ({}, {"objective": "random_labels"}):
            assert SalUn(given).params.model_dump() == {
                "objective": "random_labels",
                "share": 0.5,
                "share_of": "all",
                "statistics": "frozen",
                "epochs": 10,
                "lr": 0.01,
                "batch_size": 128,
                "weight_decay": 5e-4,
                "momentum": 0.9,
                "alpha": 2.0,
                "retain_fraction": 0.3,
            }

    def test_lotus_brings_its_own(self):
        own = get_method("lotus")().params.model_dump()
        params = SalUn({"objective": "lotus"}).params
        assert params.lr == own["lr"] == 1e-4 and params.batch_size == own["batch_size"] == 128
        assert {key: value for key, value in own.items() if key in SalUn.Params.model_fields} == {
            key: value for key, value in params.model_dump().items() if key in own
        }

    @pytest.mark.parametrize("given", [{"lr": 0.003}, {"batch_size": 8, "alpha": 4.0}, {"epochs": 2, "share": 0.1}])
    def test_what_is_given_goes_first(self, given):
        params = SalUn({"objective": "lotus", **given}).params.model_dump()
        assert params == SalUn({"objective": "lotus"}).params.model_dump() | given

    def test_by_the_family_of_the_model_as_the_objective_has_them(self):
        vit = SalUn({"objective": "lotus"}, family="vit").params
        assert (vit.lr, vit.batch_size, vit.epochs) == (1e-6, 32, 3)
        assert SalUn({"objective": "lotus", "lr": 0.1}, family="vit").params.model_dump() == vit.model_dump() | {
            "lr": 0.1
        }
        assert SalUn(family="vit").params == SalUn().params

    def test_given_settings_reach_the_objective(self):
        _, phases = watch(
            SalUn({"objective": "lotus", "epochs": 1, "lr": 0.003, "retain_fraction": 1, "batch_size": 64})
        )
        (phase,) = phases
        assert (phase.phase.optimizer.name, phase.phase.optimizer.lr) == ("adamw", 0.003)
        assert phase.phase.batch_size == 64 and len(phase.phase.retain) == 170 and phase.phase.teacher == "original"

    @pytest.mark.parametrize("objective", ["scrub", "", None, 3])
    def test_other_objectives(self, objective):
        with pytest.raises(
            UnlearnError, match=r"objective = .* of salun .*valid values: .*objective \(random_labels \| lotus\)"
        ):
            SalUn({"objective": objective})

    def test_no_objective_at_all(self):
        with pytest.raises(UnlearnError, match="objective = .* of salun is not usable"):
            SalUn({"objective": ["lotus"]})


OBJECTIVES = pytest.mark.parametrize("objective", ["random_labels", "lotus"])


class TestTheWhole:
    @OBJECTIVES
    @pytest.mark.parametrize("share", [0.5, 0.1])
    def test_only_the_most_salient_weights_move(self, objective, share):
        """Weight decay and momentum would move the others too; buffers are all as they were."""
        params = FAST | {"objective": objective, "share": share, "lr": 0.01, "weight_decay": 0.1}
        before = state(original())
        after = state(unlearn(original(), splits(), "salun", params | {"momentum": 0.95}).model)
        mask, moved = most_salient(share), 0
        for name, value in before.items():
            changed = value != after[name]
            assert not changed[~mask[name]].any() if name in mask else not changed.any()
            moved += changed.sum().item()
        count = sum(parameter.numel() for parameter in original().parameters())
        assert 0.99 * share * count <= moved <= round(share * count)

    @OBJECTIVES
    def test_in_each_step_the_student_has_the_others_weights_as_they_were(self, objective):
        """Restored after every step and not at the end: the hook sees the student before each of them."""
        mask, before, seen = most_salient(0.5), state(original()), []

        def note(student, *_):
            if student.training:
                seen.append(all(torch.equal(p[~mask[n]], before[n][~mask[n]]) for n, p in student.named_parameters()))

        model = original()
        model.register_forward_hook(note)
        unlearn(model, splits(), "salun", FAST | {"objective": objective, "lr": 0.01})
        assert len(seen) >= 9 and all(seen)

    def test_all_weights_under_the_mask_are_random_labeling_with_frozen_statistics(self):
        _, phases = watch(SalUn(FAST | {"share": 1.0}))
        _, plain = watch(RandomLabels(FAST))
        assert all(phase.phase.frozen_statistics for phase in phases)
        assert len(phases) == len(plain) == 3
        for ours, theirs in zip(phases, plain, strict=True):
            assert torch.equal(ours.column("labels"), theirs.column("labels"))
            assert ours.phase.optimizer == theirs.phase.optimizer

    def test_frozen_parameters_count_neither_for_the_mask_nor_in_training(self):
        """Half of what is left, 1,306 coordinates of which the first layer's are not."""
        model = original()
        model[0].requires_grad_(False)
        before, after = state(model), state(unlearn(model, splits(), "salun", FAST).model)
        assert torch.equal(before["0.weight"], after["0.weight"]) and torch.equal(before["0.bias"], after["0.bias"])
        moved = sum((before[name] != after[name]).sum().item() for name in before)
        assert 0.98 * 653 <= moved <= 653

    def test_lotus_keeps_its_history_and_what_it_knows_of_the_end(self):
        outcome, _ = watch(SalUn(FAST | {"objective": "lotus", "lr": 1e-3}))
        assert list(outcome.history[0]) == ["epoch", "acc_forget", "acc_val", "delta", "temperature", "loss", "seconds"]
        assert outcome.final["acc_forget"] == accuracy(outcome.model, splits().forget)
        assert outcome.history[0]["temperature"] > 1 and list(outcome.final) == ["acc_forget", "acc_val", "delta"]

    def test_the_class_is_forgotten_by_lotus_under_the_mask(self):
        sets = class_splits()
        result = unlearn(original(), sets, "salun", {"objective": "lotus", "lr": 5e-3, "batch_size": 32})
        assert accuracy(result.model, sets.forget) <= 0.05 and accuracy(result.model, sets.retain) > 0.95

    def test_no_file_is_written(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        unlearn(original(), splits(), "salun", FAST)
        assert not list(tmp_path.iterdir())

    def test_dropout_does_not_touch_the_mask(self):
        """The mask is made in eval mode, so that another seed has the same one."""

        def moved(seed):
            after = state(unlearn(original(), splits(), "salun", FAST | {"weight_decay": 0.1}, seed).model)
            return {name: value != after[name] for name, value in state(original()).items()}

        assert same(moved(0), moved(1))


class Tracked(Net):
    """An instance norm with running statistics, which moves them in train mode."""

    def __init__(self):
        super().__init__()
        self[1] = torch.nn.InstanceNorm2d(8, affine=True, track_running_stats=True)


def test_buffers_of_other_norms():
    model = Tracked()
    result = unlearn(model, splits(), "salun", FAST)
    assert weights_digest(result.model) != weights_digest(model)
    assert torch.equal(result.model[1].running_mean, model[1].running_mean)


def test_as_its_authors_run_it():
    """Statistics move with the batches, and the weights outside the mask stay all the same."""
    params = {**SalUn.preset("authors"), **FAST}
    _, phases = watch(SalUn(params))
    assert not any(phase.phase.frozen_statistics for phase in phases)
    before, after = phases[0].before, phases[-1].after
    assert not torch.equal(before["1.running_mean"], after["1.running_mean"])
    mask = saliency_mask(gradient(), 0.5, of="nonzero")
    for name, part in mask.items():
        assert torch.equal(before[name][~part], after[name][~part])
