"""Room for many rows: in memory while small, else in a file without a name, which vanishes with its last reader."""

import shutil
import tempfile

import torch
from torch import Tensor

IN_MEMORY = 1 << 28
"""Bytes up to which rows stay in memory."""

SHARE_OF_DISK = 0.5
"""Of the free space in the temporary folder, what one set of rows may take."""


def rows(count: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor | None:
    """Uninitialised ``[count, *shape]``; None where neither memory nor the temporary folder has room for it.

    Rows that nobody writes take no room: neither the memory's pages nor the file's blocks exist before.
    """
    size = count * torch.Size(shape).numel() * dtype.itemsize
    if size <= IN_MEMORY:
        return torch.empty(count, *shape, dtype=dtype)
    if size > SHARE_OF_DISK * shutil.disk_usage(tempfile.gettempdir()).free:
        return None
    with tempfile.NamedTemporaryFile(prefix="mlflow-unlearn-") as file:
        file.truncate(size)
        flat = torch.from_file(file.name, shared=True, size=size // dtype.itemsize, dtype=dtype)
    return flat.view(count, *shape)
