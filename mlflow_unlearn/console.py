"""What a command prints beside its result: notes, progress bars where there is a terminal, tables; and no password."""

import os
import re
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import unquote

if TYPE_CHECKING:
    from rich.console import Console

T = TypeVar("T")

STARTED = time.monotonic()
"""When this process began: the command line loads this module first, and nearly all of its start-up comes after."""

_command_line = False


def keep_results_alone() -> None:
    """The command line: only results go to standard output, and what users' code prints to standard error."""
    global _command_line
    _command_line = True


def results_alone() -> bool:
    """Whether this process is a command, whose standard output is for results."""
    return _command_line


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


def first_line(error: BaseException) -> str:
    r"""The first line of an error's message, at most 200 characters of it; its type where there is no message.

    >>> first_line(ValueError("no such thing\nTraceback …")), first_line(KeyError())
    ('no such thing', 'KeyError')
    """
    lines = str(error).strip().splitlines()
    # Before it is shortened: half a password would not be recognised.
    return without_passwords(lines[0])[:200] if lines else type(error).__name__


def without_passwords(sentence: str) -> str:
    """A sentence as it may be shown and stored: without any password of a URL or of MLflow's.

    >>> without_passwords("nothing answers at http://me:secret@host:1, as before")
    'nothing answers at http://me:***@host:1, as before'
    """
    uris = [uri for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI") if (uri := os.environ.get(name))]
    for uri in uris:
        sentence = sentence.replace(uri, hidden_password(uri))
    # Those of MLflow also where they stand alone, as in a driver's error about a URL that it cannot take apart.
    for secret in sorted({*_secrets(uris)}, key=len, reverse=True):
        sentence = re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", "***", sentence)
    sentence = re.sub(r"(\w://[^\s:/@]*):[^\s/]*@", r"\1:***@", sentence)
    return re.sub(r"([?&]pass\w*=)[^&\s'\"]+", r"\1***", sentence)


def _secrets(uris: list[str]) -> Iterator[str]:
    """Of MLflow's own, and whatever may be left of them; short ones would hide half of every sentence."""
    found = [os.environ.get(name, "") for name in ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")]
    for uri in uris:
        if match := re.match(r".*?://[^:@/]*:(.*)@", uri):
            found += [match[1], *re.split("[/?#@]", match[1])]
    yield from (secret for each in found for secret in (each, unquote(each)) if len(secret) > 3)


def hidden_password(url: str) -> str:
    """A URL as it may be shown.

    >>> hidden_password("postgresql://me:secret@host/db")
    'postgresql://me:***@host/db'
    """
    # By its look, since a URL with a slip is shown too, in the sentence that refuses it.
    shown = re.sub(r"(pass\w*=)[^&]*", r"\1***", url)
    return re.sub(r"^(.*?://[^:@/]*|[^:@]*(?=:(?!//))):.*@", r"\1:***@", shown)
