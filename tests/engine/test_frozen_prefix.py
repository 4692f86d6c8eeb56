import copy

import pytest
import timm
import torch
from torch import nn
from toy import CPU, PLAIN_METHODS, Listed, class_splits, digits, logits, net, original, same, splits, state

from mlflow_unlearn import Splits, unlearn
from mlflow_unlearn.engine.architectures import build_model, reinitialised_copy, weights_digest
from mlflow_unlearn.engine.frozen_prefix import Activations, auto, depth_behind, resolve, split_at, split_points
from mlflow_unlearn.engine.hardware import Hardware
from mlflow_unlearn.engine.teacher import Teacher
from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.methods import BUILTIN
from mlflow_unlearn.rng import isolated_rng

SPLIT = "3"
"""Of the toy network: behind convolution, BatchNorm and ReLU, before pooling, dropout and the linear layer."""
BEFORE, BEHIND = {"0.weight", "0.bias", "1.weight", "1.bias"}, {"6.weight", "6.bias"}
DISTURBING = ("transpose", "perturb", "msg")
TRAINS_A_HEAD = [name for name in PLAIN_METHODS if name not in ("retrain", "retrain_from", *DISTURBING)]
CHEAP = {"epochs": 2, "batch_size": 16, "alpha": 1.0, "noise_steps": 2, "copies": 1}
quiet = pytest.mark.filterwarnings("ignore::mlflow_unlearn.errors.UnlearnWarning")


def resnet():
    with isolated_rng(0):
        return build_model("resnet18", 10, (1, 8, 8)), (1, 8, 8)


def vit():
    with isolated_rng(0):
        shape = {"in_chans": 1, "img_size": 8, "patch_size": 2, "embed_dim": 16, "depth": 6, "num_heads": 2}
        # Fresh weights of timm's own are so small that every block is nearly the identity.
        return reinitialised_copy(timm.create_model("vit_tiny_patch16_224", num_classes=10, **shape)), (1, 8, 8)


def densenet():
    with isolated_rng(0):
        return build_model("timm:densenet121", 10, (3, 32, 32)), (3, 32, 32)


def sequential():
    return original(), (1, 8, 8)


NETWORKS = {
    resnet: ["layer1", "layer2", "layer3", "layer4", "layer4.1", "avgpool", "fc"],
    vit: ["blocks.0", "blocks.2", "blocks.5", "norm", "head"],
    densenet: ["features.denseblock3", "features.norm5"],
    sequential: ["1", "3", "6"],
}
PAIRS = [(make, name) for make, names in NETWORKS.items() for name in names]


def images(shape, count=6):
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(0))


class TestSplit:
    @pytest.mark.nightly
    @pytest.mark.parametrize(("make", "name"), PAIRS, ids=[f"{make.__name__} {name}" for make, name in PAIRS])
    def test_both_parts_together_are_the_model_bit_for_bit(self, make, name):
        model, shape = make()
        model.eval()
        parts, x = split_at(model, name), images(shape)
        assert torch.equal(parts.trainable_head(parts.frozen_layers(x)), model(x))
        whole, front, back = (
            {id(p) for p in m.parameters()} for m in (model, parts.frozen_layers, parts.trainable_head)
        )
        assert front | back == whole and not front & back and front

    @pytest.mark.parametrize(("make", "name"), [(resnet, "layer3"), (sequential, SPLIT)])
    def test_training_the_head_trains_the_model_as_training_the_model_does(self, make, name):
        """The same step on the whole model, its first layers frozen and in eval mode, gives the same weights."""
        model, shape = make()
        copied = copy.deepcopy(model)
        parts, x, y = split_at(model, name), images(shape), torch.arange(6)
        before, front = state(model), split_at(copied, name).frozen_layers
        inner = parts.frozen_layers.eval()(x).detach()
        copied.train()
        front.eval()
        for module, forward, trained in (
            (parts.trainable_head.train(), lambda: parts.trainable_head(inner), parts.trainable_head),
            (copied, lambda: copied(x), split_at(copied, name).trainable_head),
        ):
            torch.manual_seed(0)  # of dropout
            nn.functional.cross_entropy(forward(), y).backward()
            torch.optim.SGD(trained.parameters(), 0.1).step()
            assert module.training
        assert same(state(model), state(copied)) and not same(state(model), before)
        frozen = {f"{n}" for n, _ in parts.frozen_layers.state_dict().items()}
        assert frozen and all(torch.equal(model.state_dict()[n], before[n]) for n in frozen)

    @pytest.mark.parametrize("mode", [True, False])
    def test_the_modes_of_the_model_are_left_alone(self, mode):
        model, _ = resnet()
        model.train(mode)
        model.layer2.train(not mode)
        modes = [module.training for module in model.modules()]
        split_at(model, "layer3")
        assert modes == [module.training for module in model.modules()]

    def test_dropout_behind_the_cut_follows_the_mode(self):
        model = original()
        parts = split_at(model, SPLIT)
        inner = parts.frozen_layers(digits(0, 6).tensors[0])
        assert not torch.equal(parts.trainable_head.train()(inner), parts.trainable_head(inner))
        assert torch.equal(parts.trainable_head.eval()(inner), parts.trainable_head(inner))


class Wired(nn.Module):
    """Modules and a forward pass, for what real networks seldom do."""

    def __init__(self, forward, **modules):
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)
        self._forward = forward

    def forward(self, x):
        return self._forward(self, x)


def flat(**modules):
    return {"a": nn.Linear(4, 4), "b": nn.Linear(4, 4), "c": nn.Linear(4, 4)} | modules


def tied():
    model = nn.Sequential(*flat().values())
    model[2].weight = model[0].weight
    return model


def reused_statistics():
    norm = nn.BatchNorm1d(4, affine=False)
    return nn.Sequential(nn.Linear(4, 4), norm, nn.Linear(4, 4), norm)


def skip(m, x):
    first = m.a(x)
    return m.c(m.b(first)) + first


def branching(m, x):
    return m.c(m.b(x)) if x.sum() > 0 else m.b(m.a(x))


def functional_dropout(m, x):
    return m.b(nn.functional.dropout(m.a(x), 0.5, m.training))


class TestRefused:
    @pytest.mark.parametrize(
        ("model", "name", "message"),
        [
            (original(), "layer4", "the model has no module 'layer4' to cut before: it has 0, 1, 2, 3, 4, 5, 6"),
            (original(), "", "the model has no module '' to cut before"),
            (Wired(lambda m, x: m.b(m.a(x)), **flat()), "c", "its forward pass does not call that module"),
            (Wired(skip, **flat()), "c", "2 tensors cross there, and it must be one; cut between its blocks"),
            (original(), "0", "there is nothing before '0': give a later module, or prefix=none"),
            (Wired(branching, **flat()), "b", "its forward pass cannot be traced (TraceError: "),
            (Wired(functional_dropout, **flat()), "b", "one thing in training and another after"),
            (tied(), "1", "layers before and after it share parameters or statistics"),
            (reused_statistics(), "2", "layers before and after it share parameters or statistics"),
            (resnet()[0], "layer4.0.conv2", "2 tensors cross there"),
        ],
        ids=[
            *("unknown", "empty", "not called", "two tensors", "nothing before", "branch", "mode", "tied"),
            *("statistics", "inside a residual block"),
        ],
    )
    def test_in_one_sentence(self, model, name, message):
        with pytest.raises(UnlearnError) as caught:
            split_at(model, name)
        assert message in str(caught.value) and "\n" not in str(caught.value)

    def test_a_skip_that_ends_before_the_cut_is_none(self):
        model = Wired(lambda m, x: m.c(m.b(m.a(x)) + x), **flat()).eval()
        parts, x = split_at(model, "c"), torch.randn(2, 4)
        assert torch.equal(parts.trainable_head(parts.frozen_layers(x)), model(x))

    def test_a_parameter_read_by_the_head_alone_goes_with_it(self):
        def forward(m, x):
            scale = m.scale
            return m.b(m.a(x)) * scale

        model = Wired(forward, **flat())
        model.scale = nn.Parameter(torch.tensor(3.0))
        parts, x = split_at(model, "b"), torch.randn(2, 4)
        assert torch.equal(parts.trainable_head(parts.frozen_layers(x)), model(x))
        assert id(model.scale) in {id(p) for p in parts.trainable_head.parameters()}


def test_where_networks_can_be_cut():
    """Children and, in stacks of more than four, blocks; from front to back; never where there is nothing before."""
    stages = ["bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4", "avgpool", "fc"]
    assert split_points(resnet()[0]) == stages
    found = split_points(vit()[0])
    # The first block begins where all of them do.
    assert [name for name in found if "blocks" in name] == ["blocks", *(f"blocks.{i}" for i in range(1, 6))]
    assert found[-1] == "head" and "patch_embed" not in found
    assert split_points(original()) == ["1", "2", "3", "4", "5", "6"]
    assert split_points(Wired(branching, **flat())) == []


class TestAuto:
    def test_the_depth_behind_a_cut(self):
        """ResNet18: of 21 weights 5 + 1 lie from layer4 on, 10 + 1 from layer3 on. Toy: one of two."""
        assert depth_behind(resnet()[0], "layer4") == 6 / 21 and depth_behind(resnet()[0], "layer3") == 11 / 21
        assert depth_behind(original(), "1") == depth_behind(original(), "6") == 1 / 2

    @pytest.mark.parametrize(
        ("make", "name"),
        [
            (resnet, "layer4"),
            (vit, "blocks.4"),
            pytest.param(densenet, "features.denseblock4", marks=pytest.mark.slow),
            (sequential, "6"),
        ],
    )
    def test_the_last_cut_with_a_quarter_of_the_depth_behind(self, make, name):
        model, _ = make()
        found = split_points(model)
        assert auto(model) == name and depth_behind(model, name) >= 0.25
        assert all(depth_behind(model, later) < 0.25 for later in found[found.index(name) + 1 :])

    def test_weights_and_mode_do_not_matter(self):
        model, _ = resnet()
        assert auto(reinitialised_copy(model).eval()) == auto(model.train())

    def test_what_cannot_be_cut_is_refused(self):
        with pytest.raises(UnlearnError, match="prefix=auto finds no place.*use prefix=none"):
            auto(Wired(branching, **flat()))

    def test_what_a_user_gives(self):
        """Where a class is forgotten wholly, auto is none."""
        given = ("none", "auto", "3")
        assert [resolve(original(), prefix, vars(splits())) for prefix in given] == [None, "6", "3"]
        assert [resolve(original(), prefix, vars(class_splits())) for prefix in given] == [None, None, "3"]


def activations(data, keep=True, hardware=CPU):
    return Activations(data, split_at(original(), SPLIT).frozen_layers, hardware, keep=keep)


class TestActivations:
    exact = staticmethod(lambda data: split_at(original(), SPLIT).frozen_layers.eval()(data.tensors[0]).detach())

    def test_each_image_is_read_once(self):
        data = digits(0, 20)
        listed = Listed(data)
        seen = activations(listed)
        assert listed.readings == 20  # for the labels
        for indices in ([3, 1], [1, 3, 4], [4, 4], range(20)):
            found, labels = seen.gather(indices)
            torch.testing.assert_close(found, self.exact(data)[list(indices)])
            assert torch.equal(labels, data.tensors[1][list(indices)])
        assert listed.readings == 20 + 20 and len(seen) == 20
        row, label = seen[7]
        torch.testing.assert_close(row, self.exact(data)[7])
        assert label == data.tensors[1][7]

    def test_filled_beforehand_by_data_loading_processes(self):
        listed = Listed(digits(0, 20))
        seen = activations(listed, hardware=Hardware(torch.device("cpu"), num_workers=1))
        seen.fill(torch.tensor([5, 9]))
        seen.gather([9, 5])
        assert listed.readings == 20 + 1  # in this process, for the labels and for half of the first batch

    def test_what_changes_is_computed_each_time(self):
        listed = Listed(digits(0, 20))
        seen = activations(listed, keep=False)
        seen.fill(torch.arange(20))
        seen.gather([1]), seen.gather([1])
        assert listed.readings == 20 + 2 and not seen.deterministic

    def test_without_room_they_are_computed_each_time(self, monkeypatch, tmp_path):
        monkeypatch.setattr("mlflow_unlearn.data.buffers.IN_MEMORY", 0)
        monkeypatch.setenv("TMPDIR", str(tmp_path / "gone"))
        data = digits(0, 20)
        listed = Listed(data)
        seen = activations(listed)
        assert seen.deterministic
        for _ in range(2):
            torch.testing.assert_close(seen.gather([2, 1])[0], self.exact(data)[[2, 1]])
        assert listed.readings == 20 + 6 and not seen.deterministic

    def test_in_a_file_they_are_the_same(self, monkeypatch):
        data = digits(0, 20)
        inside, _ = activations(data).gather(range(20))
        monkeypatch.setattr("mlflow_unlearn.data.buffers.IN_MEMORY", 0)
        assert torch.equal(activations(data).gather(range(20))[0], inside)

    @pytest.mark.parametrize("keep", [True, False])
    def test_they_may_be_learned_from(self, keep):
        seen, _ = activations(digits(0, 4), keep=keep).gather(range(4))
        weight = torch.ones((), requires_grad=True)
        (weight * seen).sum().backward()
        assert weight.grad is not None


def forget(name="lotus", sets=None, model=None, prefix=SPLIT, **options):
    params = {key: value for key, value in CHEAP.items() if key in BUILTIN[name].Params.model_fields}
    return unlearn(model or original(), sets or splits(), name, params, prefix=prefix, **options)


@quiet
class TestUnlearning:
    @pytest.mark.parametrize("name", TRAINS_A_HEAD)
    def test_every_method_trains_what_lies_behind_and_nothing_before(self, name):
        model = original()
        before = state(model)
        after = state(forget(name, class_splits() if name in ("lotus", "unsir") else splits(), model).model)
        changed = {key for key in before if not torch.equal(before[key], after[key])}
        assert changed == BEHIND and after.keys() == before.keys()
        assert same(state(model), before)

    @pytest.mark.machine("bfloat16")
    @pytest.mark.parametrize("name", TRAINS_A_HEAD)
    def test_every_method_in_bfloat16(self, name):
        """What leaves the prefix is bfloat16; the weights stay float32."""
        before = state(original())
        after = state(forget(name, precision="bf16").model)
        assert {key for key in before if not torch.equal(before[key], after[key])} == BEHIND
        assert all(after[key].dtype == before[key].dtype for key in before)

    def test_the_same_seed_gives_the_same_weights(self):
        first, second, other = (weights_digest(forget(seed=seed).model) for seed in (3, 3, 4))
        assert first == second != other

    def test_retraining_is_refused(self):
        with pytest.raises(UnlearnError, match="retraining starts every layer anew.*use prefix=none"):
            forget("retrain")

    def test_what_freezes_layers_itself_takes_no_prefix(self):
        with pytest.raises(UnlearnError, match="retrain_from decides itself which layers stay frozen: use prefix=none"):
            forget("retrain_from")

    @pytest.mark.parametrize("name", DISTURBING)
    def test_what_disturbs_features_refuses_a_head_without_any(self, name):
        with pytest.raises(UnlearnError, match=f"{name} would change 0 of the 1 layers that are trained here"):
            forget(name)

    def test_lotus_does_what_it_does_with_the_first_layers_frozen(self):
        """The plain loop on a model whose first layers are frozen differs by rounding alone."""
        model = original()
        model[1].eval()
        frozen = copy.deepcopy(model)
        frozen[1].momentum = 0.0  # statistics of the frozen layers stay
        for parameter in (*frozen[0].parameters(), *frozen[1].parameters()):
            parameter.requires_grad_(False)
        # In train mode BatchNorm would normalise by the batch: a prefix does not.
        frozen[1].train = lambda mode=True: frozen[1]
        inside = forget(model=model).model
        plain = unlearn(frozen, splits(), "lotus", {"epochs": 2, "batch_size": 16, "alpha": 1.0}).model
        for key in BEHIND:
            torch.testing.assert_close(inside.state_dict()[key], plain.state_dict()[key])

    def test_the_prefix_runs_once_over_each_image(self):
        model, seen = original(), []
        model[0].register_forward_hook(lambda m, _, z: seen.append(len(z)))
        result = forget(model=model)
        # Forget, validation and the share of the retain set that is trained along.
        assert len(result.history) == 2 and sum(seen) == 30 + 150 + round(0.3 * 170)

    def test_images_that_change_run_through_it_each_time(self):
        sets = splits()
        bright = lambda image: image + 0.1 * torch.rand(())  # noqa: E731
        listed = Splits(Listed(sets.forget, bright), Listed(sets.retain, bright), sets.val, sets.test)
        model, seen = original(), []
        model[0].register_forward_hook(lambda m, _, z: seen.append(len(z)))
        forget(sets=listed, model=model)
        assert sum(seen) > 150 + 2 * (30 + 51)

    def test_data_loading_processes_do_not_run_the_model(self):
        """Two of them, with images that have to be watched: the first layers run in this process."""
        sets = splits()
        listed = Splits(Listed(sets.forget), Listed(sets.retain), sets.val, sets.test)
        model, seen = original(), []
        model[0].register_forward_hook(lambda m, _, z: seen.append(len(z)))
        alone = forget(sets=listed, model=model)
        once = sum(seen)
        several = forget(sets=listed, model=model, num_workers=2)
        assert sum(seen) == 2 * once
        assert weights_digest(alone.model) == weights_digest(several.model)

    def test_they_read_the_images(self):
        """Before the first step, all that the phase needs."""
        sets = splits()
        listed = Splits(Listed(sets.forget), Listed(sets.retain), sets.val, sets.test)
        listed.forget.deterministic = listed.retain.deterministic = True
        assert weights_digest(forget("finetune", sets=listed, num_workers=1).model) == weights_digest(
            forget("finetune", sets=sets).model
        )
        assert listed.retain.readings == 170 + 64  # in this process, for the labels and for half of the first batch

    def test_a_teacher_brings_its_prefix(self):
        t = Teacher(original(), vars(splits()), CPU, prefix=SPLIT)
        shared = forget(teacher=t, prefix="none")
        passes = t.passes
        again = forget(teacher=t, prefix="none")
        assert weights_digest(shared.model) == weights_digest(again.model) == weights_digest(forget().model)
        assert t.passes == passes == 30 + 150 + round(0.3 * 170)

    def test_its_logits_are_the_originals(self):
        t = Teacher(original(), vars(splits()), CPU, prefix=SPLIT)
        t.fill(["forget"])
        index = torch.arange(30)
        found = t.logits("forget", index, t.datasets["forget"].gather(index.tolist())[0])
        torch.testing.assert_close(found, logits(original(), splits().forget))

    def test_all_frozen_behind_is_refused(self):
        model = net()
        model[6].requires_grad_(False)
        with pytest.raises(UnlearnError, match="all parameters of the model are frozen"):
            forget(model=model)

    def test_auto_is_the_cut_that_it_chooses(self):
        assert weights_digest(forget(prefix="auto").model) == weights_digest(forget(prefix="6").model)
        whole = [weights_digest(forget(sets=class_splits(), prefix=prefix).model) for prefix in ("auto", "none", "6")]
        assert whole[0] == whole[1] != whole[2]

    def test_a_bad_cut_is_refused(self):
        with pytest.raises(UnlearnError, match="no module 'layer9'"):
            forget(prefix="layer9")
