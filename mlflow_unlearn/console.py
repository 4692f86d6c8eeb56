"""What a command prints beside its result: notes and progress bars, silent where there is no terminal, and tables."""

import sys
import time
from collections.abc import Iterable, Sized
from typing import TYPE_CHECKING, TypeVar

from mlflow_unlearn.errors import without_passwords

if TYPE_CHECKING:
    from rich.console import Console

T = TypeVar("T")

STARTED = time.monotonic()
"""When this process began: the command line loads this module first, and nearly all of its start-up comes after."""


def track(iterable: Iterable[T], description: str, *, enabled: bool, total: int | None = None) -> Iterable[T]:
    """Iterate with a bar that vanishes when done.

    Args:
        iterable: what to iterate over.
        description: beside the bar.
        enabled: False shows none.
        total: number of items, where ``iterable`` has no length.
    """
    from rich.progress import track as rich_track

    console = _stderr()
    if not (enabled and console.is_terminal):
        return iterable
    if total is None and isinstance(iterable, Sized):
        total = len(iterable)
    return rich_track(iterable, description, total=total, console=console, transient=True)


def note(sentence: str) -> None:
    """Print a sentence for the user on standard error."""
    _stderr(highlight=False, soft_wrap=True).print(without_passwords(sentence), markup=False)


def stdout(width: int | None = None) -> "Console":
    """Where tables go: as wide as the terminal, and ``width`` characters where they are piped into a file."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else width)


def _stderr(*, highlight: bool = True, soft_wrap: bool = False) -> "Console":
    # Rich takes 50 ms to load, which `--help` need not wait for.
    from rich.console import Console

    return Console(stderr=True, highlight=highlight, soft_wrap=soft_wrap)
