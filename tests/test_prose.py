"""Sentences that users see: no phrase that was found odd comes back, no word stands twice."""

import ast
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from mlflow_unlearn.errors import did_you_mean

ROOT = Path(__file__).parents[1]
CODE = [*ROOT.glob("mlflow_unlearn/**/*.py"), *ROOT.glob("plugins/*/src/**/*.py")]
PAGES = [
    *(ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")),
    *ROOT.glob("docs/**/*.md"),
    *ROOT.glob("plugins/*/README.md"),
]
TEMPLATES = [
    *ROOT.glob("mlflow_unlearn/report/*.html"),
    # Of the card of an earlier release, which is made again word for word.
    *(path for path in ROOT.glob("mlflow_unlearn/report/*.j2") if path.name != "card_of_schema_2.md.j2"),
]
ODD = (
    r"have a class of the (test|validation) set, and",
    r"\band (\w+|\{\w+\}) are needed",
    r"\b(signs|sides) are failures",
    r"\b(this|it|that|which) tells nothing",
    r"a pass says nothing",
    r"\bis no (model|folder|file|gold standard|boolean|number|path|text|list|table|record|request)\b",
    r"\bis –, needs",
    r", needs (≤|≥|in)",
    r"\d\}?`? after unlearning",
    r"Go on although",
    r"too bad\b",
    r"not named refuses",
    r"\b[Rr]anks that share",
    r"[Cc]annot be told(?! (again|apart))",
    r"\bof no use\b",
    r"\bany more(?= *[.,;:)}]|$)",
    r"\bthat is there\b",
    r"\bamid\b",
    r"\b(to|the \w+) go(es)? on where",
    r"is asked of",
    r"in a way of its own",
)
REPEATED = re.compile(r"(?<![\w.{}<>/|`-])([A-Za-z]+)(?: +| *\n *)\1(?![\w.{}<>/|`-])")
RIGHT = {"that that", "had had"}


def sentences(path: Path) -> Iterator[tuple[int, str]]:
    """Texts in a module with the line that they begin in, but for docstrings; what is filled in is ``{…}``."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped = set[int]()
    for node in ast.walk(tree):
        for statement in getattr(node, "body", []) if isinstance(getattr(node, "body", None), list) else []:
            # A command's own is its help.
            if isinstance(statement, ast.Expr) and not (isinstance(node, ast.ClassDef) and path.name == "config.py"):
                skipped.add(id(statement.value))
        if isinstance(node, ast.JoinedStr):
            skipped |= {id(inner) for inner in ast.walk(node) if isinstance(inner, ast.Constant)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            parts = (part.value if isinstance(part, ast.Constant) else "{…}" for part in node.values)
            yield node.lineno, "".join(map(str, parts))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in skipped:
            yield node.lineno, node.value


@cache
def texts() -> list[tuple[str, str]]:
    """Where a text is, and the text."""
    found = []
    for path in CODE:
        for line, text in sentences(path):
            found.append((f"{path.relative_to(ROOT)}:{line}", text))
    for path in (*PAGES, *TEMPLATES):
        found.append((str(path.relative_to(ROOT)), path.read_text(encoding="utf-8")))
    return found


@pytest.mark.parametrize("phrase", ODD)
def test_no_odd_phrase_is_left(phrase):
    """The changelog may name what it has replaced."""
    found = {f"{where}: {match[0]}" for where, text in texts() if where != "CHANGELOG.md"
             for match in re.finditer(phrase, text)}  # fmt: skip
    assert not found


def test_no_word_stands_twice():
    found = [
        f"{where}: {match[0]}" for where, text in texts() for match in REPEATED.finditer(text)
        if " ".join(match[0].split()) not in RIGHT
    ]  # fmt: skip
    assert not found


def test_the_rules_find_something():
    assert REPEATED.search("it is the\nthe last") and not REPEATED.search("x - x, mlflow-unlearn unlearn")
    assert any(
        re.search(phrase, "8 forgotten samples have a class of the test set, and 10 are needed") for phrase in ODD
    )
    assert any("did you mean" in text for _, text in texts()), "texts of the package are read"


def test_no_number_is_a_misspelt_one():
    assert did_you_mean("17", ["1", "7", "170"]) == "valid values: '1', '7', '170'"
    assert did_you_mean("17a", ["17"]).startswith("did you mean '17'?")


def test_spelling():
    """As `make lint` does."""
    program = shutil.which("codespell", path=str(Path(sys.executable).parent)) or "codespell"
    paths = ("docs", "plugins", "mlflow_unlearn", "README.md", "CHANGELOG.md", "CONTRIBUTING.md")
    checked = subprocess.run([program, *paths], cwd=ROOT, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr
