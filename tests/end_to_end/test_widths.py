"""Tables of the commands at 80 and 120 columns: no line is longer."""

import re

import pytest
from stores import call

TWO = ("--model-uri", "models:/clf/2")
TABLES = (
    ("methods",),
    ("data", "--data", "digits,train=15%"),
    ("review", *TWO, "--policy", "lenient.yaml"),
    ("review", *TWO),
    ("verify", *TWO),
    ("exposure", *TWO),
    ("locate", "--forget", "class:3"),
    ("requests", "--state", "all"),
    ("requests", "--case", "ID"),
    ("evaluate", *TWO),
    ("unlearn", "--model-uri", "models:/clf/4", "--forget", "random:9,seed=4", "--plan", "true"),
)


@pytest.mark.parametrize("arguments", TABLES, ids=lambda arguments: " ".join(arguments[:1]))
def test_tables(chain, monkeypatch, arguments):
    [request] = chain.requests("1")
    arguments = [request if one == "ID" else one for one in arguments]
    for width in (80, 120, None):
        monkeypatch.setenv("COLUMNS", str(width)) if width else monkeypatch.delenv("COLUMNS", raising=False)
        done = call(*arguments)
        drawn = [line.rstrip() for line in done.out.splitlines() if re.match("[┏┃┡│├└┌]", line)]
        assert done.code in (0, 3) and drawn, done.err
        assert max(map(len, drawn)) <= (width or 130), done.out
