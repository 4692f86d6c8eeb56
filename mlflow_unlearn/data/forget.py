"""Which training samples to forget: from a spec to indices, with every check that can be made before training."""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from mlflow_unlearn.data.ids import listed_ids, read_ids
from mlflow_unlearn.data.manifest import Manifest
from mlflow_unlearn.data.source import Indices, Source, Split, stratified
from mlflow_unlearn.errors import UnlearnError, did_you_mean, shortlist
from mlflow_unlearn.parsing import whole_number
from mlflow_unlearn.spelling import spelled

Mask = NDArray[np.bool_]
ReadRequest = Callable[[str], Manifest]

ELSEWHERE = ("untrained", "val", "test", "nowhere")


@dataclass(frozen=True)
class Selected:
    """The samples that a forget spec names, by where they lie.

    Attributes:
        indices: into ``source.train``, sorted: what the version was trained on and has not forgotten yet.
        elsewhere: how many more there are: ``untrained`` in the training split, which the version was not trained on or
            has forgotten; in ``val``; in ``test``; ``nowhere``, that is in no split or not in the source.
    """

    indices: Indices
    elsewhere: Mapping[str, int]


def resolve_forget(
    spec: str,
    source: Source,
    training: Mask,
    read_request: ReadRequest,
    manifest: Callable[[], Manifest | None] = lambda: None,
    *,
    lenient: bool = False,
) -> Selected:
    """The training samples that a forget spec names, and where the others lie that it names.

    Args:
        spec: a file of ids (one a line, or a CSV with a column ``id``), ``random:10%`` or ``random:500`` (stratified
            unless ``,plain``; ``,seed=N``), ``request:ID``, ``class:NAME`` (or index), ``group:COLUMN=VALUE``.
        source: the data.
        training: ``[N]`` over ``source.train``: what the model version was trained on and has not forgotten yet.
        read_request: the manifest of a forget request.
        manifest: of all that the version was trained on, which may lie elsewhere in the source by now.
        lenient: nothing may be left of what is named, as of a request that was fulfilled before.

    Raises:
        UnlearnError: bad spec, ids that are unknown, held out or not trained on, nothing or everything to forget, or
            samples that the version was trained on and that are not in the training split.
    """
    scheme, colon, value = spec.partition(":")
    if colon and scheme == "random":
        return _some(spec, Selected(_random(spec, source, training), dict.fromkeys(ELSEWHERE, 0)), training)
    listed: Manifest | None = None
    if colon and scheme == "class":
        matches = partial(_of_class, _class_index(value, source))
    elif colon and scheme == "group":
        matches = partial(_in_group, *_group(value, source, [source.train]))
    else:
        listed = read_request(value) if colon and scheme == "request" else read_ids(Path(os.path.expanduser(spec)))
        matches = partial(_in_list, listed)
    named = matches(source.train)
    others = {"val": source.val, "test": source.test, "nowhere": source.unused}
    found = {
        name: [] if split is None else [split.ids[i] for i in np.flatnonzero(matches(split))]
        for name, split in others.items()
    }
    _check_trained(spec, source, [id for ids in found.values() for id in ids], manifest)
    elsewhere = {"untrained": int((named & ~training).sum()), **{name: len(ids) for name, ids in found.items()}}
    if listed is not None:
        elsewhere["nowhere"] = len(set(listed.ids)) - int(named.sum()) - elsewhere["val"] - elsewhere["test"]
    selected = Selected(np.flatnonzero(named & training), elsewhere)
    if lenient:
        return _not_all(spec, selected, training)
    if listed is not None and any(elsewhere.values()):
        _refuse_listed(spec, source, listed, training)
    return _some(spec, selected, training)


def named_ids(spec: str, source: Source) -> Manifest:
    """The ids that a spec names in whichever split of a source, as far as it goes without a model: for a search.

    Args:
        spec: a file of ids, ``class:NAME`` or ``group:COLUMN=VALUE``.
        source: the data.

    Raises:
        UnlearnError: it is another spec, or the source has nothing that it names.
    """
    scheme, colon, value = spec.partition(":")
    splits = [split for split in (source.train, source.val, source.test, source.unused) if split]
    if not (colon and scheme in ("class", "group")):
        listed = listed_ids(spec)
        if not any(listed.mask(split.ids).any() for split in splits):
            raise UnlearnError(
                f"{source.spec!r} has none of the {len(listed.ids)} ids of {spec!r}: give another {spelled('data')}"
            )
        return listed
    if scheme == "class":
        matches = partial(_of_class, _class_index(value, source))
    else:
        matches = partial(_in_group, *_group(value, source, splits))
    return Manifest(tuple(split.ids[i] for split in splits for i in np.flatnonzero(matches(split))))


def exchangeable(spec: str) -> bool:
    """Whether a forget spec draws its samples within each class as unseen ones were drawn: at random, or all of them.

    What people or a column name was chosen for a reason, which may show in a model's outputs without any training.

    >>> [exchangeable(spec) for spec in ("random:10%", "class:3", "group:person=7", "ids.csv", "request:0123456789ab")]
    [True, True, False, False, False]
    """
    scheme, colon, _ = spec.partition(":")
    return bool(colon) and scheme in ("random", "class")


def _some(spec: str, selected: Selected, training: Mask) -> Selected:
    """What is selected, if that is neither nothing nor everything."""
    count = len(selected.indices)
    if count == 0:
        raise UnlearnError(f"{spec!r} names no sample that the model is still trained on: there is nothing to forget")
    return _not_all(spec, selected, training)


def _not_all(spec: str, selected: Selected, training: Mask) -> Selected:
    count = len(selected.indices)
    if count and count == training.sum():
        raise UnlearnError(f"{spec!r} names all {count} training samples: keep some, or delete the model instead")
    return selected


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


def _group(text: str, source: Source, splits: Sequence[Split]) -> tuple[str, str]:
    """Column and value, which some sample of these splits has."""
    column, equals, value = text.partition("=")
    groups = source.train.groups
    if not equals:
        raise UnlearnError(f"group:{text} names no value: write group:COLUMN=VALUE")
    if column not in groups:
        what = did_you_mean(column, groups) if groups else "the source has none"
        raise UnlearnError(f"unknown group column {column!r}: {what}")
    values = sorted({known for split in splits for known in split.groups.get(column, ())})
    if value not in values:
        what = "training sample" if len(splits) == 1 else f"sample of {source.spec!r}"
        raise UnlearnError(f"no {what} with {column}={value!r}: {did_you_mean(value, values)}")
    return column, value


def _of_class(label: int, split: Split) -> Mask:
    return np.asarray(split.labels == label)


def _in_group(column: str, value: str, split: Split) -> Mask:
    return np.array([v == value for v in split.groups.get(column, [None] * len(split))], np.bool_)


def _in_list(manifest: Manifest, split: Split) -> Mask:
    return manifest.mask(split.ids)


def _check_trained(spec: str, source: Source, ids: Sequence[str], manifest: Callable[[], Manifest | None]) -> None:
    """Nothing may be forgotten by half: what was trained on has to be in the training split.

    Args:
        spec: of the forget set.
        source: the data.
        ids: that the spec names, outside of the training split.
        manifest: of all that the version was trained on.
    """
    known = manifest() if ids else None
    if known is None:
        return
    trained = [id for id, found in zip(ids, known.mask(ids), strict=True) if found]
    if trained:
        raise UnlearnError(
            f"{spec!r} names {len(trained)} samples that the version was trained on and that {source.spec!r} does not "
            f"have in its training split ({shortlist(trained)}): they would not be forgotten; give the data as they "
            f"were split when it was trained, or {spelled('split')} with a list of its training ids"
        )


def _refuse_listed(spec: str, source: Source, manifest: Manifest, training: Mask) -> NoReturn:
    """Ids are named one by one, and each has to be one that the version is trained on: name those that are not.

    Args:
        spec: of the forget set.
        source: the data.
        manifest: what it lists.
        training: what of the training split the version is trained on ``[N]``.
    """
    held_out = [*source.val.ids, *source.test.ids]
    if unknown := sorted(set(manifest.ids) - set(map(manifest.key, (*source.train.ids, *held_out)))):
        raise UnlearnError(f"{spec!r} names ids that the data source doesn't have: {shortlist(unknown)}")
    if refused := [i for i, found in zip(held_out, manifest.mask(held_out), strict=True) if found]:
        raise UnlearnError(f"{spec!r} names validation or test samples, never trained on: {shortlist(refused)}")
    gone = [source.train.ids[i] for i in np.flatnonzero(manifest.mask(source.train.ids) & ~training)]
    raise UnlearnError(
        f"{spec!r} names samples that this model version wasn't trained on, such as those forgotten earlier: "
        f"{shortlist(gone)}"
    )
