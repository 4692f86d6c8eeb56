"""The four sets that every method and metric reads."""

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset

from mlflow_unlearn.errors import UnlearnError


@dataclass(frozen=True)
class Splits:
    """Forget, retain, validation and test set.

    Each is a map-style dataset that yields ``(image, label)``: a float tensor ``[C, H, W]``, already transformed, and
    an integer class in ``[0, K)``. ``forget`` and ``retain`` are disjoint and together the training set; ``val`` and
    ``test`` were never trained on. Random augmentation does not belong here: members and non-members are read alike.

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
            if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
                raise UnlearnError(
                    f"the {field.name} set is a {type(dataset).__name__}, not a map-style dataset: "
                    "give one with __len__ and __getitem__"
                )
            if len(dataset) == 0:
                raise UnlearnError(f"the {field.name} set is empty: all four sets need at least one sample")


def labels_of(dataset: Dataset[Any]) -> Tensor:
    """The labels ``[N]`` (int64) of a map-style dataset, without reading its images where it keeps them apart."""
    if isinstance(dataset, TensorDataset):
        return dataset.tensors[1].long()
    if isinstance(dataset, Subset):
        return labels_of(dataset.dataset)[torch.as_tensor(dataset.indices, dtype=torch.long)]
    if isinstance(dataset, ConcatDataset):
        return torch.cat([labels_of(part) for part in dataset.datasets])
    if getattr(dataset, "target_transform", None) is None:
        for name in ("targets", "labels"):
            if hasattr(dataset, name):
                return torch.as_tensor(getattr(dataset, name)).long()
    return torch.tensor([int(dataset[i][1]) for i in range(len(dataset))])  # type: ignore[arg-type]


def wholly_forgotten(labels_forget: Tensor, labels_retain: Tensor) -> Tensor:
    """The classes that occur in the forget set and not in the retain set, ascending.

    >>> wholly_forgotten(torch.tensor([3, 3, 1]), torch.tensor([1, 2]))
    tensor([3])
    """
    classes = labels_forget.unique()
    return classes[~torch.isin(classes, labels_retain)]
