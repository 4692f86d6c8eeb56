"""What a dataset reads, as a digest by content: the same samples on another disk or machine have the same one."""

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset, TensorDataset

from mlflow_unlearn.data.batching import LARGEST_BATCH, gather, in_order, leaves
from mlflow_unlearn.data.datasets import ImageDataset, KeptDataset
from mlflow_unlearn.data.fingerprints import value_digest
from mlflow_unlearn.data.source import ImageStore
from mlflow_unlearn.rng import isolated_rng

FULL = 1 << 28
"""Bytes of tensors up to which all samples are read."""

WHOLE, BLOCK = 1 << 16, 1 << 12
"""Bytes of an image's file up to which all are hashed; above it three blocks of so many are, and the size."""

SAMPLES = 64
"""Samples, evenly spread, that are read as the model reads them where not all are."""


def content_digest(dataset: Dataset[Any]) -> str | None:
    """SHA-256 over what a dataset reads: all samples where that is cheap, else a part of them; None where unknown.

    All: tensors in memory, and up to `FULL` bytes of images that are no files. Else of each file its size and its
    bytes (three blocks of a large one), the transform with its source, and `SAMPLES` samples as the model reads them.
    Of a dataset of the user's own: its class with its source, and these samples.
    """
    digest = hashlib.sha256()
    images = dataset.images if isinstance(dataset, KeptDataset) else dataset
    indices: range | list[int] = range(len(dataset))  # type: ignore[arg-type]
    spread = np.unique(np.linspace(0, len(indices) - 1, SAMPLES).astype(int)).tolist()
    # By type: what is kept while it is read would have another digest before and after.
    kinds = set(map(type, leaves(dataset)))
    if isinstance(images, ImageDataset):
        told: Any = images.transform
        store = images.split.images
        if isinstance(store, ImageStore) and store.file is not None:
            indices = spread
            try:
                for excerpt in _excerpts(store, store.file):
                    digest.update(excerpt)
            except OSError:
                return None
        elif images.first.nbytes * len(indices) > FULL:
            indices = spread
    elif kinds == {TensorDataset}:
        told = None
    else:
        told, indices = sorted(kinds, key=lambda kind: kind.__qualname__), spread
    code = value_digest(told)
    if code is None:
        return None
    digest.update(code.encode())
    read = Subset(dataset, indices)
    with isolated_rng(0):  # of a random transform
        for batch in in_order(read, LARGEST_BATCH):
            _update(digest, *gather(read, batch))
    if isinstance(images, ImageDataset):
        _update(digest, images.labels)
    return digest.hexdigest()


def _update(digest: Any, *tensors: Tensor) -> None:
    for tensor in tensors:
        content = tensor.detach().cpu().contiguous()
        digest.update(f"{content.dtype} {list(content.shape)}".encode())
        digest.update(content.reshape(-1).view(torch.uint8).numpy())


def _excerpts(store: ImageStore, file: Callable[[Any], Path]) -> Iterator[bytes]:
    """One digest an image, in order; ``file`` is the store's."""
    with ThreadPoolExecutor(16) as pool:  # what takes the time is opening
        for batch in in_order(store, 1 << 12):  # each waits as an object
            rows = store.rows[batch.start : batch.stop].tolist()
            yield from pool.map(partial(_excerpt, file), [store.keys[row] for row in rows])


def _excerpt(path: Callable[[Any], Path], key: Any) -> bytes:
    with open(path(key), "rb", buffering=0) as file:
        # A member of a shard is a part of its file.
        start, size = getattr(key, "offset", 0), getattr(key, "size", None)
        size = file.seek(0, 2) if size is None else size
        middle = (size - BLOCK) // 2
        parts = [(0, size)] if size <= WHOLE else [(at, BLOCK) for at in (0, middle, size - BLOCK)]
        digest = hashlib.sha256(str(size).encode())
        for at, length in parts:
            file.seek(start + at)
            digest.update(file.read(length))
    return digest.digest()
