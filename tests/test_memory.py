import gc
import tempfile
from collections import namedtuple
from pathlib import Path

import pytest
import torch

from mlflow_unlearn import memory
from mlflow_unlearn.memory import rows

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """A temporary folder of one's own, and rows that do not fit into memory."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(memory, "IN_MEMORY", 99)
    return tmp_path


def mapped() -> set[str]:
    """Files of ours that this process maps, so that what it writes goes there and not into memory."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return {line.split()[5] for line in lines if "/mlflow-unlearn-" in line and " rw-s " in line}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8])
def test_small_rows_lie_in_memory(temporary, dtype):
    made = rows(3, (2, 2), dtype)
    assert made.shape == (3, 2, 2) and made.dtype is dtype and not mapped()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8])
@pytest.mark.machine("Linux")
def test_larger_ones_lie_in_a_file_that_nobody_sees_and_that_vanishes(temporary, dtype):
    made = rows(200, (2, 3), dtype)
    values = torch.arange(1200).reshape(200, 2, 3).to(dtype)
    made[:] = values
    assert made.shape == (200, 2, 3) and made.dtype is dtype and torch.equal(made, values)
    assert len(mapped()) == 1 and not list(temporary.iterdir())
    del made
    gc.collect()
    assert not mapped()


def test_what_nobody_writes_takes_no_room(temporary):
    before = rows(1, (1,), torch.uint8)  # warm
    free = memory.shutil.disk_usage(temporary).free
    made = rows(1 << 28, (1,), torch.uint8)
    assert before is not None and len(made) == 1 << 28
    assert free - memory.shutil.disk_usage(temporary).free < 1 << 27


@pytest.mark.parametrize(("free", "room"), [(799, False), (800, True)])
def test_no_more_than_half_of_the_free_space_is_taken(temporary, monkeypatch, free, room):
    """100 numbers of 4 bytes."""
    monkeypatch.setattr(memory.shutil, "disk_usage", lambda folder: Usage(10**9, 0, free))
    assert (rows(100, (), torch.float32) is not None) is room
