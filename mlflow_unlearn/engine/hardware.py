"""Where and how tensors are computed: device, precision, seeds, modes. Everything is put back as it was found."""

import copy
import hashlib
import json
import os
import platform
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from mlflow_unlearn import cache
from mlflow_unlearn.console import first_line
from mlflow_unlearn.data.batching import BatchReader, gather
from mlflow_unlearn.distributed import ranks
from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.evidence.checkpoints import Machine
from mlflow_unlearn.rng import isolated_rng
from mlflow_unlearn.spelling import spelled

Precision = Literal["fp32", "tf32", "bf16", "auto"]


def pick_device(device: str | torch.device | None) -> torch.device:
    """``auto`` (or None) is CUDA where there is one, else the CPU.

    Raises:
        UnlearnError: the device is unknown or not available here.
    """
    if device in (None, "auto"):
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        picked = torch.device(device)
        torch.zeros(1, device=picked).cpu()  # from "meta" nothing comes back
    except (RuntimeError, AssertionError) as error:
        reason = first_line(error)
        raise UnlearnError(f"device {str(device)!r} cannot be used here ({reason}): use 'auto' or 'cpu'") from error
    return picked


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[None]:
    """bfloat16 autocast for "bf16", nothing for the others."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


def checked_precision(precision: str, device: torch.device) -> None:
    """Refuse an unknown precision, or one that the device can only emulate.

    Raises:
        UnlearnError: either.
    """
    if precision not in get_args(Precision):
        raise UnlearnError(f"unknown precision {precision!r}: use {', '.join(get_args(Precision))}")
    if precision == "bf16" and not has_bfloat16(device):
        raise UnlearnError(
            f"{spelled('precision', 'bf16')} needs bfloat16, which {processor(device)} does not have: use fp32 or auto"
        )
    if precision == "tf32" and not (device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)):
        raise UnlearnError(
            f"{spelled('precision', 'tf32')} needs TF32, which {processor(device)} does not have: use fp32 or auto"
        )


def pick_numerics(
    precision: Precision, model: nn.Module, images: Tensor, device: torch.device
) -> tuple[Precision, bool]:
    """Precision, and whether images and convolutions are channels-last in memory.

    ``fp32`` is the reference: contiguous; the others are channels-last where the model convolves. ``auto`` times all
    that the device has, a few forward and backward passes on this machine, and caches the seconds by architecture,
    shape, processor and threads, in the process and on disk: processor flags are not enough, since some processors with
    bfloat16 instructions are slower with them. Plain fp32 stays unless another is faster by more than the noise.

    Args:
        precision: as asked for.
        model: left untouched; copies are timed.
        images: one batch ``[B, C, H, W]``; only ``auto`` reads it.
        device: where to time.

    Raises:
        UnlearnError: the precision is unknown, or the device does not have it.
    """
    checked_precision(precision, device)
    convolves = any(isinstance(module, nn.Conv2d) for module in model.modules())
    if precision != "auto":
        return precision, convolves and precision != "fp32"
    layouts = (False, True) if convolves else (False,)
    names: tuple[Precision, ...] = ("fp32", *(("bf16",) if has_bfloat16(device) else ()))
    if device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0):
        names = (*names, "tf32")
    candidates = [(name, layout) for name in names for layout in layouts]
    if len(candidates) == 1:
        return candidates[0]
    shapes = [f"{name} {list(p.shape)}" for name, p in model.named_parameters()]
    cache_key = {
        "candidates": candidates,
        "architecture": hashlib.sha256("\n".join([type(model).__name__, *shapes]).encode()).hexdigest(),
        "images": list(images.shape),
        "processor": processor(device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    key = json.dumps(cache_key, sort_keys=True)
    if key not in _TIMED:

        def measure() -> cache.Arrays:
            return {"seconds": np.array(_step_seconds(model, images, device, candidates))}

        _TIMED[key] = cache.arrays("precision", cache_key, measure)["seconds"].tolist()
    return candidates[fastest(_TIMED[key])]


def fastest(seconds: Sequence[float]) -> int:
    """The index of the smallest of ``seconds``, or 0 where that gains no more than the noise.

    >>> fastest([1.0, 0.98]), fastest([1.0, 0.96])
    (0, 1)
    """
    best = min(range(len(seconds)), key=seconds.__getitem__)
    return best if seconds[best] < (1 - NOISE) * seconds[0] else 0


NOISE = 0.03
"""Fraction by which another precision must beat plain fp32 in the timed steps."""

_TIMED: dict[str, list[float]] = {}


def _step_seconds(
    model: nn.Module, images: Tensor, device: torch.device, candidates: Sequence[tuple[Precision, bool]]
) -> list[float]:
    """Seconds of a forward and backward pass by candidate: the shorter of two, interleaved, after one to warm up."""
    trial = copy.deepcopy(model).to(device)
    # Eval mode costs the same, and BatchNorm takes a single image in it.
    for module in trial.modules():
        module.training = False
    images = images.to(device)

    def once(precision: Precision, channels_last: bool) -> float:
        layout = torch.channels_last if channels_last else torch.contiguous_format
        # torch's stubs know the argument in some versions alone.
        placed = trial.to(memory_format=layout)  # type: ignore[call-overload, unused-ignore]
        batch = images.to(memory_format=layout)
        start = time.perf_counter()
        with full_precision(precision), autocast(precision, device):
            output = placed(batch)
            # A frozen model is only evaluated; outputs that are not logits are refused where they are used.
            if isinstance(output, Tensor) and output.requires_grad:
                output.float().logsumexp(dim=-1).mean().backward()  # type: ignore[no-untyped-call]
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    rounds = [[once(*candidate) for candidate in candidates] for _ in range(3)]
    return [min(times) for times in zip(*rounds[1:], strict=True)]


@contextmanager
def full_precision(precision: Precision) -> Iterator[None]:
    """Let CUDA multiply in TF32 for "tf32" alone; torch would use it for convolutions in any case."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device computes in bfloat16 itself, not by emulation."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return False


def processor(device: torch.device) -> str:
    """Its name, and for a CPU the number of cores."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    described = Path("/proc/cpuinfo")
    lines = described.read_text().splitlines() if described.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor() or platform.machine()} ({os.cpu_count()} cores)"


def machine_of(hardware: "Hardware") -> Machine:
    """What the bits of trained weights depend on here."""
    device = hardware.device
    names = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS")
    limits = [torch.backends.cpu.get_cpu_capability(), *(f"{n}={v}" for n in names if (v := os.environ.get(n)))]
    return Machine(
        torch=torch.__version__,
        device=device.type if device.type == "cpu" else f"{device.type} {processor(device)}",
        precision=hardware.precision,
        threads=torch.get_num_threads(),
        instructions=", ".join(limits),
        processor=processor(torch.device("cpu")).rpartition(" (")[0],  # without the number of its cores
        channels_last=hardware.channels_last,
        compiled=hardware.compile,
        processes=ranks.size(),
    )


def as_recorded(hardware: "Hardware", machine: Machine | None, *, augment: str = "none") -> "Hardware":
    """The hardware as a training that is to be repeated had it, if this is the same machine; else it stays.

    Random augmentation is drawn in this process: several others would share it out in another way.

    Args:
        hardware: of the command.
        machine: of the training.
        augment: of its images.
    """
    repeated = replace(hardware, num_workers=0) if augment != "none" else hardware
    if machine is None:
        return repeated
    precision = cast(Precision, machine.precision)
    same = replace(repeated, precision=precision, channels_last=machine.channels_last, compile=machine.compiled)
    return repeated if machine.differences(machine_of(same)) else same


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Compute with so many threads inside: sums depend on how they are split."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def deterministic_convolutions() -> Iterator[None]:
    """Restrict cuDNN to algorithms that give the same bits every time; no effect on the CPU, where all do."""
    before = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    try:
        yield
    finally:
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = before


@dataclass(frozen=True)
class Hardware:
    """Where and how a command computes, decided once.

    Attributes:
        device: of all passes.
        precision: "fp32", "tf32" or "bf16".
        channels_last: memory format of images and convolutions.
        num_workers: data-loading processes; None lets the data and the machine decide.
        compile: whether the student is compiled for its training passes.
        progress: whether bars are shown.
    """

    device: torch.device
    precision: Precision = "fp32"
    channels_last: bool = False
    num_workers: int | None = 0
    compile: bool = False
    progress: bool = False

    def place(self, model: nn.Module) -> nn.Module:
        """``model`` itself, moved to the device and laid out in memory."""
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        placed: nn.Module = model.to(self.device, memory_format=layout)  # type: ignore[call-overload]
        return placed

    def images(self, images: Tensor) -> Tensor:
        """A batch ``[B, …]`` on the device, in the memory format of the model."""
        layout = torch.channels_last if self.channels_last and images.ndim == 4 else torch.contiguous_format
        return images.to(self.device, memory_format=layout, non_blocking=True)

    def autocast(self) -> AbstractContextManager[None]:
        """bfloat16 where that is the precision."""
        return autocast(self.precision, self.device)

    def logits(self, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        """``model(images)`` in this precision, as checked float32 logits ``[B, K]``."""
        with self.autocast():
            output = model(self.images(images))
        return checked_logits(output, labels)

    def reader(self, dataset: Dataset[Any], generator: torch.Generator, *, persistent: bool = True) -> BatchReader:
        """A reader of batches of ``dataset``, with as many processes as are worth it.

        Args:
            dataset: map-style.
            generator: of the seeds of these processes.
            persistent: whether they stay from one pass to the next.
        """
        return BatchReader(dataset, self.num_workers, self.device, generator, persistent=persistent)

    def batches(self, dataset: Dataset[Any], batches: Sequence[Sequence[int]]) -> Iterable[Any]:
        """``gather(dataset, batch)`` of each of ``batches``, once.

        The loader's workers are not seeded from the global generator, which belongs to the caller.
        """
        return self.reader(dataset, torch.Generator()).read(batches)


def checked_logits(output: Any, labels: Tensor) -> Tensor:
    """``output`` as float32 logits ``[B, K]``.

    Raises:
        UnlearnError: it is something else, or a label is not a class in ``[0, K)``.
    """
    if labels.ndim != 1:
        raise UnlearnError(
            f"the labels of {len(labels)} samples have shape {list(labels.shape)}: give one class a sample"
        )
    if not isinstance(output, Tensor):
        raise UnlearnError(
            f"the model returns a {type(output).__name__}, not a tensor of logits [N, K]: "
            "wrap it in a module that returns the logits alone"
        )
    if output.ndim != 2 or output.shape[0] != len(labels):
        raise UnlearnError(
            f"the model returns a tensor of shape {list(output.shape)} for {len(labels)} images, not logits [N, K]"
        )
    bad = labels[(labels >= output.shape[1]) | (labels < 0)]
    if len(bad):
        raise UnlearnError(
            f"the data has label {bad[0].item()}, and the model has {output.shape[1]} outputs (0 to K − 1)"
        )
    return output.float()


def resolve_hardware(
    model: nn.Module,
    dataset: Dataset[Any],
    *,
    device: str | torch.device | None = None,
    precision: Precision = "fp32",
    num_workers: int | None = 0,
    compile: bool = False,
    progress: bool = False,
) -> Hardware:
    """Decide device, precision and layout once.

    Args:
        model: left untouched.
        dataset: whose first samples are read where ``auto`` precision is timed.
        device: "cpu", "cuda", …; None or "auto" takes CUDA where there is one.
        precision: "fp32", "tf32", "bf16" or "auto".
        num_workers: data-loading processes; None lets the data and the machine decide.
        compile: whether the student is compiled for its training passes.
        progress: whether bars are shown.

    Raises:
        UnlearnError: device or precision is unknown, or not available here.
    """
    picked = pick_device(device)
    images = torch.empty(0)
    with isolated_rng(0), torch.inference_mode(False), torch.enable_grad():
        if precision == "auto":
            images, _ = gather(dataset, range(min(32, len(dataset))))  # type: ignore[arg-type]
        chosen, channels_last = pick_numerics(precision, model, images, picked)
    return Hardware(picked, chosen, channels_last, num_workers, compile, progress)
