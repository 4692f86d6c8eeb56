"""The splits of a source, and the one way to draw them."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, Subset

from mlflow_unlearn.data._decode import decode, decode_pixels
from mlflow_unlearn.errors import UnlearnError, shortlist

Indices = NDArray[np.int64]
_Decoded = TypeVar("_Decoded", Image.Image, Image.Image | Tensor)


class Keys(Protocol):
    """One key an image: a sequence, or what makes a key when it is asked for."""

    def __len__(self) -> int:
        """Number of images."""

    def __getitem__(self, index: int, /) -> Any:
        """The key of one image."""


class ImageStore(Dataset[Image.Image]):
    """Images read on demand: ``read`` makes one, or its file's bytes, from a key such as a path or a pixel array."""

    def __init__(
        self,
        read: Callable[[Any], Image.Image | bytes],
        keys: "Keys",
        rows: Indices | None = None,
        file: Callable[[Any], Path] | None = None,
    ) -> None:
        """Read nothing yet.

        Args:
            read: from a key to an image or the bytes of its file.
            keys: of all images; subsets share them.
            rows: positions ``[N]`` in ``keys`` of the images in this store; by default all.
            file: from a key to the path of the file that holds the image, where there is one.
        """
        self.read, self.keys, self.file = read, keys, file
        self.rows = np.arange(len(keys)) if rows is None else rows

    def __len__(self) -> int:
        """Number of images."""
        return len(self.rows)

    def __getitem__(self, index: int) -> Image.Image:
        """Read one image.

        Raises:
            UnlearnError: it can't be read or decoded; the message names it.
        """
        return self._read(index, decode)

    def pixels(self, index: int) -> Image.Image | Tensor:
        """Read one image, as a uint8 tensor ``[C, H, W]`` where that is the faster way.

        Raises:
            UnlearnError: it can't be read or decoded; the message names it.
        """
        return self._read(index, decode_pixels)

    def subset(self, indices: Indices) -> "ImageStore":
        """The images at these indices ``[B]``, in this order."""
        return ImageStore(self.read, self.keys, self.rows[indices], self.file)

    def _read(self, index: int, decoder: Callable[[bytes], _Decoded]) -> _Decoded | Image.Image:
        key = self.keys[self.rows[index]]
        try:
            read = self.read(key)
            return decoder(read) if isinstance(read, bytes) else read
        except UnlearnError:
            raise
        except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error, …
            reason = str(error).split("\n", 1)[0]
            raise UnlearnError(
                f"can't decode the image {key!r} ({reason}): replace the file or take it out of the source"
            ) from error


@dataclass(frozen=True, eq=False)
class Split:
    """The training, validation or test split of a source.

    Attributes:
        ids: stable sample ids, unique over the whole source.
        labels: ``[N]``, index into the source's classes.
        images: map-style dataset: index → PIL image, or → ``(tensor, label)`` where the source is ``ready``.
        groups: further columns, one string a sample.
    """

    ids: tuple[str, ...]
    labels: Indices
    images: Dataset[Any]
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.ids)

    def subset(self, indices: NDArray[Any] | Sequence[int]) -> "Split":
        """The samples at these indices ``[B]``, in this order."""
        chosen = np.asarray(indices, dtype=np.int64)
        rows: list[int] = chosen.tolist()
        return replace(
            self,
            ids=tuple(self.ids[i] for i in rows),
            labels=self.labels[chosen],
            images=self.images.subset(chosen) if isinstance(self.images, ImageStore) else Subset(self.images, rows),
            groups={name: tuple(column[i] for i in rows) for name, column in self.groups.items()},
        )


@dataclass(frozen=True, eq=False)
class Source:
    """A dataset with its three splits.

    Attributes:
        spec: the text that it was loaded from, paths made absolute.
        classes: class names; labels index them.
        train: what the model was trained on, or a part of it.
        val: never trained on; calibrates.
        test: never trained on; measures.
        deterministic: a sample read twice is the same (False where a dataset's own transform may be random).
        ready: samples are tensors already, no transform applies.
        split: who decided what is trained on, in words.
        drawn: this tool did, and no one has stated that models were trained on just that.
        unused: what is in no split, since ``train=`` or ``split=`` has left it out; None where nothing is.
    """

    spec: str
    classes: tuple[str, ...]
    train: Split
    val: Split
    test: Split
    deterministic: bool = True
    ready: bool = False
    split: str = "the source's own"
    drawn: bool = False
    unused: Split | None = None

    def listing(self) -> pd.DataFrame:
        """One row a sample: ``id``, ``split``, ``class``, and the group columns."""
        tables = [
            pd.DataFrame(
                {"id": split.ids, "split": name, "class": [self.classes[i] for i in split.labels], **split.groups}
            )
            for name, split in {"train": self.train, "val": self.val, "test": self.test}.items()
        ]
        return pd.concat(tables, ignore_index=True)

    @cached_property
    def digest(self) -> str:
        r"""SHA-256 (hex) over the sorted lines ``split\tid\tlabel name``: the samples of each split, not the pixels."""
        splits = {"train": self.train, "val": self.val, "test": self.test}
        lines = sorted(
            f"{name}\t{i}\t{self.classes[label]}"
            for name, split in splits.items()
            for i, label in zip(split.ids, split.labels.tolist(), strict=True)
        )
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    @cached_property
    def samples_digest(self) -> str:
        r"""SHA-256 (hex) over the sorted lines ``id\tlabel name`` of all samples: the same in whatever way it is split.

        With it an id names one sample: ``train/17`` of two datasets are two samples.
        """
        splits = filter(None, (self.train, self.val, self.test, self.unused))
        lines = sorted(
            f"{i}\t{self.classes[label]}"
            for split in splits
            for i, label in zip(split.ids, split.labels.tolist(), strict=True)
        )
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def stratified(labels: NDArray[Any], amount: int | float, seed: int) -> Indices:
    r"""Draw a random sample in which each class keeps its fraction, and return its sorted indices.

    Of ``n`` samples in all, class ``c`` gives ``n · N_c / N``, rounded by the largest remainder so that the sizes sum
    to ``n`` exactly. A class may give none when it is small.

    Args:
        labels: ``[N]`` class of each sample.
        amount: an ``int`` is a number of samples, a ``float`` a fraction in ``[0, 1]`` (rounded to whole samples).
        seed: of the permutation within each class.

    Raises:
        UnlearnError: more samples asked for than there are, or a negative number.

    >>> labels = np.array([0, 0, 0, 0, 1, 1])
    >>> labels[stratified(labels, 0.5, seed=0)]
    array([0, 0, 1])
    """
    total = len(labels)
    n = round(amount * total) if isinstance(amount, float) else amount
    if not 0 <= n <= total:
        raise UnlearnError(f"can't draw {n} of {total} samples: ask for 0 to {total}")
    classes, members = np.unique(labels, return_inverse=True)
    counts = np.bincount(members, minlength=len(classes))
    sizes, remainders = np.divmod(n * counts, max(total, 1))
    sizes[np.argsort(-remainders, kind="stable")[: n - sizes.sum()]] += 1
    random = np.random.default_rng(seed)
    by_class = np.split(np.argsort(members, kind="stable"), np.cumsum(counts))[:-1]
    chosen = [random.permutation(rows)[:size] for rows, size in zip(by_class, sizes, strict=True)]
    return np.sort(np.concatenate([np.empty(0, np.int64), *chosen]))


def rest(total: int, indices: Indices) -> Indices:
    """The indices below ``total`` that are not among ``indices [B]``, sorted."""
    return np.setdiff1d(np.arange(total), indices)


def check_classes(classes: tuple[str, ...], splits: Mapping[str, Split]) -> None:
    """Refuse a class that is trained on and can't be tested, or tested and never trained on.

    Raises:
        UnlearnError: names the classes.
    """
    trained = set(splits["train"].labels.tolist())
    # Where there is a test split it is the one that measures; otherwise it will be drawn from the validation split.
    tested = set(splits["test" if "test" in splits else "val"].labels.tolist())
    if untested := trained - tested:
        names = shortlist(classes[label] for label in sorted(untested))
        raise UnlearnError(f"no test sample of the classes {names}: add some, or take them out of training")
    if untrained := tested - trained:
        names = shortlist(classes[label] for label in sorted(untrained))
        raise UnlearnError(f"no training sample of the classes {names}: take them out of the test set, or rename them")
