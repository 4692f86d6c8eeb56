"""WebDataset shards: uncompressed tar files, each image read by its offset in its shard."""

import re
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mlflow_unlearn.cache import Arrays
from mlflow_unlearn.data._index import indexed, pack, unpack
from mlflow_unlearn.data._layouts import Listing, class_order
from mlflow_unlearn.data.source import ImageStore, Split
from mlflow_unlearn.errors import UnlearnError, did_you_mean, shortlist
from mlflow_unlearn.parsing import load_json, read_text

_SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_IMAGES = ("jpg", "jpeg", "png")
_PACKED = r"\.(tar\.\w+|tgz|tbz2?|txz)$"
_PACKED_STARTS = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")  # gzip, bzip2, xz, zstd


def list_shards(root: Path) -> Listing:
    """List a folder of shards: a sample is ``KEY.jpg``, ``.jpeg`` or ``.png`` with its class in ``KEY.cls``.

    A shard belongs to the split that its folder or a word of its name states; where none does, nothing is split.
    The class is a name, or the number of a line of ``classes.txt`` from 0. A sample's id is ``SHARD/KEY``.

    Raises:
        UnlearnError: there are no shards, one is missing, compressed, truncated or of no split, or a sample is
            incomplete, occurs twice or has an unknown class.
    """
    shards = _shards_by_split(root)
    found = {split: indexed(root, split, names, partial(_scan, root, names)) for split, names in shards.items()}
    classes, numbers = _numbered(root, {split: unpack(index["classes"]) for split, index in found.items()})
    splits = {}
    for split, index in found.items():
        paths = [str(root / name) for name in shards[split]]
        stems = [name.removesuffix(".tar") for name in shards[split]]
        samples = zip(index["shard"].tolist(), unpack(index["keys"]), strict=True)
        ids = tuple(f"{stems[shard]}/{key}" for shard, key in samples)
        members = _Members(paths, ids, index["shard"], index["offset"], index["size"])
        images = ImageStore(_Member.read, members, file=_Member.file)
        splits[split] = Split(ids, numbers[split][index["label"]], images)
    return classes, splits


class _Member(NamedTuple):
    """The image of one sample in its shard."""

    id: str
    shard: str
    offset: int
    size: int

    def __repr__(self) -> str:
        return repr(self.id)

    def file(self) -> Path:
        """The shard's path."""
        return Path(self.shard)

    def read(self) -> bytes:
        """The bytes of the image.

        Raises:
            UnlearnError: the shard has gone, or has become shorter.
        """
        try:
            with open(self.shard, "rb", buffering=0) as file:
                file.seek(self.offset)
                data = file.read(self.size)
        except OSError as error:
            raise UnlearnError(
                f"can't read {self!r} from the shard {self.shard!r} ({error.strerror}): put it back and start again"
            ) from error
        if len(data) < self.size:
            raise UnlearnError(f"the shard {self.shard!r} is truncated now, within {self!r}: copy it again")
        return data


@dataclass(frozen=True)
class _Members:
    """The images of all samples of a split, without an object for each."""

    shards: Sequence[str]
    ids: Sequence[str]
    shard: NDArray[np.int64]
    offset: NDArray[np.int64]
    size: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> _Member:
        shard = self.shards[self.shard[index]]
        return _Member(self.ids[index], shard, int(self.offset[index]), int(self.size[index]))


def _shards_by_split(root: Path) -> dict[str, list[str]]:
    """Split → its shards, relative to ``root``."""
    if not root.is_dir():
        raise UnlearnError(f"no folder {str(root)!r}: give the path of a folder of tar shards")
    folders = ["", *(f"{name}/" for name in _SPLITS if (root / name).is_dir())]
    files = [f"{folder}{path.name}" for folder in folders for path in sorted((root / folder).iterdir())]
    if packed := [name for name in files if re.search(_PACKED, name)]:
        raise UnlearnError(f"compressed shards below {str(root)!r}: {shortlist(packed)}: unpack them to plain .tar")
    names = [name for name in files if name.endswith(".tar")]
    if not names:
        raise UnlearnError(f"no shard in {str(root)!r}: put train-000000.tar, … and test-000000.tar, … there")
    _require(root, names)
    shards: dict[str, list[str]] = {}
    for name in names:
        words = re.findall("[a-z]+", name.removesuffix(".tar").lower())
        shards.setdefault(next((_SPLITS[word] for word in words if word in _SPLITS), "all"), []).append(name)
    if "all" in shards and len(shards) > 1:
        raise UnlearnError(
            f"the shards {shortlist(shards['all'])} of {str(root)!r} belong to no split, and others do: "
            "name all of them after train, val or test, or none"
        )
    if "all" not in shards and ("train" not in shards or len(shards) == 1):
        raise UnlearnError(f"{str(root)!r} has shards of {shortlist(shards)} only: add train, and test or val")
    return shards


def _require(root: Path, names: Sequence[str]) -> None:
    """Check that none is missing: a sequence has no gap, ``3-of-8`` has seven others, WebDataset's index lists all."""
    numbered: dict[tuple[str, str], list[str]] = {}
    for name in names:
        if match := re.fullmatch(r"(.*?)(\d+)((?:-of-\d+)?\.tar)", name):
            numbered.setdefault((match[1], match[3]), []).append(match[2])
    missing = []
    for (before, behind), found in numbered.items():
        numbers = sorted(map(int, found))
        if total := re.search(r"-of-(\d+)", behind):  # counted from 0 or from 1
            numbers = [-1, *numbers, int(total[1])] if numbers[-1] < int(total[1]) else [0, *numbers]
        gaps = [number for low, high in pairwise(numbers) for number in range(low + 1, min(high, low + 12))]
        missing += [f"{before}{number:0{len(found[0])}}{behind}" for number in gaps]
    for path in sorted(root.glob("*.json")):
        try:
            index = load_json(path.read_bytes())
            listed = [str(shard["url"]) for shard in index["shardlist"]]
        except (OSError, ValueError, KeyError, TypeError):
            continue  # some other file
        missing += [url for url in listed if "://" not in url and not (root / url).is_file()]
    if missing:
        raise UnlearnError(
            f"shards missing below {str(root)!r}: {shortlist(dict.fromkeys(missing))}: "
            "copy them there, or number the others without a gap"
        )


def _scan(root: Path, shards: Sequence[str]) -> Arrays:
    """The samples of these shards, in order."""
    keys: list[str] = []
    rows: list[tuple[int, int, int, int]] = []
    classes: dict[str, int] = {}
    for number, shard in enumerate(shards):
        for key, image, label in _samples(root, shard):
            keys.append(key)
            rows.append((number, image.offset_data, image.size, classes.setdefault(label, len(classes))))
    columns = np.array(rows, np.int64).reshape(-1, 4).T
    named = dict(zip(("shard", "offset", "size", "label"), columns, strict=True))
    return {"keys": pack(keys), "classes": pack(classes), **named}


def _samples(root: Path, shard: str) -> Iterator[tuple[str, tarfile.TarInfo, str]]:
    """Key, image and the text of the class."""
    path = str(root / shard)
    with open(path, "rb") as file:
        if file.read(6).startswith(_PACKED_STARTS):
            raise UnlearnError(f"the shard {path!r} is compressed: unpack it to a plain .tar")
        file.seek(0)
        found = _by_key(file, path)
        for key, members in found.items():
            if missing := [what for what in ("image", "cls") if what not in members]:
                what = "no image (.jpg, .jpeg or .png)" if missing[0] == "image" else "no class (.cls)"
                raise UnlearnError(f"the sample {key!r} of the shard {path!r} has {what}: add it or drop the sample")
            file.seek(members["cls"].offset_data)
            label = file.read(members["cls"].size).decode("utf-8", "replace").strip()
            if not label or "\0" in label:
                raise UnlearnError(f"the class of the sample {key!r} of the shard {path!r} is not a text: write one")
            yield key, members["image"], label


def _by_key(file: IO[bytes], path: str) -> dict[str, dict[str, tarfile.TarInfo]]:
    """Key → image and class; what else a sample has is left out."""
    found: dict[str, dict[str, tarfile.TarInfo]] = {}
    try:
        # The errors of truncation are tarfile's, but for one that falls between two members: then the end is missing.
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                match = re.fullmatch(r"(?:\./)?((?:.*/)?[^./]+)\.([^/]+)", member.name)
                kind = match[2].lower() if match else ""
                kind = "image" if kind in _IMAGES else kind
                if match is None or kind not in ("image", "cls") or not member.isreg():
                    continue
                if kind in found.setdefault(match[1], {}):
                    raise UnlearnError(f"the shard {path!r} has the sample {match[1]!r} twice: give each a key")
                found[match[1]][kind] = member
            file.seek(tar.offset)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError("it is truncated")
    except tarfile.TarError as error:
        raise UnlearnError(f"the shard {path!r} is truncated or not a tar file ({error}): copy it again") from error
    return found


def _numbered(root: Path, texts: Mapping[str, Sequence[str]]) -> tuple[tuple[str, ...], dict[str, NDArray[np.int64]]]:
    """The classes, and for each split the index of each text that its labels have."""
    path = root / "classes.txt"
    if not path.is_file():
        classes = class_order(text for split in texts.values() for text in split)
        index = {name: i for i, name in enumerate(classes)}
    else:
        try:
            classes = tuple(filter(None, map(str.strip, read_text(path).splitlines())))
        except (OSError, ValueError) as error:
            raise UnlearnError(f"can't read the classes {str(path)!r} ({error}): save them as UTF-8 text") from error
        if twice := sorted({name for name in classes if classes.count(name) > 1}):
            raise UnlearnError(f"{str(path)!r} has the classes {shortlist(twice)} twice: give each a name of its own")
        # Numbers are lines, also where a class is called by a number.
        index = {name: i for i, name in enumerate(classes)} | {str(i): i for i in range(len(classes))}
    for name, split in texts.items():
        if unknown := [text for text in split if text not in index]:
            raise UnlearnError(
                f"the shards of {name!r} have the class {shortlist(unknown)}, neither a line of {str(path)!r} nor the "
                f"number of one: {did_you_mean(unknown[0], classes)}"
            )
    return classes, {split: np.array([index[text] for text in those], np.int64) for split, those in texts.items()}
