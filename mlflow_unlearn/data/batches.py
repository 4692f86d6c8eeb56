"""Samples by the batch: tensors in memory are indexed at once, not one by one."""

import os
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset, TensorDataset, default_collate


def gather(dataset: Dataset[Any], indices: Sequence[int] | Tensor) -> tuple[Tensor, Tensor]:
    """Images ``[B, C, H, W]`` and labels ``[B]`` of the samples at ``indices``, in that order.

    A dataset that can read a batch faster than sample by sample offers ``gather`` of its own. Exact types of torch's:
    a subclass may well read otherwise.
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


def in_order(dataset: Dataset[Any], batch_size: int) -> list[range]:
    """All positions of ``dataset``, from the first to the last, a batch at a time."""
    count = len(dataset)  # type: ignore[arg-type]
    return [range(start, min(start + batch_size, count)) for start in range(0, count, batch_size)]


def in_memory(dataset: Dataset[Any]) -> bool:
    """Whether its samples are tensors in memory, as far as that is known."""
    if type(dataset) is TensorDataset:
        return True
    if type(dataset) is Subset:
        return in_memory(dataset.dataset)
    if type(dataset) is ConcatDataset:
        return all(map(in_memory, dataset.datasets))
    return getattr(dataset, "in_memory", False) is True


def loader_settings(dataset: Dataset[Any], device: torch.device) -> dict[str, Any]:
    """Workers, prefetching and pinned memory for this machine: none for tensors in memory."""
    workers = 0 if in_memory(dataset) else max(1, (os.cpu_count() or 1) - 1)
    return {"num_workers": workers, "pin_memory": device.type == "cuda"}


def batch_loader(
    dataset: Dataset[Any],
    batches: Sequence[Sequence[int]],
    num_workers: int | None,
    device: torch.device,
    **options: Any,
) -> DataLoader[Any]:
    """What `gather` (or the dataset's own) gives for each of ``batches``, in order.

    Args:
        dataset: map-style.
        batches: indices of the samples of each batch.
        num_workers: data-loading processes; None: by `loader_settings`.
        device: where the batches go.
        options: of the loader.
    """
    settings: dict[str, Any] = {"num_workers": num_workers, "pin_memory": device.type == "cuda"}
    if num_workers is None:
        settings = loader_settings(dataset, device)
    return DataLoader(_Batches(dataset, batches), batch_size=None, **settings, **options)


class _Batches(Dataset[Any]):
    """Each sample of this dataset is a batch of another one."""

    def __init__(self, dataset: Dataset[Any], batches: Sequence[Sequence[int]]) -> None:
        self.dataset, self.batches = dataset, batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, number: int) -> Any:
        own = getattr(self.dataset, "gather", partial(gather, self.dataset))
        return own(self.batches[number])
