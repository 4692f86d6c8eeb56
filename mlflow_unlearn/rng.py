"""Seeds, and global random states that are put back."""

import operator
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.spelling import spelled


def checked_seed(seed: int) -> int:
    """``seed`` as an ``int`` that every generator takes.

    Raises:
        UnlearnError: it is not a whole number in ``[0, 2⁶⁴)``.
    """
    try:
        whole = operator.index(seed)  # NumPy's integers too
    except TypeError:
        whole = -1
    if not 0 <= whole < 2**64:
        raise UnlearnError(f"{spelled('seed', seed)} is not usable: it must be a whole number ≥ 0 (and below 2⁶⁴)")
    return whole


def seed_all(seed: int) -> None:
    """Seed Python's, NumPy's and torch's global generators."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


@contextmanager
def isolated_rng(seed: int) -> Iterator[None]:
    """Seed Python's, NumPy's and torch's global generators inside, and put their states back after."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    # To ask an unused GPU for its state would start it.
    running = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    devices = list(range(torch.cuda.device_count())) if running else []
    with torch.random.fork_rng(devices):
        try:
            seed_all(seed)
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)


def rng_states() -> dict[str, Any]:
    """The states of Python's, NumPy's and torch's global generators, as tensors ``[…]``, numbers and text."""
    version, python, gauss = random.getstate()
    kind, numpy, *rest = np.random.get_state()
    return {
        "python": [version, torch.tensor(python), gauss],
        "numpy": [kind, torch.from_numpy(np.asarray(numpy, np.int64)), *rest],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],  # type: ignore[no-untyped-call]
    }


def set_rng_states(states: dict[str, Any]) -> None:
    """Put the global generators where `rng_states` found them."""
    version, python, gauss = states["python"]
    random.setstate((version, tuple(python.tolist()), gauss))
    kind, numpy, *rest = states["numpy"]
    np.random.set_state((kind, numpy.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(states["torch"])
    if states["cuda"] and torch.cuda.is_available():  # a checkpoint may come from another machine
        torch.cuda.set_rng_state_all(states["cuda"])
