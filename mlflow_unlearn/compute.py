"""Where and how tensors are computed: device, precision, seeds, modes. Everything is put back as it was found."""

import copy
import hashlib
import json
import operator
import os
import platform
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from mlflow_unlearn import cache
from mlflow_unlearn.errors import UnlearnError

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
        torch.empty(0, device=picked)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UnlearnError(f"device {str(device)!r} cannot be used here ({reason}): use 'auto' or 'cpu'") from error
    return picked


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[None]:
    """bfloat16 autocast for "bf16", nothing for the others."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


def checked_precision(precision: str, device: torch.device) -> None:
    """Refuse what is unknown, or what the device can only imitate.

    Raises:
        UnlearnError: either.
    """
    if precision not in get_args(Precision):
        raise UnlearnError(f"unknown precision {precision!r}: use {', '.join(get_args(Precision))}")
    if precision == "bf16" and not _has_bf16(device):
        raise UnlearnError(f"precision=bf16 is asked of {processor(device)}, which has no bfloat16: use fp32 or auto")
    if precision == "tf32" and not (device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)):
        raise UnlearnError(f"precision=tf32 is asked of {processor(device)}, which has no TF32: use fp32 or auto")


def pick_numerics(
    precision: Precision, model: nn.Module, images: Tensor, device: torch.device
) -> tuple[Precision, bool]:
    """Precision, and whether images and convolutions lie channels-last in memory.

    ``fp32`` is the reference: contiguous; the others are channels-last where the model convolves. ``auto`` times all
    that the device has, a few passes forth and back on this very machine, and keeps the seconds by architecture, shape,
    processor and threads, in the process and in the cache: processor flags do not tell, since some processors with
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
    names: tuple[Precision, ...] = ("fp32", *(("bf16",) if _has_bf16(device) else ()))
    if device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0):
        names = (*names, "tf32")
    candidates = [(name, layout) for name in names for layout in layouts]
    if len(candidates) == 1:
        return candidates[0]
    shapes = [f"{name} {list(p.shape)}" for name, p in model.named_parameters()]
    facts = {
        "candidates": candidates,
        "architecture": hashlib.sha256("\n".join([type(model).__name__, *shapes]).encode()).hexdigest(),
        "images": list(images.shape),
        "processor": processor(device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    key = json.dumps(facts, sort_keys=True)
    if key not in _TIMED:
        timed = cache.arrays(
            "precision", facts, lambda: {"seconds": np.array(_step_seconds(model, images, device, candidates))}
        )
        _TIMED[key] = timed["seconds"].tolist()
    seconds = _TIMED[key]
    fastest = min(range(len(candidates)), key=seconds.__getitem__)
    return candidates[fastest if seconds[fastest] < (1 - NOISE) * seconds[0] else 0]


NOISE = 0.03
"""Share by which another precision must beat plain fp32 in the timed steps."""

_TIMED: dict[str, list[float]] = {}


def _step_seconds(
    model: nn.Module, images: Tensor, device: torch.device, candidates: Sequence[tuple[Precision, bool]]
) -> list[float]:
    """Seconds of a pass forth and back by candidate: the shortest of two, interleaved, after one to warm up."""
    trial = copy.deepcopy(model).to(device)
    # Eval mode costs the same, and BatchNorm takes a single image in it.
    for module in trial.modules():
        module.training = False
    images = images.to(device)

    def once(precision: Precision, channels_last: bool) -> float:
        layout = torch.channels_last if channels_last else torch.contiguous_format
        placed = trial.to(memory_format=layout)  # type: ignore[call-overload]
        batch = images.to(memory_format=layout)
        start = time.perf_counter()
        with full_precision(precision), autocast(precision, device):
            output = placed(batch)
            # A frozen model is only evaluated; outputs that are no logits are refused where they are used.
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


def _has_bf16(device: torch.device) -> bool:
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


def checked_seed(seed: int) -> int:
    """``seed``, if every generator takes it.

    Raises:
        UnlearnError: it is not a whole number in ``[0, 2⁶⁴)``.
    """
    try:
        whole = operator.index(seed)  # NumPy's integers too
    except TypeError:
        whole = -1
    if not 0 <= whole < 2**64:
        raise UnlearnError(f"seed = {seed!r} is not usable: it must be a whole number ≥ 0 (and below 2⁶⁴)")
    return whole


@contextmanager
def isolated_rng(seed: int) -> Iterator[None]:
    """Seed Python's, NumPy's and torch's global generators inside, and put their states back after."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    # Asking a GPU that nobody uses for its state would start it.
    running = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    devices = list(range(torch.cuda.device_count())) if running else []
    with torch.random.fork_rng(devices):
        try:
            random.seed(seed)
            np.random.seed(seed % 2**32)
            torch.manual_seed(seed)
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)


@contextmanager
def deterministic_convolutions() -> Iterator[None]:
    """Keep cuDNN to algorithms that give the same bits every time; nothing on the CPU, where all do."""
    before = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    try:
        yield
    finally:
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = before


@contextmanager
def in_mode(model: nn.Module, training: bool) -> Iterator[None]:
    """Training or eval mode inside; every submodule's own mode is put back after.

    An exported program has its mode baked in and refuses ``eval()``; it needs none.
    """
    modes = [(module, module.training) for module in model.modules()]
    for module, _ in modes:
        module.training = training
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def eval_mode(model: nn.Module) -> AbstractContextManager[None]:
    """Eval mode inside; every submodule's own mode is put back after."""
    return in_mode(model, False)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """`eval_mode` and inference mode inside."""
    with eval_mode(model), torch.inference_mode():
        yield
