import os
from collections import namedtuple
from pathlib import Path

import pytest
import torch

from mlflow_unlearn.data import buffers
from mlflow_unlearn.data.buffers import RowStore, allocate

Usage = namedtuple("Usage", "total used free")
TYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8])
NEEDS_PROC = pytest.mark.machine("Linux")


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """A temporary folder of one's own, and rows that do not fit into memory."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(buffers, "IN_MEMORY", 99)
    return tmp_path


def mapped(folder: Path) -> int:
    """Files in ``folder`` that this process maps, so that what it writes goes there and not into memory."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return sum(str(folder) in line and " rw-s " in line for line in lines)


@TYPES
def test_small_rows_lie_in_memory(temporary, dtype):
    store = RowStore(3)
    assert store.put([1], torch.ones(1, 2, 2, dtype=dtype)) and not mapped(temporary)
    assert torch.equal(store.get([1]), torch.ones(1, 2, 2, dtype=dtype))


@TYPES
@NEEDS_PROC
def test_larger_ones_lie_in_a_file_that_nobody_sees_and_that_vanishes(temporary, dtype):
    store, values = RowStore(200), torch.arange(1200).reshape(200, 2, 3).to(dtype)
    assert store.put(slice(None), values)
    kept = store.get(slice(None))
    assert kept.dtype is dtype and torch.equal(kept, values)
    assert mapped(temporary) == 1 and not list(temporary.iterdir())
    del store, kept
    assert mapped(temporary) == 0


@pytest.mark.parametrize("reserve", [False, True])
def test_what_is_never_written_takes_no_room_unless_it_is_reserved(temporary, reserve):
    free = buffers.shutil.disk_usage(temporary).free
    made = allocate(1 << 28, reserve=reserve)
    taken = free - buffers.shutil.disk_usage(temporary).free
    assert len(made) == 1 << 28 and (taken > 1 << 27) is reserve


@pytest.mark.parametrize(("free", "room"), [(799, False), (800, True)])
def test_no_more_than_half_of_the_free_space_is_taken(temporary, monkeypatch, free, room):
    monkeypatch.setattr(buffers.shutil, "disk_usage", lambda folder: Usage(10**9, 0, free))
    assert (allocate(400) is not None) is room


def test_no_more_than_the_limits_is_taken(temporary):
    assert allocate(400, disk_limit=400) is not None and allocate(400, disk_limit=399) is None
    assert allocate(400, memory_limit=400, disk_limit=0) is not None


def test_a_folder_that_is_gone_has_no_room(temporary, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(temporary / "gone"))
    assert allocate(400) is None


def test_rows_come_back_from_where_they_were_put():
    store = RowStore(6)
    index = torch.tensor([4, 0, 4, 2])
    assert store.missing(index).tolist() == index.tolist() and not store.complete
    with pytest.raises(KeyError, match="no row is known yet"):
        store.get(index)
    assert store.put(torch.tensor([4, 2]), torch.tensor([[4.0], [2.0]]))
    assert store.has(index).tolist() == [True, False, True, True] and store.missing(index).tolist() == [0]
    assert store.get(torch.tensor([2, 4, 2])).flatten().tolist() == [2, 4, 2]
    assert store.put(slice(0, 2), torch.tensor([[0.0], [1.0]])) and store.put([3, 5], torch.tensor([[3.0], [5.0]]))
    assert store.complete and store.get(slice(None)).flatten().tolist() == [0, 1, 2, 3, 4, 5]


def test_without_room_nothing_is_kept(temporary, monkeypatch):
    """Nor later, when there is room: what was computed in between would be missing."""
    store = RowStore(200)
    monkeypatch.setenv("TMPDIR", str(temporary / "gone"))
    assert not store.put([0], torch.ones(1, 5)) and not store.room
    monkeypatch.setenv("TMPDIR", str(temporary))
    assert not store.put([0], torch.ones(1, 5)) and store.missing(torch.tensor([0])).tolist() == [0]


@pytest.mark.parametrize("memory_limit", [0, 1 << 20], ids=["file", "memory"])
def test_forked_processes_share_what_is_put_after_the_first_row(temporary, memory_limit):
    store = RowStore(3, memory_limit=memory_limit)
    store.put([0], torch.tensor([[1.0]]))
    child = os.fork()
    if child == 0:
        store.put([2], torch.tensor([[3.0]]))
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert store.has([0, 1, 2]).tolist() == [True, False, True] and store.get([0, 2]).flatten().tolist() == [1, 3]
