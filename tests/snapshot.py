"""Texts stored under ``snapshots/``: what a command prints at each width, as it is read in a diff."""

import difflib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "snapshots"
VARIABLE = "MLFLOW_UNLEARN_SNAPSHOTS"
"""With the value ``write``, the texts are stored anew."""
WIDTHS = (80, 120, None)
"""Of ``COLUMNS``; the last one is a pipe."""


def at_each_width(printed: Callable[[], str]) -> dict[int | None, str]:
    """What is printed with ``COLUMNS`` set to each of `WIDTHS`, and without it."""
    texts = {}
    for width in WIDTHS:
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
