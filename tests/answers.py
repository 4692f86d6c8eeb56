"""Answers of commands with `--format json`, held against their schemas."""

import json
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator
from stores import Outcome, call

SCHEMAS = Path(__file__).parents[1] / "docs" / "schemas"
V1, V2, V3, V4 = (("--model-uri", f"models:/clf/{number}") for number in range(1, 5))


def checked(done: Outcome, command: str, *, code: int = 0) -> dict[str, Any]:
    """The one document, which is as the schema has it and gives the exit code."""
    answer: dict[str, Any] = json.loads(done.out)  # which fails where anything else stands there
    schema = json.loads((SCHEMAS / f"{command}.schema.json").read_text(encoding="utf-8"))
    Draft202012Validator(schema).validate(answer)
    assert (done.code, answer["exit_code"]) == (code, code), done.err
    assert (answer["error"] is None) == (code == 0)
    return answer


def answer(command: str, *arguments: object, code: int = 0) -> dict[str, Any]:
    return checked(call(command, *arguments, "--format", "json"), command, code=code)
