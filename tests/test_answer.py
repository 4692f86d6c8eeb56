"""What `--format json` leaves on standard output."""

import json
import subprocess
import sys

import pytest
from pydantic import Field

from mlflow_unlearn import errors
from mlflow_unlearn.answer import Answer, CommandResult, nothing_else, problem, result_of


class Counted(CommandResult):
    count: float = Field(description="How many.")


def counted() -> Counted:
    return Counted(count=1)


def test_an_answer_has_its_own_result():
    content = json.loads(Answer[CommandResult](command="data", exit_code=3, result=Counted(count=2)).to_json())
    assert content["result"] == {"count": 2.0} and content["exit_code"] == 3 and content["error"] is None
    assert json.loads(Answer[CommandResult](command="x", exit_code=0, result=Counted(count=float("nan"))).to_json())[
        "result"
    ] == {"count": None}


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (errors.UnlearnError("a"), "bad input"),
        (errors.Refused("a"), "refused"),
        (errors.NothingToUnlearn("a"), "nothing to unlearn"),
        (KeyboardInterrupt(), "stopped"),
        (ZeroDivisionError(), "crashed"),
    ],
)
def test_errors_have_a_kind(error, kind):
    assert problem(error, "why").kind == kind


def test_the_result_of_a_command_is_what_it_says_it_returns():
    assert result_of(counted) is Counted and result_of(test_errors_have_a_kind) is None


def test_an_error_may_have_a_result():
    assert errors.Refused("no", Counted(count=1)).result == Counted(count=1)


def test_nothing_else_is_on_standard_output():
    """Nor what a process prints that the command starts, or code that knows no Python stream."""
    code = (
        "import os, subprocess, sys\n"
        "from mlflow_unlearn.answer import nothing_else\n"
        "with nothing_else():\n"
        "    print('python'); os.write(1, b'descriptor\\n'); subprocess.run(['echo', 'child'])\n"
        "print('answer')\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "answer\n" and set(ran.stderr.split()) == {"python", "descriptor", "child"}


def test_streams_in_memory_come_back(capsys):
    with nothing_else():
        print("for people")
    print("answer")
    assert capsys.readouterr() == ("answer\n", "for people\n")
