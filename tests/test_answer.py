"""What `--format json` leaves on standard output."""

import io
import json
import subprocess
import sys

import pytest
from pydantic import Field

from mlflow_unlearn import errors
from mlflow_unlearn.answer import (
    Answer,
    CommandResult,
    answers_of_ranks,
    deliver,
    found_so_far,
    nothing_else,
    problem,
    result_of,
    schema,
)
from mlflow_unlearn.console import Output


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


def test_an_error_takes_along_what_was_found():
    with pytest.raises(errors.Refused) as refused, found_so_far(lambda: Counted(count=1)):
        raise errors.Refused("no")
    assert refused.value.result == Counted(count=1)
    with pytest.raises(errors.Refused) as refused, found_so_far(lambda: Counted(count=1)):
        raise errors.Refused("no", Counted(count=2))
    assert refused.value.result == Counted(count=2)


def test_every_field_is_in_a_document():
    described = json.loads(schema("data", Counted))
    assert described["required"] == ["command", "error", "exit_code", "note", "result", "schema_version"]
    assert described["properties"]["command"]["const"] == "data"


class Named(CommandResult):
    failed: dict[str, str]


def test_passwords_are_hidden_and_the_document_stays_one(monkeypatch):
    """Also on the way to standard output, where they are hidden line by line."""
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stdout", Output(stream))
    result = Named(failed={"a?pass=x": 'b?password=y"z', "c": "d?pass="})
    deliver(Answer[CommandResult](command="data", exit_code=0, result=result).to_json())
    assert json.loads(stream.getvalue())["result"]["failed"] == {"a?pass=***": 'b?password=***"z', "c": "d?pass="}


def test_text_that_is_not_unicode_is_written_as_ascii():
    answer = Answer[CommandResult](command="data", exit_code=2, error=problem(errors.UnlearnError("a"), "ü \udcff"))
    assert answer.to_json().isascii() and json.loads(answer.to_json())["error"]["message"] == "ü \udcff"


@pytest.mark.parametrize(
    ("answers", "code", "counts"),
    [
        ({"0": 0}, 0, "0"),
        ({"0": 1, "1": 2}, 2, "1"),  # the first only sees that the other has ended
        ({"0": 143}, 130, "0"),  # the signal that was sent is another than the ranks were ended with
        ({}, 0, None),
    ],
)
def test_one_of_several_ranks_answers(monkeypatch, capsys, answers, code, counts):
    with answers_of_ranks() as chosen:
        for rank, own in answers.items():
            monkeypatch.setenv("RANK", rank)
            deliver(json.dumps({"exit_code": own, "rank": rank}))
        answer = chosen(code)
    assert (None if answer is None else json.loads(answer)) == (counts and {"exit_code": code, "rank": counts})
    assert capsys.readouterr().out == ""


def test_without_a_place_for_answers_the_first_rank_prints(monkeypatch, capsys):
    for rank in ("1", "0"):
        monkeypatch.setenv("RANK", rank)
        deliver(f"{rank}\n")
    assert capsys.readouterr().out == "0\n"


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
