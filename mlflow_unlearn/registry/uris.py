"""Tracking and storage URIs, and what of them may be shown."""

import re
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


def hidden_password(url: str) -> str:
    """A database's URL without its password, to be shown and recorded.

    >>> hidden_password("postgresql://me:secret@host/db")
    'postgresql://me:***@host/db'
    """
    # By pattern, since a malformed URL is shown too, in the message that refuses it.
    shown = re.sub(r"(pass\w*=)[^&]*", r"\1***", url)
    return re.sub(r"^(.*?://[^:@/]*|[^:@]*(?=:(?!//))):.*@", r"\1:***@", shown)


def hidden_spec(spec: str) -> str:
    """What may be recorded of a forget spec whose ids are to be hidden.

    >>> hidden_spec("group:patient=17"), hidden_spec("ids.csv")
    ('group:…', 'file')
    """
    scheme, colon, _ = spec.partition(":")
    return f"{scheme}:…" if colon and scheme in ("random", "request", "class", "group") else "file"
