"""Functions of the user's own, named by ``module:function``: data sources, transforms, architectures."""

import os
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

from mlflow_unlearn.errors import UnlearnError


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
