"""Samples by the batch: tensors in memory are indexed at once, not one by one."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset, default_collate


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
        return gather(dataset.dataset, torch.as_tensor(dataset.indices, dtype=torch.long)[index])
    if type(dataset) is ConcatDataset:
        ends = torch.tensor(dataset.cumulative_sizes)
        which = torch.searchsorted(ends, index, right=True)
        starts = torch.cat([torch.zeros(1, dtype=torch.long), ends[:-1]])
        parts = [
            (mask, gather(dataset.datasets[number], (index - starts[number])[mask]))
            for number, mask in ((n, which == n) for n in which.unique().tolist())
        ]
        images = parts[0][1][0].new_empty(len(index), *parts[0][1][0].shape[1:])
        labels = parts[0][1][1].new_empty(len(index))
        for mask, (some, their) in parts:
            images[mask], labels[mask] = some, their
        return images, labels
    images, labels = default_collate([dataset[i] for i in index.tolist()])
    return images, torch.as_tensor(labels)
