"""Folders as datasets are distributed: each layout has a marker and a function that lists its splits."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, partial
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mlflow_unlearn.cache import Arrays
from mlflow_unlearn.data._index import indexed, pack, unpack
from mlflow_unlearn.data.source import ImageStore, Split
from mlflow_unlearn.errors import UnlearnError, shortlist
from mlflow_unlearn.parsing import whole_number

Listing = tuple[tuple[str, ...], dict[str, Split]]
"""The classes, and the splits by name: ``train`` with ``val`` and/or ``test``, or ``all`` where nothing is split."""

_VAL_FOLDERS = ("val", "valid", "validation")
_IMAGENET = "ILSVRC/Data/CLS-LOC"


def list_folder(root: Path) -> Listing:
    """List a folder by the layout that its marker belongs to.

    Raises:
        UnlearnError: there is no such folder, its layout is unknown, or files that its tables name are missing.
    """
    if not root.is_dir():
        raise UnlearnError(f"no folder {str(root)!r}: give the path of a folder of images")
    return next(layout for marker, layout in _LAYOUTS if marker(root))(root)


def read_table(path: Path, columns: Sequence[str] = (), *, tabs: Sequence[str] | None = None) -> Any:
    """A CSV as a data frame of strings.

    Args:
        path: of the file.
        columns: that it must have.
        tabs: names of the first columns of a file that has tabs between them, and no header.

    Raises:
        UnlearnError: the file is missing or unreadable, or lacks one of the columns.
    """
    form = {"sep": "\t", "header": None, "names": tabs, "usecols": range(len(tabs))} if tabs is not None else {}
    try:
        if path.exists() and not path.is_file():
            raise OSError("it is not a file")
        table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig", **form)
    except (OSError, ValueError) as error:  # pandas' parser errors and UnicodeDecodeError are ValueErrors
        raise UnlearnError(f"can't read the table {str(path)!r} ({error}): give a CSV file in UTF-8") from error
    if not isinstance(table.index, pd.RangeIndex):
        raise UnlearnError(f"{str(path)!r} has rows with more fields than its header: put commas in double quotes")
    if missing := [column for column in columns if column not in table.columns]:
        raise UnlearnError(
            f"{str(path)!r} has no column {shortlist(missing)}: its columns are {shortlist(table.columns)}"
        )
    return table


def file_split(
    root: Path,
    files: Sequence[str],
    labels: Iterable[int],
    ids: Iterable[str] | None = None,
    groups: Mapping[str, tuple[str, ...]] | None = None,
) -> Split:
    """A split of image files.

    Args:
        root: of the data set.
        files: paths relative to ``root``.
        labels: class of each, ``[N]``.
        ids: of the samples; by default their paths.
        groups: further columns, ``[N]`` each.
    """
    names = tuple(files)  # one text a sample, which ids and keys share
    images = ImageStore(partial(_bytes, str(root)), names, file=partial(Path, root))
    return Split(tuple(ids) if ids is not None else names, np.fromiter(labels, np.int64), images, groups or {})


def relative(paths: Iterable[str], root: Path) -> list[str]:
    """Paths below ``root`` as posix paths relative to it (by slices: ``pathlib`` takes 20 s for ImageNet)."""
    return [path[len(str(root)) + 1 :].replace(os.sep, "/") for path in paths]


def require_files(root: Path, files: Iterable[str]) -> None:
    """Check that the files exist.

    Raises:
        UnlearnError: lists those that don't.
    """

    @cache  # one scan a folder: asking for each of a million files takes minutes on a network disk
    def names(folder: str) -> frozenset[str]:
        path = root / folder
        return frozenset(os.listdir(path)) if path.is_dir() else frozenset()

    missing = [file for file in files if os.path.basename(file) not in names(os.path.dirname(file))]
    if missing:
        raise UnlearnError(
            f"files missing below {str(root)!r}: {shortlist(missing)}: copy them there or drop their rows"
        )


def class_order(names: Iterable[str]) -> tuple[str, ...]:
    """Class names in index order: numbers by value, else by alphabet.

    >>> class_order(["10", "9", "9"]), class_order(["b", "a"])
    (('9', '10'), ('a', 'b'))
    """
    unique = set(names)
    numbers = {name: whole_number(name) for name in unique}
    return tuple(sorted(unique) if None in numbers.values() else sorted(unique, key=int))


def codes(names: Iterable[str], classes: tuple[str, ...]) -> list[int]:
    """The index of each class name."""
    index = {name: i for i, name in enumerate(classes)}
    return [index[name] for name in names]


def _bytes(root: str, file: str) -> bytes:
    with open(os.path.join(root, file), "rb") as image:
        return image.read()


def _class_folders(folder: Path) -> set[str]:
    return {entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith(".")}


def _image_folder(root: Path, folder: str, classes: tuple[str, ...]) -> Split:
    """A folder with one folder a class, as torchvision's ImageFolder reads it."""
    names = _class_folders(root / folder)
    level = [(label, name) for label, name in enumerate(classes) if name in names]
    found: dict[tuple[int, str], list[str]] = {}
    for depth in count():  # a folder changes with its own entries, not with those of the folders in it
        if not level:
            break
        folders = [name for _, name in level]
        index = indexed(root / folder, f"depth {depth}", folders, partial(_scan, root / folder, folders))
        files = iter(unpack(index["files"]))
        found |= {one: list(islice(files, size)) for one, size in zip(level, index["sizes"].tolist(), strict=True)}
        level = [(level[i][0], name) for i, name in zip(index["above"], unpack(index["below"]), strict=True)]
    prefix = "" if folder == "." else f"{folder}/"
    samples = [(f"{prefix}{below}/{file}", label) for label, below in sorted(found) for file in found[label, below]]
    return file_split(root, [path for path, _ in samples], (label for _, label in samples))


def _scan(place: Path, folders: Sequence[str]) -> Arrays:
    """The images in these folders, and the folders below."""
    from torchvision.datasets.folder import IMG_EXTENSIONS  # takes a second to import

    files: list[str] = []
    below: list[str] = []
    above, sizes = [], []
    for number, folder in enumerate(folders):
        with os.scandir(place / folder) as scanned:
            entries = sorted((entry.name, entry.is_dir()) for entry in scanned)
        images = [name for name, is_dir in entries if not is_dir and name.lower().endswith(IMG_EXTENSIONS)]
        inner = [f"{folder}/{name}" for name, is_dir in entries if is_dir]
        files += images
        sizes.append(len(images))
        below += inner
        above += [number] * len(inner)
    return {
        "files": pack(files),
        "sizes": np.array(sizes, np.int64),
        "below": pack(below),
        "above": np.array(above, np.int64),
    }


def _has_images(root: Path, classes: tuple[str, ...], splits: dict[str, Split]) -> Listing:
    present = set(np.concatenate([split.labels for split in splits.values()]).tolist())
    if empty := [name for label, name in enumerate(classes) if label not in present]:
        from torchvision.datasets.folder import IMG_EXTENSIONS

        raise UnlearnError(
            f"no image in the class folders {shortlist(empty)} of {str(root)!r}: "
            f"fill or remove them (valid endings: {', '.join(IMG_EXTENSIONS)})"
        )
    return classes, splits


def _split_folders(root: Path) -> dict[str, str]:
    """Split → folder. One without folders in it is a class called "train" (of vehicles), or an unlabelled test set."""
    names = {"train": "train", "test": "test"}
    names["val"] = next((name for name in _VAL_FOLDERS if (root / name).is_dir()), "val")
    return {split: name for split, name in names.items() if (root / name).is_dir() and _class_folders(root / name)}


def _split(root: Path) -> Listing:
    folders = _split_folders(root)
    if len(folders) == 1:
        raise UnlearnError(f"{str(root)!r} has train/ and no test/ or val/: add one, or give the class folders alone")
    classes = tuple(sorted(set[str]().union(*(_class_folders(root / folder) for folder in folders.values()))))
    return _has_images(
        root, classes, {split: _image_folder(root, folder, classes) for split, folder in folders.items()}
    )


def _plain(root: Path) -> Listing:
    classes = tuple(sorted(_class_folders(root)))
    if not classes:
        raise UnlearnError(
            f"{str(root)!r} holds no class folders: known layouts are train/ with test/ or val/, one folder a class, "
            "and TinyImageNet, MUFAC and ImageNet1k (Kaggle) as distributed"
        )
    return _has_images(root, classes, {"all": _image_folder(root, ".", classes)})


def _tiny_imagenet(root: Path) -> Listing:
    table = read_table(root / "val/val_annotations.txt", tabs=("file", "wnid"))
    return _with_val(root, "train", [f"val/images/{name}" for name in table["file"]], table["wnid"])


def _imagenet_kaggle(root: Path) -> Listing:
    table = read_table(root / "LOC_val_solution.csv", ("ImageId", "PredictionString"))
    files = [f"{_IMAGENET}/val/{name}.JPEG" for name in table["ImageId"]]
    # "n01751748 111 108 230 269 …": the class, then boxes.
    wnids = [boxes.split(" ", 1)[0] for boxes in table["PredictionString"]]
    return _with_val(root, f"{_IMAGENET}/train", files, wnids)


def _with_val(root: Path, train: str, files: list[str], wnids: Iterable[str]) -> Listing:
    """ImageNet's ways: a folder a class to train on, and a flat, listed validation set to test on."""
    if not (root / train).is_dir():
        raise UnlearnError(f"no folder {str(root / train)!r}: unpack the training images there")
    classes, names = tuple(sorted(_class_folders(root / train))), list(wnids)
    if unknown := sorted(set(names) - set(classes)):
        raise UnlearnError(
            f"no training folder for the classes {shortlist(unknown)} of the validation list: unpack all of them"
        )
    require_files(root, files)
    splits = {"train": _image_folder(root, train, classes), "test": file_split(root, files, codes(names, classes))}
    return _has_images(root, classes, splits)


def _mufac(root: Path) -> Listing:
    columns = ("family_id", "person_id", "age_class", "image_path")
    tables = {split: read_table(root / f"custom_{split}_dataset.csv", columns) for split in ("train", "val", "test")}
    classes = class_order(name for table in tables.values() for name in table["age_class"])
    splits = {}
    for split, table in tables.items():
        files = [f"{split}_images/{name}" for name in table["image_path"]]
        require_files(root, files)
        groups = {name: tuple(table[name]) for name in table.columns if name not in ("age_class", "image_path")}
        # person_id counts from 1 in each family.
        groups["subject"] = tuple(table["family_id"] + "/" + table["person_id"])
        splits[split] = file_split(root, files, codes(table["age_class"], classes), groups=groups)
    return classes, splits


_LAYOUTS: tuple[tuple[Callable[[Path], bool], Callable[[Path], Listing]], ...] = (
    (lambda root: (root / "custom_train_dataset.csv").is_file(), _mufac),
    (lambda root: (root / "LOC_val_solution.csv").is_file() or (root / _IMAGENET).is_dir(), _imagenet_kaggle),
    (lambda root: (root / "val/val_annotations.txt").is_file(), _tiny_imagenet),
    (lambda root: "train" in _split_folders(root), _split),
    (lambda root: True, _plain),
)
