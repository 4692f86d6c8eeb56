"""Texts stored under ``snapshots/``: what a command prints at each width, as it is read in a diff."""

import difflib
import os
import re
from collections.abc import Callable, Collection
from pathlib import Path

import pytest
from rich.cells import cell_len

from mlflow_unlearn.console import PIPED

FOLDER = Path(__file__).parent / "snapshots"
VARIABLE = "MLFLOW_UNLEARN_SNAPSHOTS"
"""With the value ``write``, the texts are stored anew."""


def at_each_width(
    printed: Callable[[], str], widths: Collection[int | None] = (80, 120, None)
) -> dict[int | None, str]:
    """What is printed with ``COLUMNS`` set to each of these, and, for None, in a pipe."""
    texts = {}
    for width in widths:
        with pytest.MonkeyPatch.context() as patch:
            patch.delenv("COLUMNS", raising=False) if width is None else patch.setenv("COLUMNS", str(width))
            texts[width] = printed()
    return texts


def check_stored(name: str, texts: dict[int | None, str]) -> None:
    """Compare what is printed with what is stored; widths at which it is the same share a section."""
    sections: dict[str, list[str]] = {}
    for width, text in texts.items():
        sections.setdefault(text, []).append("in a pipe" if width is None else f"{width} columns")
    document = "\n".join(f"=== {', '.join(names)} ===\n{text}" for text, names in sections.items())
    path = FOLDER / f"{name}.txt"
    if os.environ.get(VARIABLE) == "write":
        path.write_text(document, encoding="utf-8")
    stored = path.read_text(encoding="utf-8") if path.exists() else ""
    if document != stored:
        lines = difflib.unified_diff(stored.splitlines(), document.splitlines(), "stored", "printed", lineterm="", n=1)
        pytest.fail("\n".join([f"{path} is not what is printed ({VARIABLE}=write stores it):", *lines]), pytrace=False)


_VARIES = (
    (re.compile(r"\b[0-9a-f]{12,}\b"), "x"),  # ids and digests
    (re.compile(r"\b\d{4}-\d\d-\d\d\b|\b\d\d:\d\d(:\d\d)?\b|\d+\.\d+(e-\d+)?"), "0"),  # dates, times, figures
    (re.compile(r"(?<=all )\d+(?= tags)"), "0"),  # one for each metric that could be computed
)


def masked(text: str) -> str:
    """A text in which what differs from run to run, or between processors, is replaced by as many characters."""
    for pattern, by in _VARIES:
        text = pattern.sub(lambda found, by=by: re.sub("[0-9a-z]" if by == "x" else r"\d", by, found[0]), text)
    return text


def check_widths(texts: dict[int | None, str], longest: Collection[str] = ()) -> None:
    """No line is wider than the terminal, nor ends in blanks.

    Args:
        texts: by the width.
        longest: beginnings of lines that may be wider, since they are one word, or are there to be pasted.
    """
    for width, text in texts.items():
        for line in text.splitlines():
            shown = line.strip()
            assert line == line.rstrip(), line
            assert cell_len(line) <= (width or PIPED) or shown.startswith(tuple(longest)), f"{width}: {line}\n\n{text}"
