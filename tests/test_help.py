"""Help of the command line: as it is stored, no line longer than the terminal, and each option is in it."""

import re

import pytest
from snapshot import FOLDER, at_each_width, check_stored
from stores import call

from mlflow_unlearn.config import COMMANDS, options


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help(command):
    def printed() -> str:
        done = call(*filter(None, [command]), "--help")
        assert (done.code, done.err) == (0, "")
        return done.out

    texts = at_each_width(printed)
    for width, text in texts.items():
        lines = text.splitlines()
        assert max(map(len, lines)) <= (width or 80) and not [line for line in lines if line != line.rstrip()]
        if command:
            assert all(f"--{name.replace('_', '-')}" in text for name in options(COMMANDS[command]))
            # As a shell reads it, the example is the one that is declared.
            example = text.partition("Example:\n")[2].partition("\n\n")[0]
            assert re.sub(r"\s*\\\n\s*", " ", example).strip() == COMMANDS[command].example
    check_stored(f"help/{command or 'mlflow-unlearn'}", texts)


def test_nothing_else_is_stored():
    assert {path.stem for path in (FOLDER / "help").iterdir()} == {"mlflow-unlearn", *COMMANDS}
