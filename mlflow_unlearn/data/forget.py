"""Which training samples to forget: from a spec to indices, with every check that can be made before training."""

import csv
import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mlflow_unlearn.data.manifest import Manifest
from mlflow_unlearn.data.source import Indices, Source, stratified
from mlflow_unlearn.errors import UnlearnError, did_you_mean, shortlist
from mlflow_unlearn.parsing import LARGEST_LIST, read_text, whole_number

Mask = NDArray[np.bool_]
ReadRequest = Callable[[str], Manifest]

_FORMS = "a file of ids, random:10%, random:500 (with ,seed=N and ,plain), request:ID, class:NAME or group:COLUMN=VALUE"


def resolve_forget(spec: str, source: Source, training: Mask, read_request: ReadRequest) -> Indices:
    """The sorted training indices that a forget spec names.

    Args:
        spec: a file of ids (one a line, or a CSV with a column ``id``), ``random:10%`` or ``random:500`` (stratified
            unless ``,plain``; ``,seed=N``), ``request:ID``, ``class:NAME`` (or index), ``group:COLUMN=VALUE``.
        source: the data.
        training: ``[N]`` over ``source.train``: what the model version was trained on and has not forgotten yet.
        read_request: the manifest of a forget request.

    Raises:
        UnlearnError: bad spec, ids that are unknown, held out or not trained on, nothing or everything to forget.
    """
    scheme, colon, value = spec.partition(":")
    if colon and scheme == "random":
        chosen = _random(spec, source, training)
    elif colon and scheme == "request":
        chosen = _listed(read_request(value), source, training, spec)
    elif colon and scheme == "class":
        chosen = np.flatnonzero((source.train.labels == _class_index(value, source)) & training)
    elif colon and scheme == "group":
        chosen = np.flatnonzero(_group(value, source) & training)
    else:
        chosen = _listed(_read_ids(Path(os.path.expanduser(spec))), source, training, spec)
    if len(chosen) == 0:
        raise UnlearnError(f"{spec!r} names no sample that the model is still trained on: there is nothing to forget")
    if len(chosen) == training.sum():
        raise UnlearnError(f"{spec!r} names all {len(chosen)} training samples: keep some, or delete the model instead")
    return chosen


def retained(training: Mask, forget: Indices) -> Indices:
    """The sorted indices ``[R]`` that stay: those in ``training [N]`` and not in ``forget [F]``."""
    keep = training.copy()
    keep[forget] = False
    return np.flatnonzero(keep)


def _random(spec: str, source: Source, training: Mask) -> Indices:
    # A hundred digits are more than any count or seed has; from some thousands on Python refuses them.
    match = re.fullmatch(r"random:(\d{1,100}(?:\.\d+)?%|\d{1,100})((?:,seed=\d{1,100}|,plain)*)", spec)
    if not match:
        raise UnlearnError(f"{spec!r} is not a random forget set: write random:10% or random:500 (,seed=N ,plain)")
    seed = int((re.findall(r"seed=(\d+)", match[2]) or ["0"])[-1])
    candidates = np.flatnonzero(training)
    n = round(float(match[1][:-1]) / 100 * len(candidates)) if match[1].endswith("%") else int(match[1])
    if n > len(candidates):
        raise UnlearnError(f"{spec!r} asks for {n} of {len(candidates)} training samples: ask for fewer")
    if "plain" in match[2]:
        return np.sort(np.random.default_rng(seed).choice(candidates, n, replace=False))
    return candidates[stratified(source.train.labels[candidates], n, seed)]


def _class_index(name: str, source: Source) -> int:
    if name in source.classes:
        return source.classes.index(name)
    if (index := whole_number(name)) is not None and index < len(source.classes):
        return index
    raise UnlearnError(f"unknown class {name!r}: {did_you_mean(name, source.classes)}")


def _group(text: str, source: Source) -> Mask:
    column, equals, value = text.partition("=")
    groups = source.train.groups
    if not equals:
        raise UnlearnError(f"group:{text} names no value: write group:COLUMN=VALUE")
    if column not in groups:
        what = did_you_mean(column, groups) if groups else "the source has none"
        raise UnlearnError(f"unknown group column {column!r}: {what}")
    found = np.array([v == value for v in groups[column]], np.bool_)
    if not found.any():
        values = sorted(set(groups[column]))
        raise UnlearnError(f"no training sample with {column}={value!r}: {did_you_mean(value, values)}")
    return found


def _read_ids(path: Path) -> Manifest:
    if not path.is_file():
        raise UnlearnError(f"no forget set {str(path)!r}: give {_FORMS}")
    try:
        text = read_text(path, LARGEST_LIST)
        lines = [line for line in text.split("\n") if line.strip()]
        start = lines[0] if lines else ""
        header = next(csv.reader([start]), [])
    except (OSError, ValueError, csv.Error) as error:
        raise UnlearnError(f"can't read the list of ids {str(path)!r} ({error}): save it as UTF-8 text") from error
    if start.startswith("# salt=") or "id" in header:
        return Manifest.from_csv(path)
    if path.suffix == ".csv" and len(header) > 1:
        raise UnlearnError(f"{str(path)!r} has no column 'id': its columns are {shortlist(header)}")
    return Manifest(tuple(lines))


def _listed(manifest: Manifest, source: Source, training: Mask, spec: str) -> Indices:
    wanted, named = set(manifest.ids), manifest.mask(source.train.ids)
    held_out = [*source.val.ids, *source.test.ids]
    refused = [i for i, found in zip(held_out, manifest.mask(held_out), strict=True) if found]
    if named.sum() + len(refused) < len(wanted):
        unknown = sorted(wanted - set(map(manifest.key, (*source.train.ids, *held_out))))
        raise UnlearnError(f"{spec!r} names ids that the data source doesn't have: {shortlist(unknown)}")
    if refused:
        raise UnlearnError(f"{spec!r} names validation or test samples, never trained on: {shortlist(refused)}")
    if (gone := named & ~training).any():
        ids = [source.train.ids[i] for i in np.flatnonzero(gone)]
        raise UnlearnError(
            f"{spec!r} names samples that this model version wasn't trained on, such as those forgotten earlier: "
            f"{shortlist(ids)}"
        )
    return np.flatnonzero(named)
