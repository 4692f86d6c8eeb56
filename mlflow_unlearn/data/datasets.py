"""From a split and a transform to the dataset that methods and metrics read."""

import copy
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from mlflow_unlearn.data.buffers import RowStore, half_of_memory
from mlflow_unlearn.data.functions import users_code
from mlflow_unlearn.data.source import ImageStore, Split
from mlflow_unlearn.data.splits import labels_of
from mlflow_unlearn.data.transforms import PixelTransform, Transform
from mlflow_unlearn.errors import UnlearnError, did_you_mean, shortlist
from mlflow_unlearn.spelling import spelled

Augment = Callable[[Tensor], Tensor]

SMALL = 1 << 14
"""Bytes of pixels up to which a kept image is small: 64 × 64 in colour is."""


class ImageDataset(Dataset[tuple[Tensor, int]]):
    """Samples read from their images on demand: ``(float tensor [C, H, W], label)``."""

    def __init__(self, split: Split, transform: Transform, labels: Tensor) -> None:
        """Read the first image: its shape is the one that all must have. ``labels`` are ``[N]``.

        Raises:
            UnlearnError: it can't be read.
        """
        self.split, self.transform, self.labels = split, transform, labels
        self.deterministic = isinstance(transform, PixelTransform)
        self.first = self.read(0, check=False)

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.split)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Read one sample.

        Raises:
            UnlearnError: its image can't be decoded, or has another shape than the first.
        """
        return self.finish(self.read(index)), int(self.labels[index])

    def gather(self, indices: Sequence[int] | Tensor) -> tuple[Tensor, Tensor]:
        """Images ``[B, C, H, W]`` and labels ``[B]`` of the samples at ``indices``, in that order.

        Raises:
            UnlearnError: as for one sample.
        """
        index = torch.as_tensor(indices, dtype=torch.long)
        return self.finish(torch.stack([self.read(i) for i in index.tolist()])), self.labels[index]

    @property
    def sample_bytes(self) -> int:
        """What one image takes."""
        return self.finish(self.first[..., :1, :1]).element_size() * self.first.numel()

    def read(self, index: int, check: bool = True) -> Tensor:
        """What can be kept of one image ``[C, H, W]``: uint8 pixels of our transforms, else what the transform makes.

        Raises:
            UnlearnError: it can't be decoded or transformed, or has another shape than the first.
        """
        if check and index == 0 and isinstance(self.transform, PixelTransform):
            return self.first
        name, images, transform = self.split.ids[index], self.split.images, self.transform
        with users_code(f"the transform of {name!r}", f"correct it, or give another {spelled('transform')}"):
            if isinstance(transform, PixelTransform) and isinstance(images, ImageStore):
                image = transform.pixels(images.pixels(index))
            else:
                image = _checked(transform(images[index]), name)
        if check and image.shape != self.first.shape:
            raise UnlearnError(
                f"{self.split.ids[0]!r} is {_size(self.first)} and {name!r} is {_size(image)}: bring them to one size "
                f"with {spelled('transform', 'imagenet')} or {spelled('transform', 'timm')}"
            )
        return image

    def finish(self, kept: Tensor) -> Tensor:
        """The floats ``[…, C, H, W]`` of what ``read`` gave, for one image or for a batch."""
        return self.transform.scale(kept) if isinstance(self.transform, PixelTransform) else kept


class KeptDataset(Dataset[tuple[Tensor, int]]):
    """Samples of an `ImageDataset`, each decoded once: what is read is kept in memory that forked workers share.

    Attributes:
        images: what reads them.
        store: what has been read, by sample.
    """

    def __init__(self, images: ImageDataset, store: RowStore) -> None:
        """Keep in ``store``, which has the first image already, what ``images`` reads."""
        self.images, self.labels, self.deterministic = images, images.labels, images.deterministic
        self.store = store

    @property
    def in_memory(self) -> bool:
        """Whether all are in memory, see `holds`."""
        return self.holds(slice(None))

    @property
    def sample_bytes(self) -> int:
        """What one image takes."""
        return self.images.sample_bytes

    def holds(self, indices: Any) -> bool:
        """Whether these have been read, and are so small that converting them needs no other processes."""
        return self.images.first.nbytes <= SMALL and bool(self.store.has(indices).all())

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """One sample, read at its first use; raises what `ImageDataset` does."""
        images, labels = self.gather([index])
        return images[0], int(labels[0])

    def gather(self, indices: Sequence[int] | Tensor) -> tuple[Tensor, Tensor]:
        """Images ``[B, C, H, W]`` and labels ``[B]`` of the samples at ``indices``, in that order."""
        index = torch.as_tensor(indices, dtype=torch.long)
        for i in self.store.missing(index).tolist():
            self.store.put([i], self.images.read(i)[None])
        return self.images.finish(self.store.get(index)), self.labels[index]

    def __reduce__(self) -> tuple[Any, ...]:
        """Shared memory reaches forked processes only: others read the images themselves."""
        return copy.copy, (self.images,)


def as_dataset(
    split: Split,
    transform: Transform | None,
    *,
    ready: bool = False,
    memory_limit: int = 1 << 28,
    disk_limit: int | None = None,
    progress: Callable[[range], Iterable[int]] | None = None,
    relabel: NDArray[np.int64] | None = None,
) -> Dataset[Any]:
    """The split as a dataset of ``(float tensor [C, H, W], label)``, each image decoded once where there is room.

    Floats that fit into ``memory_limit`` are read at once. Else what is read is kept, as uint8 pixels where the
    transform is one of ours: in memory up to the same limit, above it in a temporary file without a name. What fits
    nowhere is read anew each time. The samples are the same, bit by bit.

    Args:
        split: the samples.
        transform: from ``build_transform``; unused with ``ready``.
        ready: the split's samples are tensors already and are given as they are.
        memory_limit: bytes to keep in memory.
        disk_limit: bytes to keep in the file: by default half of the machine's memory, since reading back what the
            system could not hold is no faster than decoding; and never more than half of the free disk.
        progress: wraps the sample numbers while they are read, as ``rich.progress.track`` does.
        relabel: ``[classes of the source]``, the model's output index of each class.

    Raises:
        UnlearnError: an image can't be read, sizes differ, or a class has no output index.
    """
    if len(split) == 0:
        raise UnlearnError("a split without samples can't be read: check the data source and the forget set")
    labels = _relabelled(split.labels, relabel)
    if ready:
        if (labels != split.labels).any():
            raise UnlearnError("classes of a python: source can't be renumbered: return the model's output indices")
        return split.images
    if transform is None:
        raise UnlearnError("images need a transform: choose none, imagenet, timm or python:module:function")
    lazy = ImageDataset(split, transform, torch.from_numpy(labels))
    first = lazy.finish(lazy.first)
    if first.nbytes * len(split) > memory_limit:
        disk_limit = half_of_memory() if disk_limit is None else disk_limit
        store = RowStore(len(split), memory_limit=memory_limit, disk_limit=disk_limit, reserve=True)
        return KeptDataset(lazy, store) if store.put([0], lazy.first[None]) else lazy
    images = torch.empty((len(split), *first.shape), dtype=first.dtype)
    numbers = range(len(split))
    for i in numbers if progress is None else progress(numbers):
        images[i] = lazy[i][0]
    return TensorDataset(images, lazy.labels)


def build_augment(spec: str) -> Augment:
    """Random augmentation of one image tensor: ``none``, or ``crop-flip`` (crop with a margin of 1/8, and mirror).

    Raises:
        UnlearnError: unknown spec.
    """
    if spec not in _AUGMENTS:
        raise UnlearnError(f"unknown augmentation {spec!r}: {did_you_mean(spec, _AUGMENTS)}")
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
        """The labels ``[N]``, without augmenting all images to get at them."""
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


def _checked(image: Any, name: str) -> Tensor:
    """What a transform has made of the image ``name``, if that is what it has to make."""
    if not isinstance(image, Tensor) or image.ndim != 3 or not image.is_floating_point():
        kind = f"{image.dtype} {list(image.shape)}" if isinstance(image, Tensor) else type(image).__name__
        raise UnlearnError(f"the transform made {kind} of {name!r}: return a float tensor [C, H, W]")
    return image.as_subclass(Tensor)


def _size(image: Tensor) -> str:
    channels, height, width = image.shape
    return f"{width} × {height} with {channels} channel{'s' if channels > 1 else ''}"


@cache
def _cropper(height: int, width: int) -> Augment:
    from torchvision.transforms import v2  # takes a second to import

    augment: Augment = v2.Compose(
        [v2.RandomCrop((height, width), padding=[width // 8, height // 8]), v2.RandomHorizontalFlip()]
    )
    return augment


def _same(image: Tensor) -> Tensor:
    return image


def _crop_flip(image: Tensor) -> Tensor:
    return _cropper(*image.shape[-2:])(image)


_AUGMENTS: dict[str, Augment] = {"none": _same, "crop-flip": _crop_flip}
