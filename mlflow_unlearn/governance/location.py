"""Where files lie: two spellings of one folder must not be taken for two folders."""

import os
import posixpath
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal
from urllib.parse import unquote, urlsplit

import mlflow
from mlflow.utils.file_utils import local_file_uri_to_path
from mlflow.utils.uri import get_uri_scheme

FILE = "file"
"""The store of this machine's own folders."""
_PROXY = "/mlflow-artifacts/artifacts/"
"""Behind it, in the path of a tracking server's URL, are artifacts that it hands on."""
_BUCKETS = ("s3://", "gs://")
"""Each name is one bucket, and no other store shows what is stored in it under its own name."""
_TAIL = 3
"""As many last names tell a model's folder from all others: ``<experiment>/models/<id>/artifacts``."""

Relation = Literal["same", "inside", "around", "apart", "unclear"]


@dataclass(frozen=True)
class Location:
    """A folder, spelled in one way.

    Attributes:
        uri: as the store spells it.
        store: what its path is a path of.
        parts: the names on the way to it.
        nodes: of a folder on this machine, itself and then those around it: device and number, which are the same
            through every mount and in every spelling; None for one that is not there.
        doubt: why it can be compared with no other; empty if it can.
    """

    uri: str
    store: str = ""
    parts: tuple[str, ...] = ()
    nodes: tuple[tuple[int, int] | None, ...] = (None,)
    doubt: str = ""

    @cached_property
    def itself(self) -> frozenset[object]:
        """What it is called by."""
        return frozenset((self.parts, *(node for node in self.nodes[:1] if node is not None)))

    @cached_property
    def around(self) -> frozenset[object]:
        """What it and the folders around it are called by."""
        prefixes = (self.parts[:length] for length in range(len(self.parts) + 1))
        return frozenset((*prefixes, *(node for node in self.nodes if node is not None)))

    def contains(self, other: "Location") -> bool:
        """Whether the other one of the same store is this one or is inside it."""
        named = other.parts[: len(self.parts)] == self.parts
        return named or (self.nodes[0] is not None and self.nodes[0] in other.nodes)


def locate(uri: str) -> Location:
    """The folder behind the URI of an artifact store; one whose URI cannot be read is in doubt."""
    try:
        scheme = get_uri_scheme(uri).lower()
        return _local(uri) if scheme in ("", "file") else _remote(uri, scheme)
    except (OSError, ValueError) as error:  # no permission to follow it, links in a circle, a port that is not a number
        return Location(uri, doubt=f"{uri!r} cannot be followed ({error})")


def relation(one: Location, other: Location) -> Relation:
    """Where the first folder is, seen from the second one.

    Two stores may show the same files, such as a bucket and the server that hands on what is in it. Then both paths
    end alike, so that it cannot be decided.
    """
    if one.doubt or other.doubt:
        return "unclear"
    if one.store != other.store:
        if one.store.startswith(_BUCKETS) and other.store.startswith(_BUCKETS):
            return "apart"
        alike = _occurs(one.parts[-_TAIL:], other.parts) or _occurs(other.parts[-_TAIL:], one.parts)
        return "unclear" if alike else "apart"
    inside, around = other.contains(one), one.contains(other)
    if inside and around:
        return "same"
    return "inside" if inside else "around" if around else "apart"


class Relations:
    """How one folder lies to many: compared only with those to which it may lie in any way but apart."""

    def __init__(self, locations: Mapping[str, Location]) -> None:
        """Of these, by a name each."""
        self._locations = locations
        self._order = {name: number for number, name in enumerate(locations)}
        self._stores = {location.store for location in locations.values()}
        doubtful = [name for name, location in locations.items() if location.doubt]
        self._vague = [
            *doubtful[:1],
            *(name for name, location in locations.items() if not (location.parts or location.doubt)),
        ]
        self._at, self._below = _Names(), _Names()
        for name, location in locations.items():
            for key in location.itself:
                self._at[key].append(name)
            for key in location.around:
                self._below[key].append(name)

    def first(self, location: Location) -> tuple[str, Relation]:
        """The first of them that is not apart, ``same`` before all others; an empty name where all are."""
        if location.doubt:
            return (next(iter(self._locations)), "unclear") if self._locations else ("", "apart")
        names = set(self._locations if not location.parts else self._vague)
        names.update(*(self._below[key] for key in location.itself if key in self._below))
        names.update(*(self._at[key] for key in location.around if key in self._at))
        if self._stores - {location.store}:
            tails, runs = self._alike
            names.update(runs.get(location.parts[-_TAIL:], ()))
            names.update(*(tails.get(run, ()) for run in _runs(location.parts)))
        in_order = sorted(names, key=self._order.__getitem__)
        found = [(name, relation(location, self._locations[name])) for name in in_order]
        near = [(name, how) for name, how in found if how != "apart"]
        return next((one for one in near if one[1] == "same"), near[0] if near else ("", "apart"))

    @cached_property
    def _alike(self) -> tuple["_Names", "_Names"]:
        """By how their paths end, and by what stands in their paths: for folders of another store."""
        tails, runs = _Names(), _Names()
        for name, location in self._locations.items():
            tails[location.parts[-_TAIL:]].append(name)
            for run in _runs(location.parts):
                runs[run].append(name)
        return tails, runs


class _Names(defaultdict[object, list[str]]):
    """Names of locations by something that they have in common."""

    def __init__(self) -> None:
        super().__init__(list)


def _runs(parts: tuple[str, ...]) -> set[tuple[str, ...]]:
    """What stands in a path, one name behind the other, up to as many as a tail has."""
    starts = range(len(parts))
    return {parts[start : start + length] for start in starts for length in range(1, _TAIL + 1)}


def _local(uri: str) -> Location:
    path = local_file_uri_to_path(uri)
    if not os.path.isabs(path):
        return Location(uri, doubt=f"{uri!r} is relative to wherever a command is started")
    try:
        real = os.path.realpath(path, strict=True)
    except (FileNotFoundError, NotADirectoryError):  # deleted, or another machine's
        real = os.path.realpath(path)
    parts = _names(real)
    around = ["/" + "/".join(parts[:length]) for length in range(len(parts), -1, -1)]
    return Location(uri, FILE, parts, tuple(_node(folder) for folder in around))


def _node(folder: str) -> tuple[int, int] | None:
    try:
        found = os.stat(folder)
    except OSError:
        return None
    return (found.st_dev, found.st_ino) if found.st_ino else None


def _remote(uri: str, scheme: str) -> Location:
    split = urlsplit(uri)
    # In Azure's URIs what stands before the @ is the container; elsewhere it is who logs in.
    host = (split.netloc if scheme.startswith(("wasb", "abfs")) else split.netloc.rpartition("@")[2]).lower()
    path = split.path
    if scheme == "mlflow-artifacts":
        host = host or urlsplit(mlflow.get_tracking_uri()).netloc.rpartition("@")[2].lower()
    elif scheme in ("http", "https") and _PROXY in path:
        scheme, path = "mlflow-artifacts", path.partition(_PROXY)[2]
    while (plain := unquote(path)) != path:
        path = plain
    return Location(uri, f"{scheme}://{host}", _names(posixpath.normpath("/" + path)))


def _names(path: str) -> tuple[str, ...]:
    return tuple(name for name in path.split("/") if name)


def _occurs(names: tuple[str, ...], path: tuple[str, ...]) -> bool:
    """Whether the names stand one behind the other in a path."""
    return any(path[start : start + len(names)] == names for start in range(len(path) - len(names) + 1))
