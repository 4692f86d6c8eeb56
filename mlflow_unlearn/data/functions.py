"""Code of the user's own: functions named by ``module:function``, and how any of it is called."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from importlib import import_module
from typing import Any

from mlflow_unlearn import console
from mlflow_unlearn.errors import UnlearnError


@contextmanager
def no_exit(name: str) -> Iterator[None]:
    """`sys.exit` inside the block is an error of what ``name`` says: only the command line ends a command.

    Raises:
        UnlearnError: it was called.
    """
    try:
        yield
    except SystemExit as error:
        raise UnlearnError(
            f"{name} called sys.exit({error.code!r}), which would have ended the command: raise an error there instead"
        ) from error


@contextmanager
def users_code(name: str, way_out: str | None = None) -> Iterator[None]:
    """Around code that users wrote: `sys.exit` in it is an error, and what it prints is not taken for our result.

    Args:
        name: what runs, for the message.
        way_out: what to do where all that it raises becomes a sentence; None leaves errors as they are, since code of
            ours runs in the block as well.

    Raises:
        UnlearnError: it called `sys.exit`, or failed.
    """
    try:
        with no_exit(name), redirect_stdout(sys.stderr) if console.results_alone() else nullcontext():
            yield
    except UnlearnError:
        raise
    except Exception as error:
        if way_out is None:
            raise
        raise UnlearnError(f"{name} failed ({type(error).__name__}: {console.first_line(error)}): {way_out}") from error


class UsersFunction:
    """A function of the user's own, in whichever process it is called: see `users_code`."""

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        """``name`` is how messages call it."""
        self.name, self.__wrapped__ = name, function  # where `inspect.signature` looks

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the function returns."""
        with users_code(repr(self.name), "correct it, or name another function"):
            return self.__wrapped__(*args, **kwargs)


def import_function(name: str) -> UsersFunction:
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
    with users_code(f"{name!r}: importing {module!r}", "run from its folder or install it"):
        found = getattr(import_module(module), function, None)
    if not callable(found):
        raise UnlearnError(f"{name!r}: module {module!r} has no function {function!r}")
    return UsersFunction(name, found)
