"""Digests that tell apart what behaves differently, and none where that cannot be told."""

import collections
import copy
import enum
import functools
import importlib
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize
from toy import original

from mlflow_unlearn.data.fingerprints import module_digest, value_digest
from mlflow_unlearn.engine.architectures import build_model

NET = """
import torch
from torch import nn
from {scales} import SCALE


def halve(x):
    return x / 2


class Cooled(nn.Module):
    limit = 3.0

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 2)
        self.temperature = 1.0

    def forward(self, x):
        return self.head(x) * SCALE / self.temperature


class Plain:
    def __init__(self, value):
        self.value = value


class Slotted:
    __slots__ = ("value",)
"""


@pytest.fixture
def written(tmp_path, monkeypatch):
    """A function that writes modules and imports the first one; names of their own, as modules stay imported."""
    monkeypatch.syspath_prepend(tmp_path)

    def written(name, **sources):
        for module, source in sources.items():
            path = tmp_path / f"{module.replace('_in_', '/')}.py"
            path.parent.mkdir(exist_ok=True)
            path.write_text(source)
        importlib.invalidate_caches()
        return importlib.import_module(name)

    yield written
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.fixture
def cooled(written):
    found = written("cooled", cooled=NET.format(scales="scales"), scales="SCALE = 1.0\n")
    torch.manual_seed(0)
    return found.Cooled()


class Double(nn.Module):
    def __init__(self, factor=2.0):
        super().__init__()
        self.factor = factor

    def forward(self, weight):
        return self.factor * weight


class Colour(enum.Enum):
    RED, BLUE = 1, 2


def scaled(factor):
    return lambda module, inputs, output: output * factor


def doubled(module, inputs, output):
    return output * 2


def set_(**values):
    return lambda model: vars(model).update(values)


class TestModule:
    @pytest.mark.nightly
    @pytest.mark.parametrize(
        "change",
        [
            set_(temperature=2.0),
            set_(temperature=1),
            set_(options={"scale": [1, (2.0, None)]}),
            set_(options={"scale": [1, (3.0, None)]}),
            set_(curve=np.arange(3)),
            set_(curve=np.arange(3.0)),
            set_(shift=torch.ones(2)),
            set_(dtype=torch.float16),
            set_(colour=Colour.RED),
            set_(activation=functools.partial(nn.functional.leaky_relu, negative_slope=0.2)),
            set_(activation=torch.relu),
            set_(activation=doubled),
            set_(activation=lambda x: x + 1),
            set_(activation=lambda x: x + 2),
            set_(hidden=[Double()]),
            set_(hidden=[Double(3.0)]),
            set_(forward=nn.Linear(4, 2).forward),
            lambda model: model.register_buffer("mean", torch.zeros(2), persistent=False),
            lambda model: model.register_buffer("mean", torch.ones(2), persistent=False),
            lambda model: model.register_forward_hook(doubled),
            lambda model: model.register_forward_pre_hook(lambda m, x: x),
            lambda model: model.head.register_forward_hook(scaled(2)),
            lambda model: model.head.register_forward_hook(scaled(3)),
            lambda model: model.head.weight.requires_grad_(False),
            lambda model: model.head.bias.requires_grad_(False),
            lambda model: model.requires_grad_(False),
            lambda model: model.head.register_full_backward_hook(lambda *_: None),
            lambda model: model.head.register_full_backward_hook(lambda module, given, _: (given[0] * 2,)),
            lambda model: model.head.register_full_backward_pre_hook(lambda module, _: None),
            lambda model: model.head.weight.register_hook(lambda gradient: gradient * 2),
            lambda model: model.head.weight.register_post_accumulate_grad_hook(lambda parameter: None),
            lambda model: parametrize.register_parametrization(model.head, "weight", Double()),
            lambda model: setattr(model.head, "in_features", 5),
            lambda model: model.add_module("more", nn.Identity()),
        ],
    )
    def test_what_is_no_weight_counts(self, cooled, change, seen=set()):  # noqa: B006 (over all changes)
        before = module_digest(cooled)
        assert before == module_digest(copy.deepcopy(cooled)) is not None
        change(cooled)
        after = module_digest(cooled)
        assert after not in (None, before) and after not in seen
        seen.add(after)

    def test_weights_and_modes_do_not(self, cooled):
        before = module_digest(cooled)
        cooled.train()
        nn.init.zeros_(cooled.head.weight)
        cooled.head(torch.zeros(1, 4)).sum().backward()
        assert module_digest(cooled) == before

    def test_parameters_that_are_one_are_trained_as_one(self):
        apart = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        apart[1].load_state_dict(apart[0].state_dict())
        tied = copy.deepcopy(apart)
        tied[1].weight = tied[0].weight
        assert module_digest(tied) not in (None, module_digest(apart))

    def test_a_class_that_was_changed_counts(self, cooled):
        before = module_digest(cooled)
        type(cooled).limit = 4.0
        assert module_digest(cooled) not in (None, before)

    @pytest.mark.parametrize(
        "value",
        [
            threading.Lock(),
            torch.Generator(),
            np.random.default_rng(0),
            (number for number in range(3)),
            {"deep": [object.__new__(type("Local", (), {}))]},
            torch.empty(2, device="meta"),
        ],
        ids=lambda value: type(value).__name__,
    )
    def test_what_cannot_be_seen_has_none(self, cooled, value):
        cooled.state = value
        assert module_digest(cooled) is None

    def test_nor_has_a_closure_over_it(self, cooled):
        cooled.head.register_forward_hook(scaled(threading.Lock()))
        assert module_digest(cooled) is None

    def test_or_a_class_without_a_source(self):
        class Local(nn.Sequential):
            pass

        assert module_digest(Local(nn.Linear(2, 2))) is None
        elsewhere = type("Elsewhere", (nn.Sequential,), {"__module__": "nowhere"})
        assert module_digest(elsewhere(nn.Linear(2, 2))) is None

    @pytest.mark.parametrize("architecture", ["resnet18", pytest.param("vit_tiny", marks=pytest.mark.slow)])
    def test_of_known_packages_all_can_be_told(self, architecture):
        model = build_model(architecture, 2, (3, 32, 32)).eval()
        assert module_digest(model) == module_digest(copy.deepcopy(model)) is not None

    def test_an_exported_program_can_be_told(self):
        def digest(model):
            return module_digest(torch.export.export(model, (torch.rand(2, 1, 8, 8),)).module())

        assert digest(original()) == digest(original()) not in (None, digest(nn.Sequential(original(), nn.Softmax(1))))


class TestSource:
    def digest(self, written, scale="SCALE = 1.0\n", net=NET, **more):
        for name in ("cooled", "scales", *more):
            sys.modules.pop(name, None)
        model = written("cooled", cooled=net.format(scales="scales"), scales=scale, **more).Cooled()
        return module_digest(model)

    def test_the_file_and_what_it_imports_count(self, written):
        first = self.digest(written)
        assert self.digest(written) == first is not None
        others = [
            self.digest(written, scale="SCALE = 2.0\n"),
            self.digest(written, net=NET + "\n# a comment\n"),
            self.digest(written, scale="from units import SCALE\n", units="SCALE = 1.0\n"),
            self.digest(written, scale="from units import SCALE\n", units="SCALE = 2.0\n"),
        ]
        assert len({first, *others, None}) == 6

    def test_all_of_a_package_counts(self, written):
        def digest(scale):
            for name in [name for name in sys.modules if name.partition(".")[0] == "nets"]:
                del sys.modules[name]
            files = {"nets_in___init__": "", "nets_in_unused": scale, "nets_in_net": NET.format(scales="math")}
            files["nets_in_net"] = files["nets_in_net"].replace("SCALE", "pi")
            return module_digest(written("nets.net", **files).Cooled())

        assert len({digest("SCALE = 1.0\n"), digest("SCALE = 2.0\n"), None}) == 3

    def test_without_a_file_there_is_none(self, written, tmp_path):
        assert self.digest(written) is not None
        (tmp_path / "cooled.py").unlink()
        assert module_digest(sys.modules["cooled"].Cooled()) is None

    @pytest.mark.slow
    def test_another_process_agrees(self, written, tmp_path):
        """Whatever the order of sets there, the numbers of hooks, and what was imported before."""
        code = (
            "import torch, cooled; torch.nn.Identity().register_forward_hook(print); model = cooled.Cooled(); "
            "model.names = {'a', 'b', 'c', ('d', 1)}; model.register_forward_hook(cooled.halve); "
            "from mlflow_unlearn.data.fingerprints import module_digest; print(module_digest(model))"
        )
        assert self.digest(written) is not None
        model = sys.modules["cooled"].Cooled()
        model.names = {("d", 1), "c", "b", "a"}
        model.register_forward_hook(sys.modules["cooled"].halve)
        path = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2])])
        env = {**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": "7"}
        there = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
        assert there.stdout.strip() == module_digest(model)


class TestValue:
    @pytest.mark.parametrize(
        ("one", "other"),
        [
            (1, True),
            (1, 1.0),
            (0.0, -0.0),
            ("1", b"1"),
            ([1], (1,)),
            ([[1], 2], [1, [2]]),
            ({"a": 1}, {"a": 2}),
            ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
            ({1, 2}, {1, 3}),
            (collections.defaultdict(list), collections.defaultdict(dict)),
            (np.float32(1), np.float64(1)),
            (np.zeros((2, 3)), np.zeros((3, 2))),
            (np.array([None, 1]), np.array([None, 2])),
            (torch.zeros(2, dtype=torch.bfloat16), torch.zeros(2)),
            (Path("a"), Path("b")),
            (Colour.RED, Colour.BLUE),
            (nn.ReLU, nn.GELU),
            (np.exp, np.sin),
            (len, abs),
            ([].append, [1].append),
            (Double(1.0).forward, Double(2.0).forward),
        ],
    )
    def test_other_values_have_other_digests(self, one, other):
        digests = [value_digest(value) for value in (one, copy.deepcopy(one), other)]
        assert None not in digests
        assert digests[0] == digests[1] != digests[2]

    def test_a_value_that_contains_itself(self):
        values: list = [1]
        values.append(values)
        assert value_digest(values) not in (None, value_digest([1, [1]]))

    def test_plain_objects_are_told_by_their_attributes_and_others_are_not(self, cooled):
        module = sys.modules["cooled"]
        found = {value_digest(module.Plain(value)) for value in (1, 2, threading.Lock())}
        assert len(found) == 3 and None in found
        assert value_digest(module.Slotted()) is None
