import hashlib
import sys
from functools import partial

import pytest
import torch
from torch import nn
from toy import net, original, same, state

from mlflow_unlearn.engine.architectures import (
    build_model,
    load_weights,
    model_family,
    non_finite_tensor,
    reinitialised_copy,
    weights_digest,
)
from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.methods import get_method
from mlflow_unlearn.rng import isolated_rng


def output(model, shape):
    with torch.inference_mode():
        return list(model.eval()(torch.zeros(2, *shape)).shape)


class SelfAttention(nn.Module):
    """Over the positions of a map, as a block of a CNN."""

    def __init__(self, width):
        super().__init__()
        self.norm, self.attend = nn.LayerNorm(width), nn.MultiheadAttention(width, 4, batch_first=True)

    def forward(self, maps):
        tokens = self.norm(maps.flatten(2).transpose(1, 2))
        return maps + self.attend(tokens, tokens, tokens)[0].transpose(1, 2).view_as(maps)


class TestFamily:
    @pytest.mark.parametrize(
        "architecture", ["vit_tiny", "vit_small", "timm:deit_tiny_patch16_224", "torchvision:swin_t"]
    )
    def test_transformers(self, architecture):
        assert model_family(build_model(architecture, 2, (3, 224, 224))) == "vit"

    def test_also_small_ones(self):
        from torchvision.models import VisionTransformer

        assert model_family(VisionTransformer(8, 4, 1, 1, 8, 8, num_classes=2)) == "vit"
        assert model_family(build_model("vit_tiny", 2, (1, 8, 8))) == "vit"
        assert model_family(nn.TransformerEncoderLayer(8, 2)) == "vit"

    @pytest.mark.parametrize("architecture", ["resnet18", "torchvision:convnext_tiny", "timm:botnet26t_256"])
    def test_networks_of_convolutions(self, architecture):
        assert model_family(build_model(architecture, 2, (3, 256, 256))) == "cnn"
        assert model_family(net()) == "cnn"

    @pytest.mark.parametrize("place", ["layer4", "avgpool", "inside"])
    def test_a_cnn_with_an_attention_block_is_a_cnn(self, place):
        """It would be trained with a learning rate of 1e-6."""
        model = build_model("resnet18", 2, (3, 32, 32))
        if place == "inside":
            model.attention, model.norm = SelfAttention(512), nn.LayerNorm(512)
        else:
            setattr(model, place, nn.Sequential(getattr(model, place), SelfAttention(512)))
        assert model_family(model) == "cnn"
        assert get_method("lotus")({}, family=model_family(model)).params.lr == 1e-4


class TestResNet:
    @pytest.mark.parametrize("architecture", ["resnet18", "torchvision:resnet18", "timm:resnet18"])
    @pytest.mark.parametrize("shape", [(1, 8, 8), (3, 28, 28), (2, 64, 40)])
    def test_small_images_get_the_small_stem(self, architecture, shape):
        model = build_model(architecture, 7, shape)
        stem = model.conv1
        assert (stem.in_channels, stem.kernel_size, stem.stride, stem.padding) == (shape[0], (3, 3), (1, 1), (1, 1))
        assert isinstance(model.maxpool, nn.Identity) and stem.bias is None
        # Kaiming, fan out: a standard deviation of √(2 / (64 · 9)) = 0.059.
        assert stem.weight.std().item() == pytest.approx(0.0589, rel=0.1)
        assert output(model, shape) == [2, 7]

    @pytest.mark.parametrize("architecture", ["resnet18", "timm:resnet18"])
    @pytest.mark.parametrize("shape", [(3, 224, 224), (1, 65, 30)])
    def test_large_images_get_the_ordinary_one(self, architecture, shape):
        model = build_model(architecture, 7, shape)
        assert (model.conv1.in_channels, model.conv1.kernel_size, model.conv1.stride) == (shape[0], (7, 7), (2, 2))
        assert not isinstance(model.maxpool, nn.Identity)
        assert output(model, (shape[0], 65, 30)) == [2, 7]

    def test_timm_relatives_get_it_too(self):
        """A ResNet whatever its name, also where its own stem has several layers."""
        for name, width in (("seresnext26d_32x4d", 64), ("test_resnet", 32)):
            model = build_model(f"timm:{name}", 5, (1, 16, 16))
            assert model.conv1.kernel_size == (3, 3) and model.conv1.out_channels == width
            assert isinstance(model.maxpool, nn.Identity) and output(model, (1, 16, 16)) == [2, 5]


class TestViT:
    @pytest.mark.parametrize(
        ("size", "patch"),
        [
            ((8, 8), 1),
            ((28, 28), 4),
            ((32, 32), 4),
            ((64, 64), 8),
            ((56, 64), 8),
            ((14, 14), 2),
            ((29, 29), 1),
            ((4, 4), 1),
        ],
    )
    def test_the_largest_patch_with_seven_a_side(self, size, patch):
        model = build_model("timm:vit_tiny_patch16_224", 3, (1, *size))
        assert model.patch_embed.patch_size == (patch, patch) and model.patch_embed.img_size == size
        if size == (28, 28):
            assert output(model, (1, *size)) == [2, 3]

    @pytest.mark.parametrize(
        ("architecture", "size"), [("vit_tiny", 224), ("timm:vit_tiny_patch16_384", 224), ("vit_tiny", 96)]
    )
    def test_large_images_keep_the_patch_and_set_the_size(self, architecture, size):
        model = build_model(architecture, 3, (3, size, size))
        assert model.patch_embed.patch_size == (16, 16) and model.patch_embed.img_size == (size, size)

    def test_deit(self):
        model = build_model("timm:deit_tiny_patch16_224", 3, (1, 8, 8))
        assert output(model, (1, 8, 8)) == [2, 3]


FACTORY = """
from torch import nn
from toy import Net
def classes(num_classes): return Net(classes=num_classes)
def fixed(): return Net()
def wrong(): return 3
def broken(num_classes): raise RuntimeError("no luck")
def asks(classes): return Net(classes=classes)
def leaves(): raise SystemExit(3)
def empty(): return nn.Flatten()
def lazy(): return nn.Sequential(nn.Flatten(), nn.LazyLinear(10))
"""


class TestFactory:
    @pytest.fixture(autouse=True)
    def module(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "path", list(sys.path))
        monkeypatch.delitem(sys.modules, "made_models", raising=False)
        (tmp_path / "made_models.py").write_text(FACTORY)

    @pytest.mark.parametrize(("name", "classes"), [("classes", 4), ("fixed", 10)])
    def test_from_the_working_directory(self, name, classes):
        assert output(build_model(f"made_models:{name}", 4, (1, 8, 8)), (1, 8, 8)) == [2, classes]

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("made_models:wrong", "made_models:wrong returns a int, not a torch.nn.Module"),
            ("made_models:nothing", "'made_models:nothing': module 'made_models' has no function 'nothing'"),
            ("no_such:thing", "'no_such:thing': importing 'no_such' failed"),
            (":thing", "':thing' names no function: write package.module:function"),
            ("made_models:broken", r"'made_models:broken' failed \(\w+: no luck\): correct it"),
            ("made_models:asks", r"'made_models:asks' failed \(TypeError: .* missing 1 required"),
            ("made_models:leaves", r"'made_models:leaves' called sys.exit\(3\).*raise an error there instead"),
            ("made_models:empty", "made_models:empty returns has no parameters, so it learns nothing: choose another"),
            ("made_models:lazy", "made_models:lazy returns has parameters without values: .*give lazy layers"),
        ],
    )
    def test_failures(self, name, message):
        with pytest.raises(UnlearnError, match=message):
            build_model(name, 4, (1, 8, 8))


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        (
            "resnet",
            "unknown architecture 'resnet': did you mean 'resnet18'. use timm:NAME.* or one of resnet18, vit_tiny",
        ),
        ("qqq", "unknown architecture 'qqq': use timm:NAME, torchvision:NAME, package.module:factory or one of"),
        ("torchvision:", "unknown architecture 'torchvision:'"),
        ("torchvision:resnet19", "torchvision has no classifier 'resnet19': did you mean 'resnet1?[0-9]"),
        ("torchvision:fasterrcnn_resnet50_fpn", "torchvision has no classifier 'fasterrcnn_resnet50_fpn'"),
        (
            "torchvision:squeezenet1_1",
            "torchvision:squeezenet1_1 takes 3 channels, the images have 1: use a timm architecture",
        ),
        (
            "timm:vit_tinny_patch16_224",
            "timm has no model 'vit_tinny_patch16_224': did you mean 'vit_tiny_patch16_224'",
        ),
        ("timm:qqqqqqqq", "timm has no model 'qqqqqqqq': see timm.list_models"),
    ],
)
def test_architectures_that_are_not_there(architecture, message):
    with pytest.raises(UnlearnError, match=message):
        build_model(architecture, 4, (1, 8, 8))


@pytest.mark.parametrize("architecture", ["resnet18", "vit_tiny"])
def test_the_weights_depend_on_the_global_generator_alone(architecture):
    digests = []
    for seed in (0, 0, 1):
        with isolated_rng(seed):
            digests.append(weights_digest(build_model(architecture, 3, (1, 8, 8))))
    assert digests[0] == digests[1] != digests[2]


def moved(model):
    """The same model with every weight and statistic moved, so that none is as its initialisation left it."""
    with torch.no_grad():
        for value in model.state_dict().values():
            value.add_(1)
    return model


class TestReinitialisedCopy:
    @staticmethod
    def torchvision_vit():
        from torchvision.models import VisionTransformer

        return VisionTransformer(32, 16, 1, 1, 8, 8, num_classes=4)

    @pytest.mark.parametrize(
        "build",
        [
            *(partial(build_model, f"timm:test_{name}", 4, (3, 32, 32)) for name in ("resnet", "vit", "convnext")),
            torchvision_vit,
        ],
        ids=["resnet", "vit", "convnext", "torchvision's vit"],
    )
    def test_nothing_of_a_trained_model_is_left(self, build):
        """Two models of one architecture have the same copy, and of none of their tensors is a coordinate left."""
        model = moved(build())
        before = weights_digest(model)
        with isolated_rng(0):
            fresh = reinitialised_copy(model)
        assert weights_digest(model) == before
        with isolated_rng(0):
            assert weights_digest(reinitialised_copy(moved(model))) == weights_digest(fresh)
        with isolated_rng(1):
            assert weights_digest(reinitialised_copy(model)) != weights_digest(fresh)
        for name, value in fresh.state_dict().items():
            assert not (value == state(model)[name]).any(), f"{name} is still that of the model"
        assert output(fresh, (3, 32, 32)) == [2, 4]

    def test_by_each_modules_own_initialisation(self):
        """Convolution and linear layer: uniform within 1 / √(fan in), of 9 and of 128."""
        with isolated_rng(0):
            fresh = reinitialised_copy(moved(original()))
        for layer, bound in ((fresh[0], 1 / 3), (fresh[6], 128**-0.5)):
            for parameter in (layer.weight, layer.bias):
                assert 0.7 * bound < parameter.abs().max() <= bound
        norm = fresh[1]
        assert (norm.weight == 1).all() and (norm.bias == 0).all()
        assert (norm.running_mean == 0).all() and (norm.running_var == 1).all() and norm.num_batches_tracked == 0

    def test_attention_has_its_own_initialisation_under_another_name(self):
        """Xavier's for the projections, 3 · 8 rows of 8: uniform within √(6 / 32) = 0.43, and a bias of 0."""
        with isolated_rng(0):
            fresh = reinitialised_copy(moved(nn.MultiheadAttention(8, 2)))
        assert 0.4 < fresh.in_proj_weight.abs().max() <= (6 / 32) ** 0.5
        assert (fresh.in_proj_bias == 0).all()

    def test_parameters_of_no_layer(self):
        """N(0, 0.02²): of 10,000 draws mean and standard deviation are within 4 / √10,000 of it."""

        class Token(nn.Module):
            def __init__(self):
                super().__init__()
                self.token = nn.Parameter(torch.full((100, 100), 5.0))

        with isolated_rng(0):
            token = reinitialised_copy(Token()).token
        assert token.std().item() == pytest.approx(0.02, rel=0.04) and abs(token.mean()) < 0.0008

    def test_modes_and_flags_are_kept(self):
        model = original().train()
        model[1].eval()
        model[0].requires_grad_(False)
        fresh = reinitialised_copy(model)
        assert [m.training for m in fresh.modules()] == [m.training for m in model.modules()]
        assert [p.requires_grad for p in fresh.parameters()] == [p.requires_grad for p in model.parameters()]
        assert not same(state(fresh), state(model))

    @pytest.mark.parametrize(
        "wrap",
        [
            nn.utils.parametrizations.weight_norm,
            nn.utils.weight_norm,
        ],
        ids=["parametrised", "by a hook"],
    )
    def test_weights_that_a_layer_cannot_reset_itself(self, wrap):
        layer = wrap(nn.Linear(4, 3))
        with torch.no_grad():
            layer(torch.zeros(1, 4))
        fresh = dict(reinitialised_copy(layer).named_parameters())
        assert not any(torch.equal(value, fresh[name]) for name, value in layer.named_parameters())


class TestLoadWeights:
    def test_what_fits(self):
        a, b = net(0), net(1)
        load_weights(b, a.state_dict(), "made:net")
        assert weights_digest(a) == weights_digest(b)

    def test_the_first_few_mismatches_are_named(self):
        state = net().state_dict()
        del state["0.bias"], state["1.weight"]
        state["extra"] = torch.zeros(1)
        state["6.weight"] = torch.zeros(5, 128)
        state["6.bias"] = torch.zeros(5)
        before = weights_digest(model := net())
        with pytest.raises(UnlearnError) as caught:
            load_weights(model, state, "made:net")
        assert str(caught.value) == (
            "the weights do not fit architecture 'made:net': 0.bias is missing; 1.weight is missing; extra is unknown; "
            "6.weight is [5, 128] and should be [10, 128] and 1 more: "
            "give the architecture that the version was trained with"
        )
        assert weights_digest(model) == before


class State(nn.Module):
    """A module with a given state dict, in its order."""

    def __init__(self, **tensors):
        super().__init__()
        for name, value in tensors.items():
            self.register_buffer(name, torch.as_tensor(value))


class TestDigest:
    def test_by_hand(self):
        """SHA-256 of a header and the little-endian bytes of each tensor, by name."""
        model = State(b=torch.tensor([1, 2], dtype=torch.int16), a=torch.tensor(True))
        expected = hashlib.sha256(b"a torch.bool []\n\x01b torch.int16 [2]\n\x01\x00\x02\x00").hexdigest()
        assert weights_digest(model) == expected

    def test_any_bit_counts(self):
        base = {"w": torch.tensor([0.0, 1.0]), "n": torch.tensor(0), "h": torch.ones(2, dtype=torch.bfloat16)}
        others = [
            {"w": torch.tensor([-0.0, 1.0])},
            {"w": torch.tensor([0.0, 1.0 + 2**-23])},
            {"w": torch.tensor([1.0, 0.0])},
            {"w": torch.tensor([[0.0, 1.0]])},
            {"w": torch.tensor([0.0, 1.0], dtype=torch.float64)},
            {"n": torch.tensor(1)},
            {"n": torch.tensor([0])},
            {"h": torch.tensor([1.0, 1.0078125], dtype=torch.bfloat16)},
            {"e": torch.zeros(0)},
        ]
        digests = [weights_digest(State(**base))] + [weights_digest(State(**base | other)) for other in others]
        assert len(set(digests)) == len(digests)

    def test_neither_order_nor_layout_nor_gradients_count(self):
        w = torch.arange(6.0).view(2, 3)
        assert weights_digest(State(a=w, b=1)) == weights_digest(State(b=1, a=w.t().contiguous().t()))
        model = net()
        digest = weights_digest(model)
        model(torch.zeros(2, 1, 8, 8)).sum().backward()
        assert weights_digest(model) != digest, "a pass in train mode moves BatchNorm's statistics"
        digest = weights_digest(model)
        assert weights_digest(model.requires_grad_(False).eval()) == digest

    def test_num_batches_tracked_is_part_of_it(self):
        model = net()
        digest = weights_digest(model)
        model[1].num_batches_tracked += 1
        assert weights_digest(model) != digest


def test_non_finite_tensors_are_named():
    assert non_finite_tensor(State(a=1.0, n=3, h=torch.ones(2, dtype=torch.bfloat16))) is None
    for bad in (float("nan"), float("inf"), float("-inf")):
        assert non_finite_tensor(State(n=3, a=1.0, b=torch.tensor([1.0, bad]), c=bad)) == "b"
    model = net()
    model[1].running_var[3] = float("nan")
    assert non_finite_tensor(model) == "1.running_var"
