"""Tracking and storage URIs, and what of them may be shown."""

from collections.abc import Iterable
from itertools import groupby
from pathlib import Path


def absolute_uri(uri: str) -> str:
    """``sqlite:///relative.db`` made absolute against the working directory; everything else as it is.

    >>> absolute_uri("sqlite:////data/mlflow.db")
    'sqlite:////data/mlflow.db'
    """
    prefix = "sqlite:///"
    path = uri.removeprefix(prefix)
    if not uri.startswith(prefix) or path in ("", ":memory:") or Path(path).is_absolute():
        return uri
    return prefix + str(Path(path).resolve())


def hidden_spec(spec: str) -> str:
    """What may be recorded of a forget spec whose ids are to be hidden.

    >>> hidden_spec("group:patient=17"), hidden_spec("ids.csv")
    ('group:…', 'file')
    """
    scheme, colon, _ = spec.partition(":")
    return f"{scheme}:…" if colon and scheme in ("random", "request", "class", "group") else "file"


def public_spec(spec: str) -> str | None:
    """What of a forget spec is for every reader of the result: nothing that may name a person, or a file.

    >>> public_spec("group:customer=Jane Doe"), public_spec("class:3"), public_spec("ids.csv")
    ('group:customer=…', 'class:3', None)
    """
    scheme, colon, value = spec.partition(":")
    if colon and scheme == "group" and "=" in value:
        return f"group:{value.partition('=')[0]}=…"
    return spec if colon and scheme in ("random", "class") and not value.endswith("…") else None


def in_ranges(uris: Iterable[str]) -> list[str]:
    """URIs for people, the versions of one model together; what is not a registered version stays as it is.

    >>> in_ranges(["models:/clf/1", "models:/clf/2", "models:/clf/4", "models:/m-0f", "models:/other/3"])
    ['models:/clf/1–2, 4', 'models:/m-0f', 'models:/other/3']
    """
    versions: dict[str, list[int]] = {}
    for uri in uris:
        model, _, number = uri.rpartition("/")
        if model.startswith("models:/") and number.isdecimal():
            versions.setdefault(model, []).append(int(number))
        else:
            versions[uri] = []
    return [f"{name}/{_ranges(numbers)}" if numbers else name for name, numbers in versions.items()]


def _ranges(numbers: Iterable[int]) -> str:
    found = []
    for _, run in groupby(enumerate(sorted(set(numbers))), lambda pair: pair[1] - pair[0]):
        first, *rest = (number for _, number in run)
        found.append(f"{first}–{rest[-1]}" if rest else str(first))
    return ", ".join(found)
