"""Samples by the batch: tensors in memory are indexed at once, not one by one."""

import os
import shutil
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset, TensorDataset, default_collate

from mlflow_unlearn.console import results_alone
from mlflow_unlearn.data.functions import users_code
from mlflow_unlearn.rng import isolated_rng


def gather(dataset: Dataset[Any], indices: Sequence[int] | Tensor) -> tuple[Tensor, Tensor]:
    """Images ``[B, C, H, W]`` and labels ``[B]`` of the samples at ``indices``, in that order.

    A dataset that can read a batch faster than sample by sample offers ``gather`` of its own. Exact types of torch's:
    a subclass may read in another way.
    """
    own = getattr(dataset, "gather", None)
    if own is not None:
        images, labels = own(indices)
        return images, labels
    index = torch.as_tensor(indices, dtype=torch.long)
    if type(dataset) is TensorDataset and len(dataset.tensors) == 2:
        images, labels = (tensor[index] for tensor in dataset.tensors)
        return images, labels
    if type(dataset) is Subset:
        return gather(dataset.dataset, [int(dataset.indices[i]) for i in index.tolist()])
    if type(dataset) is ConcatDataset:
        ends = torch.tensor(dataset.cumulative_sizes)
        which = torch.searchsorted(ends, index, right=True)
        starts = torch.cat([torch.zeros(1, dtype=torch.long), ends[:-1]])
        parts = [
            (mask, gather(dataset.datasets[number], (index - starts[number])[mask]))
            for number, mask in ((n, which == n) for n in sorted(set(which.tolist())))
        ]
        images = parts[0][1][0].new_empty(len(index), *parts[0][1][0].shape[1:])
        labels = parts[0][1][1].new_empty(len(index))
        for mask, (some, their) in parts:
            images[mask], labels[mask] = some, their
        return images, labels
    images, labels = default_collate([dataset[i] for i in index.tolist()])
    return images, torch.as_tensor(labels)


def leaves(dataset: Any) -> Iterator[Any]:
    """The datasets below torch's own Subset and ConcatDataset."""
    below = [dataset.dataset] if type(dataset) is Subset else getattr(dataset, "datasets", [])
    if not below:
        yield dataset
    for one in below:
        yield from leaves(one)


def in_order(dataset: Dataset[Any], batch_size: int) -> list[range]:
    """All positions of ``dataset``, from the first to the last, a batch at a time."""
    count = len(dataset)  # type: ignore[arg-type]
    return [range(start, min(start + batch_size, count)) for start in range(0, count, batch_size)]


def in_memory(dataset: Dataset[Any], indices: Sequence[int] | Tensor | None = None) -> bool:
    """Whether the samples at ``indices [B]`` (None: all) are certain to be in memory.

    Such a dataset is a `TensorDataset`, or has ``in_memory``, or ``holds(indices)`` where it fills while it is read.
    """
    if type(dataset) is TensorDataset:
        return True
    if type(dataset) is Subset:
        own = torch.as_tensor(dataset.indices, dtype=torch.long)
        return in_memory(dataset.dataset, own if indices is None else own[torch.as_tensor(indices, dtype=torch.long)])
    if type(dataset) is ConcatDataset:
        return all(map(in_memory, dataset.datasets))
    holds = getattr(dataset, "holds", None)
    if holds is not None and indices is not None:
        return bool(holds(indices))
    return getattr(dataset, "in_memory", False) is True


LARGEST_BATCH = 256
"""Samples that a forward pass takes at once, on all devices but a CPU."""


def forward_batch(dataset: Dataset[Any], device: torch.device) -> int:
    """Samples that a forward pass over ``dataset`` takes at once.

    Many at once overflow a CPU's caches: it takes half a megabyte of images, 32 to 256 (docs/performance.md).
    """
    if device.type != "cpu":
        return LARGEST_BATCH
    size = _sample_bytes(dataset)
    if not size:
        return LARGEST_BATCH // 2
    fit = max(1, (1 << 19) // size)
    return min(LARGEST_BATCH, max(32, 1 << fit.bit_length() - 1))


PREFETCH = 2
"""Batches that each worker has ready: one is read while the other waits."""

MOST_WORKERS = 16
"""More take memory, and one GPU has rarely needed more."""


def loader_settings(dataset: Dataset[Any], device: torch.device, batches: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Workers, prefetching and pinned memory for one pass over ``batches`` on this machine.

    None for samples in memory, or for a single batch. Else one for each core of this process that the model
    does not need, where the shared memory, through which batches travel, has room for what they prefetch: a container
    with little of it would end in a bus error.
    """
    settings: dict[str, Any] = {"num_workers": 0, "pin_memory": device.type == "cuda"}
    if len(batches) < 2 or in_memory(dataset, torch.cat([torch.as_tensor(batch) for batch in batches])):
        return settings
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    workers = min(max(1, cores // ranks - 1), len(batches) - 1, MOST_WORKERS)
    size, room = _sample_bytes(dataset), _shared_memory()
    if size is not None and room is not None:
        workers = min(workers, room // ranks // (PREFETCH * size * max(map(len, batches))))
    if workers > 0:
        settings |= {"num_workers": workers, "prefetch_factor": PREFETCH}
    return settings


def _sample_bytes(dataset: Any) -> int | None:
    """Bytes of the largest image tensor, where the dataset states it without reading one."""
    if type(dataset) is TensorDataset:
        return dataset.tensors[0][:1].nbytes
    below = [dataset.dataset] if type(dataset) is Subset else getattr(dataset, "datasets", None)
    if below is None:
        size: int | None = getattr(dataset, "sample_bytes", None)
        return size
    return max((size for one in below if (size := _sample_bytes(one)) is not None), default=None)


def _shared_memory() -> int | None:
    """Half of the free bytes of shared memory; None where the system does not report them."""
    return shutil.disk_usage("/dev/shm").free // 2 if os.path.isdir("/dev/shm") else None  # noqa: S108


class BatchReader:
    """Reads one dataset by the batch, pass after pass, by processes that stay from one pass to the next."""

    def __init__(
        self,
        dataset: Dataset[Any],
        num_workers: int | None,
        device: torch.device,
        generator: torch.Generator,
        *,
        persistent: bool = True,
    ) -> None:
        """Start nothing yet.

        Args:
            dataset: map-style.
            num_workers: data-loading processes; None: by `loader_settings`.
            device: where the batches go.
            generator: of the seeds of the workers; torch would draw them from the global one.
            persistent: False starts new workers in each pass: what they draw then depends on the generator alone, and
                not on the passes before.
        """
        self.dataset, self.num_workers, self.device, self.generator = dataset, num_workers, device, generator
        self._persistent = persistent
        self._gathered = _Gathered(dataset)
        self._batches: list[Sequence[int]] = []
        self._settings: dict[str, Any] = {}
        self._loader: DataLoader[Any] | None = None

    def read(self, batches: Sequence[Sequence[int]]) -> Iterator[Any]:
        """What `gather` (or the dataset's own) gives for each of ``batches``, in order; one pass at a time.

        Nothing has been read ahead when a pass begins, and the model waits for its first batch: workers and this
        process read a part of it each.
        """
        settings: dict[str, Any] = {"num_workers": self.num_workers, "pin_memory": self.device.type == "cuda"}
        if self.num_workers is None:
            settings = loader_settings(self.dataset, self.device, batches)
        first = _parts(batches[0], settings["num_workers"] + 1) if settings["num_workers"] and batches else []
        self._batches[:] = [*first[1:], *batches[1:]] if len(first) > 1 else batches
        if self._loader is None or settings != self._settings:
            self._settings = settings
            self._loader = DataLoader(
                self._gathered,
                batch_size=None,
                sampler=self._batches,
                generator=self.generator,
                persistent_workers=self._persistent and bool(settings["num_workers"]),
                **settings,
            )
        return self._joined(iter(self._loader), first) if len(first) > 1 else iter(self._loader)

    def _joined(self, batches: Iterator[Any], first: list[Sequence[int]]) -> Iterator[Any]:
        seed = int(torch.randint(1 << 62, (), generator=self.generator))
        with isolated_rng(seed):  # of a random transform: the global generators belong to the caller
            own = self._gathered[first[0]]
        yield [torch.cat(columns) for columns in zip(own, *islice(batches, len(first) - 1), strict=True)]
        yield from batches


def _parts(batch: Sequence[int], most: int) -> list[Sequence[int]]:
    """``batch`` in up to ``most`` parts of about the same size."""
    size = -(-len(batch) // most)
    return [batch[start : start + size] for start in range(0, len(batch), size)]


class _Gathered(Dataset[Any]):
    """A dataset whose index is a whole batch of indices."""

    def __init__(self, dataset: Dataset[Any]) -> None:
        self.dataset = dataset
        self.gather = getattr(dataset, "gather", partial(gather, dataset))

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, batch: Sequence[int]) -> Any:
        # In Python, callers get the errors of their own datasets; in a worker, sys.exit would leave no reason behind.
        with users_code("reading the data", "correct the data source" if results_alone() else None):
            return self.gather(batch)
