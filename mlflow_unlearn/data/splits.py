"""The four sets that every method and metric reads."""

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, IterableDataset, Subset, TensorDataset

from mlflow_unlearn.errors import UnlearnError


@dataclass(frozen=True)
class Splits:
    """Forget, retain, validation and test set.

    Each is a map-style dataset that yields ``(image, label)``: a float tensor ``[C, H, W]``, already transformed, and
    an integer class in ``[0, K)``. ``forget`` and ``retain`` are disjoint and together the training set; ``val`` and
    ``test`` were never trained on. Random augmentation does not belong here: members and others get the same transform.

    Raises:
        UnlearnError: a set is empty or is not a map-style dataset.
    """

    forget: Dataset[Any]
    retain: Dataset[Any]
    val: Dataset[Any]
    test: Dataset[Any]

    def __post_init__(self) -> None:
        """Refuse what no method could work with."""
        for field in fields(self):
            dataset = getattr(self, field.name)
            readable = hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")
            if not readable or isinstance(dataset, IterableDataset):
                raise UnlearnError(
                    f"the {field.name} set is a {type(dataset).__name__}, not a map-style dataset: "
                    "give one with __len__ and __getitem__"
                )
            if len(dataset) == 0:
                raise UnlearnError(f"the {field.name} set is empty: all four sets need at least one sample")


def labels_of(dataset: Dataset[Any]) -> Tensor:
    """The labels ``[N]`` (int64) of a map-style dataset, without reading its images where it keeps them apart."""
    kept = _kept_labels(dataset)
    if kept is not None:
        return kept
    return torch.tensor([int(dataset[i][1]) for i in range(len(dataset))])  # type: ignore[arg-type]


def _kept_labels(dataset: Dataset[Any]) -> Tensor | None:
    """What a dataset keeps of its labels apart from the images, or None."""
    if isinstance(dataset, TensorDataset):
        return dataset.tensors[1].long().cpu()
    if isinstance(dataset, Subset):
        whole = _kept_labels(dataset.dataset)
        return None if whole is None else whole[torch.as_tensor(dataset.indices, dtype=torch.long)]
    if isinstance(dataset, ConcatDataset):
        parts = [_kept_labels(part) for part in dataset.datasets]
        kept = [part for part in parts if part is not None]
        return torch.cat(kept) if len(kept) == len(parts) else None
    if getattr(dataset, "target_transform", None) is None:
        for name in ("targets", "labels"):
            values = np.asarray(getattr(dataset, name, None))
            # The names of the classes, say, are something else.
            if values.shape == (len(dataset),) and values.dtype.kind in "iu":  # type: ignore[arg-type]
                return torch.as_tensor(values.astype(np.int64))
    return None


def wholly_forgotten(labels_forget: Tensor, labels_retain: Tensor) -> Tensor:
    """The classes that occur in the forget set and not in the retain set, ascending.

    >>> wholly_forgotten(torch.tensor([3, 3, 1]), torch.tensor([1, 2]))
    tensor([3])
    """
    classes: Tensor = torch.unique(labels_forget)
    return classes[~torch.isin(classes, labels_retain)]
