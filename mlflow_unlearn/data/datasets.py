"""From a part and a transform to the dataset that methods and metrics read."""

from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset
from torchvision.transforms import v2

from mlflow_unlearn.data._common import known, shortlist
from mlflow_unlearn.data.parts import Part
from mlflow_unlearn.data.splits import labels_of
from mlflow_unlearn.data.transforms import Transform
from mlflow_unlearn.errors import UnlearnError

Augment = Callable[[Tensor], Tensor]


class ImageDataset(Dataset[tuple[Tensor, int]]):
    """Samples read from their images on demand: ``(float tensor [C, H, W], label)``."""

    def __init__(self, part: Part, transform: Transform, labels: Tensor) -> None:
        """Read the first image: its shape is the one that all must have.

        Raises:
            UnlearnError: it can't be read.
        """
        self.part, self.transform, self.labels = part, transform, labels
        self.first: Tensor = self._read(0)

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.part)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Read one sample.

        Raises:
            UnlearnError: its image can't be decoded, or has another shape than the first.
        """
        image = self._read(index)
        if image.shape != self.first.shape:
            raise UnlearnError(
                f"{self.part.ids[0]!r} is {_size(self.first)} and {self.part.ids[index]!r} is {_size(image)}: "
                "bring them to one size with transform=imagenet or transform=timm"
            )
        return image, int(self.labels[index])

    def _read(self, index: int) -> Tensor:
        image = self.transform(self.part.images[index])
        if not isinstance(image, Tensor) or image.ndim != 3 or not image.is_floating_point():
            kind = f"{image.dtype} {list(image.shape)}" if isinstance(image, Tensor) else type(image).__name__
            raise UnlearnError(
                f"the transform made {kind} of {self.part.ids[index]!r}: return a float tensor [C, H, W]"
            )
        return image.as_subclass(Tensor)


def as_dataset(
    part: Part,
    transform: Transform | None,
    *,
    ready: bool = False,
    memory_limit: int = 1 << 30,
    progress: Callable[[range], Iterable[int]] | None = None,
    relabel: NDArray[np.int64] | None = None,
) -> Dataset[Any]:
    """The part as a dataset of ``(float tensor [C, H, W], label)``.

    Args:
        part: the samples.
        transform: from ``build_transform``; unused with ``ready``.
        ready: the part's samples are tensors already and are given as they are.
        memory_limit: bytes up to which the images are read once and kept in memory.
        progress: wraps the sample numbers while they are read, as ``rich.progress.track`` does.
        relabel: ``[classes of the source]``, the model's output index of each class.

    Raises:
        UnlearnError: an image can't be read, sizes differ, or a class has no output index.
    """
    if len(part) == 0:
        raise UnlearnError("a split without samples can't be read: check the data source and the forget set")
    labels = _relabelled(part.labels, relabel)
    if ready:
        if (labels != part.labels).any():
            raise UnlearnError("classes of a python: source can't be renumbered: return the model's output indices")
        return part.images
    if transform is None:
        raise UnlearnError("images need a transform: choose none, imagenet, timm or python:module:function")
    lazy = ImageDataset(part, transform, torch.from_numpy(labels))
    if lazy.first.nbytes * len(part) > memory_limit:
        return lazy
    images = torch.empty((len(part), *lazy.first.shape), dtype=lazy.first.dtype)
    numbers = range(len(part))
    for i in numbers if progress is None else progress(numbers):
        images[i] = lazy[i][0]
    return TensorDataset(images, lazy.labels)


def build_augment(spec: str) -> Augment:
    """Random augmentation of one image tensor: ``none``, or ``crop-flip`` (crop with a margin of 1/8, and mirror).

    Raises:
        UnlearnError: unknown spec.
    """
    if spec not in _AUGMENTS:
        raise UnlearnError(f"unknown augmentation {spec!r}: {known(spec, _AUGMENTS)}")
    return _AUGMENTS[spec]


class Augmented(Dataset[tuple[Tensor, Any]]):
    """A dataset with random augmentation, for training only: never put it into ``Splits``."""

    def __init__(self, dataset: Dataset[Any], spec: str) -> None:
        """Wrap the dataset; the randomness comes from torch's global generator."""
        self.dataset, self.augment = dataset, build_augment(spec)

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.dataset)  # type: ignore[arg-type]

    @property
    def labels(self) -> Tensor:
        """The labels, without augmenting all images to get at them."""
        return labels_of(self.dataset)

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        """One sample, augmented anew each time."""
        image, label = self.dataset[index]
        return self.augment(image), label


def _relabelled(labels: NDArray[np.int64], relabel: NDArray[np.int64] | None) -> NDArray[np.int64]:
    if relabel is None:
        return labels
    present = np.unique(labels)
    if lost := [int(c) for c in present if c >= len(relabel) or relabel[c] < 0]:
        raise UnlearnError(f"the model has no output for the source's classes {shortlist(lost)}: map them to outputs")
    return np.asarray(relabel, np.int64)[labels]


def _size(image: Tensor) -> str:
    channels, height, width = image.shape
    return f"{width} × {height} with {channels} channel{'s' if channels > 1 else ''}"


@cache
def _cropper(height: int, width: int) -> Augment:
    augment: Augment = v2.Compose(
        [v2.RandomCrop((height, width), padding=[width // 8, height // 8]), v2.RandomHorizontalFlip()]
    )
    return augment


def _same(image: Tensor) -> Tensor:
    return image


def _crop_flip(image: Tensor) -> Tensor:
    return _cropper(*image.shape[-2:])(image)


_AUGMENTS: dict[str, Augment] = {"none": _same, "crop-flip": _crop_flip}
