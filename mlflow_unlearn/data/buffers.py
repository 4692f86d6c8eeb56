"""Rows that are kept as they become known: in memory while small, else in a file without a name."""

import os
import shutil
from collections.abc import Sequence
from mmap import mmap
from tempfile import TemporaryFile

import torch
from torch import Tensor

IN_MEMORY = 1 << 28
"""Bytes up to which rows stay in memory."""

Index = Tensor | Sequence[int] | slice


class RowStore:
    """One row a sample, kept once it is known; processes that are forked after the first row share them.

    Attributes:
        room: False once the first rows have found no room for all: none is kept.
    """

    def __init__(
        self, count: int, *, memory_limit: int | None = None, disk_limit: int | None = None, reserve: bool = False
    ) -> None:
        """Allocate nothing yet: the first rows have the shape and the dtype.

        Args:
            count: samples.
            memory_limit: bytes that rows and their flags may take in memory, by default `IN_MEMORY`.
            disk_limit: bytes that they may take in a file.
            reserve: see `allocate`.
        """
        self.count, self.room = count, True
        self._limits = {"memory_limit": memory_limit, "disk_limit": disk_limit}
        self._reserve = reserve
        self._rows: Tensor | None = None
        self._known = torch.zeros(count, dtype=torch.bool)

    @property
    def complete(self) -> bool:
        """Whether every row is known."""
        return bool(self._known.all())

    def has(self, index: Index) -> Tensor:
        """Which of the rows at ``index [B]`` are known, ``[B]`` bool."""
        return self._known[index]

    def missing(self, index: Tensor) -> Tensor:
        """Those of ``index [B]`` whose rows are not known, in the same order."""
        return index[~self._known[index]]

    def get(self, index: Index) -> Tensor:
        """The rows ``[B, …]`` at ``index [B]``, all of which are known; a copy, unless ``index`` is a slice.

        Raises:
            KeyError: no row is known yet.
        """
        if self._rows is None:
            raise KeyError("no row is known yet")
        return self._rows[index]

    def put(self, index: Index, rows: Tensor) -> bool:
        """Keep ``rows [B, …]`` at ``index [B]``; False, and nothing kept, where there is no room."""
        if self._rows is None and self.room:
            self._allocate(tuple(rows.shape[1:]), rows.dtype)
        if self._rows is None:
            return False
        self._rows[index] = rows
        self._known[index] = True
        return True

    def _allocate(self, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        size = self.count * torch.Size(shape).numel() * dtype.itemsize
        memory = allocate(size + self.count, **self._limits, reserve=self._reserve)
        self.room = memory is not None
        if memory is not None:
            self._rows = memory[:size].view(dtype).view(self.count, *shape)
            self._known = memory[size:].view(torch.bool)


def allocate(
    size: int, *, memory_limit: int | None = None, disk_limit: int | None = None, reserve: bool = False
) -> Tensor | None:
    """Zeros ``[size]`` (uint8) that forked processes share, in memory or in a file; None where there is no room.

    The file has no name: nothing is left of it when the process ends, however it ends. What is never written takes no
    room, unless ``reserve``.

    Args:
        size: bytes.
        memory_limit: most bytes in memory, by default `IN_MEMORY`; more go to the file.
        disk_limit: most bytes in the file, which never takes more than half of the free disk.
        reserve: take the file's blocks at once: a process that writes to them when the disk is full would be killed.
    """
    if size <= (IN_MEMORY if memory_limit is None else memory_limit):
        return torch.frombuffer(mmap(-1, size), dtype=torch.uint8)
    folder = os.environ.get("TMPDIR", "/var/tmp")  # /tmp may itself be memory
    try:
        room = shutil.disk_usage(folder).free // 2
        if size > (room if disk_limit is None else min(disk_limit, room)):
            return None
        with TemporaryFile(dir=folder) as file:
            if reserve:
                os.posix_fallocate(file.fileno(), 0, size)
            else:
                file.truncate(size)
            return torch.frombuffer(mmap(file.fileno(), size), dtype=torch.uint8)
    except (OSError, AttributeError):  # the latter where the system can't reserve blocks
        return None


def half_of_memory() -> int:
    """Half of the machine's memory in bytes; 0 where the system does not report it."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    except (OSError, ValueError, AttributeError):
        return 0
