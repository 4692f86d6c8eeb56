"""Sources by name: ``digits``, ``torchvision:…``, ``folder:…``, ``shards:…``, ``csv:…``, ``python:…``.

A new source is one function that lists its splits, and one line in ``_SCHEMES``.
"""

import inspect
import os
import re
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from torch.utils.data import ConcatDataset, Dataset, TensorDataset

from mlflow_unlearn.data._layouts import (
    class_order,
    codes,
    file_split,
    list_folder,
    read_table,
    relative,
    require_files,
)
from mlflow_unlearn.data._shards import list_shards
from mlflow_unlearn.data.batching import leaves
from mlflow_unlearn.data.functions import import_function, users_code
from mlflow_unlearn.data.ids import read_ids
from mlflow_unlearn.data.source import ImageStore, Indices, Source, Split, check_classes, rest, stratified
from mlflow_unlearn.data.spec import CSV_COLUMNS, DRAWN, SpecOptions, parse_options, resolved, table_columns
from mlflow_unlearn.data.splits import Splits, labels_of
from mlflow_unlearn.errors import UnlearnError, did_you_mean, shortlist

__all__ = ["Split", "Source", "load_source", "stratified"]


class _Loaded(NamedTuple):
    """What a scheme finds: ``train`` with ``val`` and/or ``test``, or ``all`` where nothing is split."""

    classes: tuple[str, ...]
    splits: dict[str, Split]
    deterministic: bool = True
    ready: bool = False


class _Scheme(NamedTuple):
    """How the text behind a scheme's colon is read, and how it is recorded: it is read again in another folder."""

    load: Callable[[str], _Loaded]
    recorded: Callable[[str], str] = str


def load_source(spec: str) -> Source:
    """Load a source by its spec.

    ``,seed=N`` (0) is the seed of every random split and ``,train=20%`` a stratified fraction of the training data. A
    source without a validation split has its *test* split halved, stratified; one without any split is split into 60 %
    (or that fraction) to train on and equal halves of the rest. ``,split=FILE`` lists the ids that are trained on
    instead, ``,split=drawn`` states that a model was trained on just what is drawn.

    Args:
        spec: ``digits``, ``torchvision:NAME@ROOT``, ``folder:PATH``, ``shards:PATH``, ``csv:PATH`` (with ``,file=``,
            ``,label=`` and ``,id=``, names of columns) or ``python:module:function``, with options behind commas.

    Raises:
        UnlearnError: unknown scheme or option, missing or inconsistent data.
    """
    options = parse_options(spec)
    body = options.body
    name, colon, text = body.partition(":")
    if name not in _SCHEMES:
        near = _scheme_of_path(body)
        meant = did_you_mean(name, _SCHEMES) if near is None else f"did you mean '{near}:{spec}'?"
        raise UnlearnError(f"unknown data source {spec!r}: {meant}")
    scheme = _SCHEMES[name]
    try:
        loaded = scheme.load(text)
    except OSError as error:
        raise UnlearnError(f"{spec!r} cannot be read ({error.strerror or error}): correct its path") from error
    if "all" not in loaded.splits and not loaded.ready:  # a caller's own sets may well have no test sample of a class
        check_classes(loaded.classes, loaded.splits)
    train, val, test, unused = _three_splits(loaded.splits, options)
    for part, split in {"training": train, "validation": val, "test": test}.items():
        if len(split) == 0:
            raise UnlearnError(f"{spec!r} leaves the {part} set without samples: add data, or change its train=")
    ids = [*train.ids, *val.ids, *test.ids]
    if len(set(ids)) < len(ids):
        ids.sort()
        twice = sorted({one for one, other in zip(ids, ids[1:], strict=False) if one == other})
        raise UnlearnError(f"{spec!r} has ids that occur twice: {shortlist(twice)}: give each sample an id of its own")
    recorded = name + colon + scheme.recorded(text) + options.recorded
    made = Source.split
    if drawn := options.listed is None and (options.fraction is not None or "all" in loaded.splits):
        made = f"made by this tool: {len(train)} samples drawn for training, seed {options.seed}"
    elif options.listed is not None:
        made = f"by the list {str(options.listed)!r}"
    if stated := drawn and options.split == DRAWN:
        made += ", which a model was trained on, as stated"
    return Source(
        recorded,
        loaded.classes,
        train,
        val,
        test,
        loaded.deterministic,
        loaded.ready,
        split=made,
        drawn=drawn and not stated,
        unused=unused,
    )


def _absolute(path: str) -> str:
    return str(resolved(path))


def _absolute_root(text: str) -> str:
    name, _, folder = text.partition("@")
    return f"{name}@{resolved(folder)}"


def _scheme_of_path(path: str) -> str | None:
    """What reads a path that is there, given without it; None where none is."""
    if os.path.isdir(path):
        return "shards" if any(Path(path).glob("*.tar")) else "folder"
    return "csv" if os.path.isfile(path) and path.endswith(".csv") else None


def _absolute_table(text: str) -> str:
    path, _ = table_columns(text)
    return f"{resolved(path)}{text[len(path) :]}"


def _three_splits(splits: dict[str, Split], options: SpecOptions) -> tuple[Split, Split, Split, Split | None]:
    """Training, validation and test split, and the training data that are left out.

    Validation data never come out of what a model was trained on.
    """
    whole, seed, fraction = "all" in splits, options.seed, options.fraction
    pool = splits["all" if whole else "train"]
    if options.listed is not None:
        chosen = _listed(pool, options.listed)
    elif whole or fraction is not None:
        chosen = stratified(pool.labels, 0.6 if fraction is None else fraction, seed)
    else:
        chosen = None
    train, unused = pool, None
    if chosen is not None:
        train, unused = pool.subset(chosen), pool.subset(rest(len(pool), chosen))
    if whole and unused is not None:
        return train, *_halves(unused, seed), None
    if "val" in splits and "test" in splits:
        return train, splits["val"], splits["test"], unused
    return train, *_halves(splits["test" if "test" in splits else "val"], seed), unused


def _listed(pool: Split, path: Path) -> Indices:
    """The indices ``[N]`` of what a file lists as trained on."""
    manifest = read_ids(path, "list of training ids")
    named = manifest.mask(pool.ids)
    if (unknown := len(set(manifest.ids)) - int(named.sum())) > 0:
        missing = shortlist(sorted(set(manifest.ids) - set(map(manifest.key, pool.ids))))
        raise UnlearnError(
            f"{str(path)!r} lists {unknown} ids that the source does not have, or not to train on: {missing}"
        )
    return np.flatnonzero(named)


def _halves(split: Split, seed: int) -> tuple[Split, Split]:
    first = stratified(split.labels, len(split) // 2, seed)
    return split.subset(first), split.subset(rest(len(split), first))


def _digits(body: str) -> _Loaded:
    from sklearn.datasets import load_digits  # takes a second to import

    if body:
        raise UnlearnError(f"digits:{body} has something after the colon: write digits")
    data = load_digits()
    pixels = np.rint(data.images * 255 / 16).astype(np.uint8)
    labels = data.target.astype(np.int64)
    ids = tuple(f"digits/{i}" for i in range(len(labels)))
    return _Loaded(tuple("0123456789"), {"all": Split(ids, labels, ImageStore(Image.fromarray, pixels))})


# What torchvision's own docstrings leave out.
_TORCHVISION_FILES = {
    "ImageNet": "train/ and val/ with one folder a WordNet id, and meta.bin or the devkit archive",
    "SVHN": "train_32x32.mat and test_32x32.mat",
}


def _torchvision(body: str) -> _Loaded:
    import torchvision  # takes a second to import

    name, _, folder = body.partition("@")
    kind = getattr(torchvision.datasets, name, None)
    if not inspect.isclass(kind) or not folder:
        raise UnlearnError(
            f"torchvision:{body} is not a dataset: write torchvision:NAME@ROOT with one of torchvision's names "
            f"({did_you_mean(name, torchvision.datasets.__all__)})"
        )
    root = resolved(folder)
    arguments = inspect.signature(kind).parameters
    choices: dict[str, dict[str, Any]] = {}
    if "train" in arguments:
        choices = {"train": {"train": True}, "test": {"train": False}}
    elif "split" in arguments:
        choices = {split: {"split": split} for split in ("train", "val", "test")}
    never = {"download": False} if "download" in arguments else {}
    found = {split: _torchvision_split(kind, root, choice | never) for split, choice in choices.items()}
    datasets = {split: dataset for split, dataset in found.items() if dataset is not None}
    if "train" not in datasets or len(datasets) == 1:
        raise UnlearnError(f"torchvision's {name} has no train and test split: export it as folders, use folder:PATH")
    labels = {split: _labels(dataset, f"{name} {split}") for split, dataset in datasets.items()}
    # ImageNet has two classes called "crane": its WordNet ids are unique.
    names: Any = getattr(datasets["train"], "wnids", None) or getattr(datasets["train"], "classes", ())
    splits = {}
    for split, dataset in datasets.items():
        if hasattr(dataset, "samples"):
            splits[split] = file_split(root, relative((path for path, _ in dataset.samples), root), labels[split])
        else:
            ids = tuple(f"{split}/{i}" for i in range(len(labels[split])))
            splits[split] = Split(ids, labels[split], ImageStore(partial(_image, dataset), range(len(ids))))
    return _Loaded(_numbered(labels.values(), names), splits)


def _torchvision_split(kind: Any, root: Path, arguments: dict[str, Any]) -> Any:
    """The dataset, or None where it has no such split."""
    try:
        return kind(str(root), **arguments)
    except Exception as error:  # torchvision raises RuntimeError, FileNotFoundError, NotADirectoryError, …
        if isinstance(error, ValueError) and "for argument split" in str(error):
            return None
        documented = re.search(r"root \(.*?\): (.*?)(?:\n\s+\w+ \(|\n\n|$)", kind.__doc__ or "", re.DOTALL)
        text = documented[1] if documented else "its files"
        files = _TORCHVISION_FILES.get(kind.__name__) or " ".join(text.split())
        raise UnlearnError(
            f"torchvision can't read {kind.__name__} at {str(root)!r} ({error}): nothing is downloaded, "
            f"so put there what torchvision expects: {files}"
        ) from error


def _image(dataset: Any, index: int) -> Image.Image:
    image: Image.Image = dataset[index][0]
    return image


def _numbered(labels: Iterable[Indices], names: Sequence[str] = ()) -> tuple[str, ...]:
    """Class names, or numbers where the names don't cover the labels."""
    count = 1 + max(int(split.max(initial=-1)) for split in labels)
    return tuple(names) if len(names) >= count else tuple(map(str, range(count)))


def _csv(body: str) -> _Loaded:
    text, named = table_columns(body)
    path = resolved(text)
    root, table = path.parent, read_table(path)
    file, label, own_id = (named[column] for column in CSV_COLUMNS)
    needed = [file, label] + [own_id] * (own_id != CSV_COLUMNS["id"])
    if missing := [name for name in needed if name not in table.columns]:
        raise UnlearnError(
            f"{str(path)!r} has no column {shortlist(missing)}: its columns are {shortlist(table.columns)}; name "
            "those of the files and the labels behind the path: ,file=NAME,label=NAME"
        )
    if len({file, label, own_id}) < len(named):
        raise UnlearnError(f"csv:{body} names one column for two things: file=, label= and id= are different ones")
    given = [name for name in (file, label, own_id) if name in table.columns]
    if len(table) == 0 or any((table[name] == "").any() for name in given):
        raise UnlearnError(
            f"{str(path)!r} has no rows, or some with an empty {file}, {label} or {own_id}: fill these in"
        )
    files = [os.path.relpath(p, root) if os.path.isabs(p) else os.path.normpath(p) for p in table[file]]
    files = [Path(file).as_posix() for file in files]
    require_files(root, files)
    classes = class_order(table[label])
    groups = {name: tuple(table[name]) for name in table.columns if name not in (*given, "split")}
    ids = table[own_id] if own_id in table.columns else None
    whole = file_split(root, files, codes(table[label], classes), ids, groups)
    if "split" not in table.columns:
        return _Loaded(classes, {"all": whole})
    splits = table["split"].to_numpy()
    if unknown := sorted(set(splits) - {"train", "val", "test"}):
        raise UnlearnError(f"{str(path)!r} has the splits {shortlist(unknown)}: valid values: 'train', 'val', 'test'")
    if missing := sorted({"train", "test"} - set(splits)):
        raise UnlearnError(f"{str(path)!r} has no row of the split {shortlist(missing)}: add some or drop the column")
    names = [name for name in ("train", "val", "test") if name in splits]
    return _Loaded(classes, {name: whole.subset(np.flatnonzero(splits == name)) for name in names})


def _python(body: str) -> _Loaded:
    given = import_function(body)()
    if not isinstance(given, Splits):
        raise UnlearnError(f"python:{body} returned a {type(given).__name__}: return mlflow_unlearn.Splits")
    datasets: dict[str, Dataset[Any]] = {name: getattr(given, name) for name in ("retain", "forget", "val", "test")}
    labels = {name: _labels(dataset, f"python:{body} {name}") for name, dataset in datasets.items()}
    ids = {name: tuple(f"{name}/{i}" for i in range(len(labels[name]))) for name in datasets}
    train = Split(
        ids["retain"] + ids["forget"],
        np.concatenate([labels["retain"], labels["forget"]]),
        ConcatDataset([given.retain, given.forget]),
        {"split": ("retain",) * len(ids["retain"]) + ("forget",) * len(ids["forget"])},
    )
    splits = {"train": train} | {name: Split(ids[name], labels[name], datasets[name]) for name in ("val", "test")}
    fixed = all(type(leaf) is TensorDataset for dataset in datasets.values() for leaf in leaves(dataset))
    return _Loaded(_numbered(labels.values()), splits, deterministic=fixed, ready=True)


def _labels(dataset: Any, name: str) -> Indices:
    """One integer class from 0 a sample, checked."""
    with users_code(f"{name}: reading the labels", "each sample must be (image, integer)"):
        labels = labels_of(dataset).cpu().numpy()
    if labels.shape != (len(dataset),) or labels.min(initial=0) < 0:
        raise UnlearnError(
            f"{name}: labels of shape {labels.shape}, lowest {labels.min(initial=0)}, for {len(dataset)} samples: "
            "give one integer class from 0 a sample"
        )
    return labels


_SCHEMES = {
    "digits": _Scheme(_digits),
    "torchvision": _Scheme(_torchvision, _absolute_root),
    "folder": _Scheme(lambda path: _Loaded(*list_folder(resolved(path))), _absolute),
    "shards": _Scheme(lambda path: _Loaded(*list_shards(resolved(path))), _absolute),
    "csv": _Scheme(_csv, _absolute_table),
    "python": _Scheme(_python),
}
