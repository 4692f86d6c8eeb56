import os
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from toy import net, same, state

from mlflow_unlearn.engine import hardware
from mlflow_unlearn.engine.hardware import (
    Hardware,
    as_recorded,
    autocast,
    deterministic_convolutions,
    fastest,
    has_bfloat16,
    machine_of,
    pick_device,
    pick_numerics,
)
from mlflow_unlearn.errors import UnlearnError

CPU = torch.device("cpu")
IMAGES = torch.ones(4, 1, 8, 8)


class TestPickDevice:
    def test_none_and_auto_are_cuda_where_there_is_one(self, monkeypatch):
        for available, kind in ((True, "cuda"), (False, "cpu")):
            monkeypatch.setattr(torch.cuda, "is_available", lambda available=available: available)
            assert pick_device(None).type == pick_device("auto").type == kind

    def test_names_and_devices(self):
        assert pick_device("cpu") == pick_device(CPU) == CPU

    @pytest.mark.parametrize("name", ["gpu", "", "cuda:99"])
    def test_what_is_not_there_is_refused(self, name):
        with pytest.raises(UnlearnError, match=f"device '{name}' cannot be used here .*: use 'auto' or 'cpu'"):
            pick_device(name)


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_autocast(precision, dtype):
    with autocast(precision, CPU):
        assert nn.Linear(2, 2)(torch.ones(1, 2)).dtype == dtype


@pytest.mark.machine("Linux")
def test_bfloat16_is_seen_where_the_processor_names_it():
    """Otherwise each test that needs it would be skipped, and no one would notice."""
    flags = set(Path("/proc/cpuinfo").read_text().split())
    limited = {"ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"} & os.environ.keys()
    assert has_bfloat16(CPU) or limited or not {"avx512_bf16", "amx_bf16"} & flags


class TestPickNumerics:
    def test_unknown(self):
        for name in ("fp16", "BF16", None):
            with pytest.raises(UnlearnError, match=f"unknown precision {name!r}: use fp32, tf32, bf16, auto"):
                pick_numerics(name, net(), IMAGES, CPU)

    def test_as_asked(self, monkeypatch):
        """fp32 is the reference and stays contiguous; bf16 lies channels-last where the model convolves."""
        monkeypatch.setattr(hardware, "has_bfloat16", lambda device: True)
        dense = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
        assert pick_numerics("fp32", net(), IMAGES, CPU) == ("fp32", False)
        assert pick_numerics("bf16", net(), IMAGES, CPU) == ("bf16", True)
        assert pick_numerics("bf16", dense, IMAGES, CPU) == ("bf16", False)

    def test_what_the_device_lacks_is_refused(self, monkeypatch):
        monkeypatch.setattr(hardware, "has_bfloat16", lambda device: False)
        with pytest.raises(
            UnlearnError, match="precision=bf16 needs bfloat16, which .* does not have: use fp32 or auto"
        ):
            pick_numerics("bf16", net(), IMAGES, CPU)
        with pytest.raises(UnlearnError, match="precision=tf32 needs TF32, which .* does not have: use fp32 or auto"):
            pick_numerics("tf32", net(), IMAGES, CPU)

    @pytest.mark.parametrize("fast", ["fp32", "bf16"])
    def test_auto_takes_the_faster_and_keeps_what_it_timed(self, fast, monkeypatch, tmp_path):
        monkeypatch.setenv("MLFLOW_UNLEARN_CACHE", str(tmp_path))
        timed = []

        @contextmanager
        def handicap(precision, device):
            timed.append(precision)
            time.sleep(0.05 if precision != fast else 0)
            yield

        monkeypatch.setattr(hardware, "has_bfloat16", lambda device: True)
        monkeypatch.setattr(hardware, "autocast", handicap)
        monkeypatch.setattr(hardware, "processor", lambda device: f"a processor that is fast in {fast}")
        assert pick_numerics("auto", net(), IMAGES, CPU)[0] == fast
        times = len(timed)
        assert {"fp32", "bf16"} == set(timed)
        assert pick_numerics("auto", net(), IMAGES, CPU)[0] == fast and len(timed) == times
        assert any(
            "precision" in str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")
        )  # for later processes
        pick_numerics("auto", net(), IMAGES[:2], CPU)
        assert len(timed) > times

    def test_no_gain_beyond_the_noise_leaves_plain_fp32(self):
        assert fastest([1.0, 0.98, 0.99, 0.975]) == 0 and fastest([1.0, 0.98, 0.96, 0.97]) == 2
        assert fastest([2.0]) == 0 and fastest([1.0, 3.0]) == 0

    def test_the_model_is_left_as_it_was(self):
        model = net()
        before = state(model)
        pick_numerics("auto", model, IMAGES, CPU)
        assert same(before, state(model)) and model.training
        assert all(p.grad is None for p in model.parameters())

    def test_models_that_cannot_be_trained_are_timed_all_the_same(self):
        """A frozen gold model is evaluated; one image is too few for BatchNorm; odd outputs are refused elsewhere."""

        class Pair(nn.Module):
            def forward(self, images):
                return images, images

        norm = nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.BatchNorm1d(4))
        for model, images in ((net().requires_grad_(False), IMAGES), (norm, IMAGES[:1]), (Pair(), IMAGES)):
            assert pick_numerics("auto", model, images, CPU)[0] in ("fp32", "bf16")


def test_deterministic_convolutions():
    flags = torch.backends.cudnn
    before = flags.deterministic, flags.benchmark
    with pytest.raises(KeyError), deterministic_convolutions():
        assert (flags.deterministic, flags.benchmark) == (True, False)
        raise KeyError
    assert (flags.deterministic, flags.benchmark) == before


class TestAsRecorded:
    """A training that is repeated has what its bits depend on."""

    HERE = Hardware(CPU, "fp32", channels_last=False, num_workers=2)
    LIMITS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS")

    def test_numerics_are_those_of_the_training_on_the_same_machine_alone(self):
        machine = machine_of(replace(self.HERE, precision="bf16", channels_last=True))
        repeated = as_recorded(self.HERE, machine)
        assert (repeated.precision, repeated.channels_last, repeated.num_workers) == ("bf16", True, 2)
        assert as_recorded(self.HERE, machine.model_copy(update={"processor": "another"})) == self.HERE
        assert as_recorded(self.HERE, None) == self.HERE

    def test_random_augmentation_is_drawn_by_one_process(self):
        for machine in (None, machine_of(self.HERE)):
            assert as_recorded(self.HERE, machine, augment="crop-flip").num_workers == 0

    @pytest.mark.parametrize("variable", LIMITS)
    def test_instructions_that_are_held_back_are_another_machine(self, variable, monkeypatch):
        for name in self.LIMITS:  # a run of all tests may have set one
            monkeypatch.delenv(name, raising=False)
        before = machine_of(self.HERE)
        monkeypatch.setenv(variable, "AVX2")
        [difference] = before.differences(machine_of(self.HERE))
        assert difference.startswith("instructions") and difference.endswith(f"{variable}=AVX2")

    def test_threads_are_not_a_difference(self):
        machine = machine_of(self.HERE)
        assert machine.differences(machine.model_copy(update={"threads": 99})) == []
        assert machine.differences(machine.model_copy(update={"processes": 2})) == ["processes 1 and not 2"]
