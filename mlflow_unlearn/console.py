"""What a command prints: notes, progress bars where there is a terminal, tables; and no password."""

import errno
import json
import os
import re
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sized
from contextlib import suppress
from typing import IO, TYPE_CHECKING, Any, TypeVar, cast
from urllib.parse import parse_qs, quote, unquote, urlsplit

if TYPE_CHECKING:
    from rich.console import Console

T = TypeVar("T")

LONGEST_MESSAGE = 1900
"""Characters of a message; a store takes some thousands, and people fewer."""
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
    if not (enabled and console.is_terminal) or _quiet:
        return iterable
    if total is None and isinstance(iterable, Sized):
        total = len(iterable)
    return rich_track(iterable, description, total=total, console=console, transient=True)


_quiet = False


def be_quiet(quiet: bool) -> None:
    """Whether this command prints neither notes nor progress bars."""
    global _quiet
    _quiet = quiet


def note(sentence: str) -> None:
    """Print a sentence for the user on standard error; only a warning, where notes are not wanted."""
    if _quiet and not sentence.startswith("Warning:"):
        return
    _stderr(highlight=False, soft_wrap=True).print(one_line(sentence), markup=False)


def counted(number: int, noun: str, *, grouped: bool = False) -> str:
    """A number of things, its digits in groups of three where there is room for many.

    >>> counted(1, "training sample"), counted(0, "match"), counted(2, "case"), counted(5, "epoch"), counted(2, "copy")
    ('1 training sample', '0 matches', '2 cases', '5 epochs', '2 copies')
    >>> counted(1000, "sample", grouped=True)
    '1,000 samples'
    """
    shown = f"{number:,}" if grouped else str(number)
    if number == 1:
        return f"{shown} {noun}"
    if re.search("[^aeiou]y$", noun):
        return f"{shown} {noun[:-1]}ies"
    return f"{shown} {noun}" + ("es" if noun.endswith(("tch", "s")) else "s")


PIPED = 130
"""Characters of a line where a table is piped into a file, and ``COLUMNS`` says nothing."""


def stdout() -> "Console":
    """Where tables go: as wide as ``COLUMNS`` says, else as the terminal, else `PIPED` characters."""
    from rich.console import Console

    told = os.environ.get("COLUMNS", "").isdigit() or sys.stdout.isatty()
    return Console(width=None if told else PIPED, emoji=False)


def say(*lines: str, style: str = "") -> None:
    """Print lines to standard output, no wider than `stdout` is: broken at blanks, and never within a word.

    An id or a path can therefore still be copied, and stands on a line of its own where it is wider than that.

    Args:
        lines: each may begin with blanks or a bullet, under whose text it goes on.
        style: of rich, such as ``dim``.
    """
    console = stdout()
    for line in (part for text in lines for part in _printable(text).splitlines()):
        for part in _broken(line, console.width):
            console.print(part, style=style, highlight=False, markup=False, soft_wrap=True)


def _broken(line: str, width: int) -> list[str]:
    """A line as lines of at most this many cells, each of at least one word: rich breaks words, or cuts them off."""
    from rich.cells import cell_len

    lead, text = re.fullmatch(r"( *(?:[-*] )?)(.*)", line).groups()  # type: ignore[union-attr]  # it matches everything
    words = re.findall(r"\S+(?: %\S*)?", text)
    lines, indent = [lead + " ".join(words[:1])], " " * len(lead)
    for word in words[1:]:
        if cell_len(lines[-1]) + 1 + cell_len(word) <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(indent + word)
    return lines


def say_command(command: str) -> None:
    """Print a command on a line of its own, which is never broken: it is there to be pasted."""
    stdout().print(f"  {_printable(command)}", highlight=False, markup=False, soft_wrap=True)


def _stderr(*, highlight: bool = True, soft_wrap: bool = False) -> "Console":
    # Rich takes 50 ms to load, which `--help` need not wait for.
    from rich.console import Console

    return Console(stderr=True, highlight=highlight, soft_wrap=soft_wrap, emoji=False)


_FAILED_DOWNLOAD = re.compile(r"The following failures occurred while downloading .*\n#+ File .*\n")
"""MLflow's lines before the reason."""


def first_line(error: BaseException) -> str:
    r"""The first line of an error's message, at most 200 characters of it; its type where there is no message.

    >>> first_line(ValueError("no such thing\nTraceback …")), first_line(KeyError())
    ('no such thing', 'KeyError')
    """
    lines = _FAILED_DOWNLOAD.sub("", str(error).strip(), count=1).splitlines()
    # Before it is shortened: half a password would not be recognised.
    return without_passwords(lines[0])[:200] if lines else type(error).__name__


def one_line(sentence: str) -> str:
    r"""A message as it is shown and stored: on one line, shortened in the middle, and without passwords.

    Nor with what would steer a terminal: a message may quote a tag or a file that others have written.

    >>> one_line("no such file:\n  a.csv\x1b[2J")
    'no such file: a.csv[2J'
    """
    return shortened(" ".join(filter(None, map(str.strip, _printable(sentence).splitlines()))))


def _printable(text: str) -> str:
    """A text without passwords, and without what would steer a terminal."""
    return re.sub("[\x00-\x08\x0e-\x1b\x1f\x7f\x80-\x84\x86-\x9f]", "", without_passwords(text))


def shortened(text: str) -> str:
    """A text of at most `LONGEST_MESSAGE` characters: its beginning and its end."""
    half = LONGEST_MESSAGE // 2 - 2
    return text if len(text) <= LONGEST_MESSAGE else f"{text[:half]} … {text[-half:]}"


Value = TypeVar("Value")


def storable(value: Value) -> Value:
    """A value as it may be stored, with every text in its lists and mappings: without passwords."""
    if isinstance(value, str):
        return cast(Value, without_passwords(value))
    if isinstance(value, Mapping):
        return cast(Value, {key: storable(inner) for key, inner in value.items()})
    if isinstance(value, list | tuple):
        return cast(Value, type(value)(map(storable, value)))
    return value


_secret_urls: set[str] = set()


def conceal(url: str) -> str:
    """The URL itself; from now on no sentence shows its password, nor a part of it that stands alone."""
    _secret_urls.add(url)
    return url


def without_passwords(sentence: str) -> str:
    """A text as it may be shown and stored: without any password of a URL or of MLflow's.

    All that we print and store passes through here; what others print does in `Output`.

    >>> without_passwords("nothing answers at http://me:secret@host:1, as before")
    'nothing answers at http://me:***@host:1, as before'
    """
    named = (os.environ.get(name) for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"))
    uris = sorted({*filter(None, named), *_secret_urls}, key=len, reverse=True)
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
        with suppress(ValueError):  # a URL with a slip
            query = parse_qs(urlsplit(uri).query)
            found += [value for key, values in query.items() if "pass" in key for value in values]
    # As a URL, a driver, Python and JSON each spell them.
    spelled = ({each, unquote(each), quote(each), quote(each, safe="")} for each in found)
    written = (text for texts in spelled for each in texts for text in (each, repr(each)[1:-1], json.dumps(each)[1:-1]))
    yield from (secret for secret in written if len(secret) > 3)


class Output:
    """Standard output or standard error, of this command and of the libraries that it uses.

    No password passes, and a reader that has gone, or a full disk, ends nothing: what a command does and its exit code
    do not depend on who reads what it prints. Behind `head` or `true` it goes on in silence.
    """

    def __init__(self, stream: IO[str]) -> None:
        """Write to ``stream`` from now on."""
        self._stream, self._held, self._open = stream, "", True

    def write(self, text: str) -> int:
        """Write whole lines, and keep the last one until it is complete: half a password would not be recognised."""
        lines, newline, rest = (self._held + text).rpartition("\n")
        self._held = rest
        if newline:
            self._send(lines + newline)
        return len(text)

    def write_as_is(self, text: str) -> None:
        """Write a text in which passwords are hidden already, such as a document that would not be one after that."""
        self.flush()
        self._send(text, hidden=True)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write them one behind the other."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Write what is there."""
        held, self._held = self._held, ""
        self._send(held, flush=True)

    def __getattr__(self, name: str) -> Any:
        """What else a stream has: its encoding, whether it is a terminal, …."""
        return getattr(self._stream, name)

    def _send(self, text: str, *, flush: bool = False, hidden: bool = False) -> None:
        if not self._open:
            return
        text = text if hidden else without_passwords(text)
        try:
            try:
                self._stream.write(text)
            except UnicodeEncodeError as error:
                self._stream.write(text.encode(error.encoding, "backslashreplace").decode(error.encoding))
            if flush:
                self._stream.flush()
        except (OSError, ValueError) as error:  # ValueError: it was closed in this process
            self._fall_silent(error)

    def _fall_silent(self, error: Exception) -> None:
        """Also for what writes there by other ways, such as the interpreter when it ends."""
        self._open = False
        with suppress(OSError, ValueError):
            nothing = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nothing, self._stream.fileno())
            os.close(nothing)
        if self is sys.stdout and getattr(error, "errno", None) not in (errno.EPIPE, None):
            note(f"Note: standard output cannot be written ({first_line(error)}); the command continues without it.")


def own_outputs() -> None:
    """Have this process write through `Output`; a descriptor that is closed would be the next file that is opened."""
    while True:
        free = os.open(os.devnull, os.O_RDWR)
        if free > 2:
            os.close(free)
            break
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        if not isinstance(stream, Output):
            setattr(sys, name, Output(stream if stream is not None else open(number, "w", closefd=False)))


def results_alone() -> bool:
    """Whether this process is a command, whose standard output is for results."""
    return isinstance(sys.stdout, Output)


def hidden_password(url: str) -> str:
    """A URL as it may be shown.

    >>> hidden_password("postgresql://me:secret@host/db")
    'postgresql://me:***@host/db'
    """
    # By its look, since a URL with a slip is shown too, in the sentence that refuses it.
    shown = re.sub(r"(pass\w*=)[^&]*", r"\1***", url)
    return re.sub(r"^(.*?://[^:@/]*|[^:@]*(?=:(?!//))):.*@", r"\1:***@", shown)
