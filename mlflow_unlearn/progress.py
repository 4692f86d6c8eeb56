"""What is said on standard error: notes, and progress bars, silent where it is no terminal or nobody asked."""

from collections.abc import Iterable, Sized
from typing import TypeVar

from rich.console import Console
from rich.progress import track as rich_track

from mlflow_unlearn.errors import without_passwords

T = TypeVar("T")


def track(iterable: Iterable[T], description: str, *, enabled: bool, total: int | None = None) -> Iterable[T]:
    """Iterate with a bar that vanishes when done."""
    console = Console(stderr=True)
    if not (enabled and console.is_terminal):
        return iterable
    if total is None and isinstance(iterable, Sized):
        total = len(iterable)
    return rich_track(iterable, description, total=total, console=console, transient=True)


def note(sentence: str) -> None:
    """Tell the user something on standard error."""
    Console(stderr=True, highlight=False, soft_wrap=True).print(without_passwords(sentence), markup=False)
