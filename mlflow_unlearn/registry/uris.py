"""Tracking and storage URIs, and what of them may be shown."""

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
