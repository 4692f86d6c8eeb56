"""What the data modules share: short lists for messages, and functions named by ``module:function``."""

import os
import sys
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from importlib import import_module
from typing import Any

from mlflow_unlearn.errors import UnlearnError


def shortlist(items: Iterable[object]) -> str:
    """The first ten of the items and their count, for an error message.

    >>> shortlist(["a", "b"])
    "'a', 'b'"
    >>> shortlist(range(12))
    '0, 1, 2, 3, 4, 5, 6, 7, 8, 9, … (12 in all)'
    """
    items = list(items)
    more = f", … ({len(items)} in all)" if len(items) > 10 else ""
    return ", ".join(map(repr, items[:10])) + more


def known(name: str, names: Iterable[str]) -> str:
    """What there is instead of an unknown name, the nearest one first.

    >>> known("cta", ["cat", "dog"])
    "did you mean 'cat'? Known are 'cat', 'dog'"
    """
    names = list(names)
    near = get_close_matches(name, names, 1)
    return (f"did you mean {near[0]!r}? Known are " if near else "known are ") + shortlist(names)


def import_function(name: str) -> Callable[..., Any]:
    """The function behind ``package.module:function``; modules of the working directory are found, as by ``python -m``.

    Raises:
        UnlearnError: the name has no colon, the module can't be imported, or has no such function.
    """
    module, colon, function = name.partition(":")
    if not (module and colon and function):
        raise UnlearnError(f"{name!r} names no function: write package.module:function")
    # For good, not only during the import: functions import their neighbours when called, and workers unpickle them.
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found = getattr(import_module(module), function, None)
    except Exception as error:  # Importing runs code, which raises anything.
        raise UnlearnError(
            f"{name!r}: importing {module!r} failed ({error}): run from its folder or install it"
        ) from error
    if not callable(found):
        raise UnlearnError(f"{name!r}: module {module!r} has no function {function!r}")
    return found  # type: ignore[no-any-return]
