"""Where and how tensors are computed: device, precision, seeds, modes. Everything is put back as it was found."""

import copy
import operator
import random
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from mlflow_unlearn.errors import UnlearnError

Precision = Literal["fp32", "bf16", "auto"]


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
    """bfloat16 autocast for "bf16", nothing for "fp32"."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


def pick_precision(precision: Precision, model: nn.Module, images: Tensor, device: torch.device) -> Precision:
    """Resolve ``auto``: the faster of fp32 and bf16 in a few timed passes forth and back on this very machine.

    Processor flags do not tell: some processors with bfloat16 instructions are slower with them.

    Args:
        precision: as asked for.
        model: left untouched; a copy is timed.
        images: one batch ``[B, C, H, W]``.
        device: where to time.

    Raises:
        UnlearnError: the name is unknown.
    """
    if precision not in ("fp32", "bf16", "auto"):
        raise UnlearnError(f"unknown precision {precision!r}: use fp32, bf16 or auto")
    if precision != "auto":
        return precision
    trial = copy.deepcopy(model).to(device)
    # Eval mode costs the same, and BatchNorm takes a single image in it.
    for module in trial.modules():
        module.training = False
    images = images.to(device)

    def seconds(candidate: Precision) -> float:
        timed = []
        for _ in range(4):
            start = time.perf_counter()
            with autocast(candidate, device):
                output = trial(images)
            # A frozen model is only evaluated; outputs that are no logits are refused where they are used.
            if isinstance(output, Tensor) and output.requires_grad:
                output.float().logsumexp(dim=-1).mean().backward()  # type: ignore[no-untyped-call]
            if device.type == "cuda":
                torch.cuda.synchronize()
            timed.append(time.perf_counter() - start)
        return min(timed[1:])

    return "bf16" if seconds("bf16") < seconds("fp32") else "fp32"


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
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode inside; every submodule's own mode is put back after.

    An exported program has its mode baked in and refuses ``eval()``; it needs none.
    """
    modes = [(module, module.training) for module in model.modules()]
    for module, _ in modes:
        module.training = False
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """`eval_mode` and inference mode inside."""
    with eval_mode(model), torch.inference_mode():
        yield
