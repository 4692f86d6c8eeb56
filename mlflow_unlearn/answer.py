"""What a command says to a program: with ``--format json``, one document on standard output and nothing else there."""

import json
import math
import os
import sys
import tempfile
import typing
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, SerializeAsAny

from mlflow_unlearn.console import Output, without_passwords
from mlflow_unlearn.errors import NothingToUnlearn, Refused, UnlearnError


class CommandResult(BaseModel):
    """Base of what commands return: the part of the answer that differs from command to command."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=True)

    def next_step(self, options: Any) -> str | None:  # noqa: ARG002
        """The command that usually follows, ready to paste; None where there is none. It never destroys anything.

        Args:
            options: of the command that has returned this.
        """
        return None


R = TypeVar("R", bound=CommandResult)

Kind = Literal["bad input", "refused", "nothing to unlearn", "stopped", "crashed"]


class Problem(BaseModel):
    """Why a command did not do what it was asked for."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Kind
    message: str = Field(description="One sentence: what is wrong, and the way out.")


class Answer(BaseModel, Generic[R]):
    """What a command has done. Beside an error there may be a result as well, such as the verdict that refuses."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    command: str
    exit_code: int = Field(
        description="0 done or passed, 1 crashed, 2 bad input, 3 judged and refused, 130 or 143 stopped."
    )
    result: SerializeAsAny[R] | None = None
    error: Problem | None = None
    note: str | None = Field(None, description="What else is to be known, such as that it was done before.")

    def to_json(self) -> str:
        """One document in ASCII, whatever the terminal's encoding; numbers that are not finite are null.

        Without passwords, each text by itself: what hides them in the whole document would take a quote or a brace
        along.
        """
        return json.dumps(_shown(self.model_dump()), indent=1) + "\n"


def _shown(value: Any) -> Any:
    if isinstance(value, str):
        return without_passwords(value)
    if isinstance(value, dict):
        return {_shown(key): _shown(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_shown(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def problem(error: BaseException, message: str) -> Problem:
    """An error as programs read it."""
    kind: Kind = "stopped"
    if isinstance(error, Exception):
        kinds: dict[type[Exception], Kind] = {NothingToUnlearn: "nothing to unlearn", Refused: "refused"}
        of_usage: Kind = "bad input" if getattr(error, "exit_code", 1) != 1 else "crashed"
        kind = next((name for of, name in kinds.items() if isinstance(error, of)), of_usage)
    return Problem(kind=kind, message=message)


@contextmanager
def found_so_far(result: Callable[[], CommandResult]) -> Iterator[None]:
    """An error of ours that leaves the block takes along what the command has found until then."""
    try:
        yield
    except UnlearnError as error:
        error.result = error.result or result()
        raise


def schema(command: str, result: type[CommandResult]) -> str:
    """The text of ``docs/schemas/COMMAND.schema.json``."""
    described = Answer[result].model_json_schema()  # type: ignore[valid-type]
    described["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    described["title"] = f"Answer of mlflow-unlearn {command}"
    described["properties"]["command"]["const"] = command
    for record in (described, *described["$defs"].values()):
        if "properties" in record:
            record["required"] = sorted(record["properties"])  # what has a default is written as well
    return json.dumps(described, indent=1, sort_keys=True) + "\n"


def result_of(function: Callable[..., Any]) -> type[CommandResult] | None:
    """What a command's function returns, by its annotation; None where that is nothing."""
    returned = typing.get_type_hints(function).get("return")
    return returned if isinstance(returned, type) and issubclass(returned, CommandResult) else None


@contextmanager
def nothing_else() -> Iterator[None]:
    """Inside the block, what this process and those that it starts print goes to standard error.

    The tables and notes are for people; a program reads the answer alone.
    """
    own, kept = sys.stdout, None
    own.flush()
    with suppress(OSError, ValueError):  # a stream in memory, which no other process can write to
        if own.fileno() == 1:
            kept = os.dup(1)
            os.dup2(2, 1)
    sys.stdout = sys.stderr
    try:
        yield
    finally:
        sys.stderr.flush()
        sys.stdout = own
        if kept is not None:
            os.dup2(kept, 1)
            os.close(kept)


ANSWERS_VARIABLE = "MLFLOW_UNLEARN_ANSWERS"
"""The folder in which the ranks of a command leave their answers; who has started them prints one."""


def deliver(text: str) -> None:
    """Print an answer; a rank leaves it to the process that has started it, and without one the first rank prints."""
    rank, folder = os.environ.get("RANK"), os.environ.get(ANSWERS_VARIABLE)
    if rank is not None and folder is not None:
        begun = Path(folder, f"{rank}.begun")
        begun.write_text(text, encoding="utf-8")
        begun.replace(begun.with_suffix(".json"))
    elif rank in (None, "0"):
        if isinstance(sys.stdout, Output):
            sys.stdout.write_as_is(text)
        else:
            print(text, end="")


@contextmanager
def answers_of_ranks() -> Iterator[Callable[[int], str | None]]:
    """Inside the block, ranks leave their answers; yields what gives, of a command's exit code, the one that counts.

    It is that of a rank with this code, which may not be the first one's: that only sees that another one has ended.
    None where no rank of this machine has answered, and none has failed.
    """
    with tempfile.TemporaryDirectory(prefix="mlflow-unlearn-answers-") as folder:
        os.environ[ANSWERS_VARIABLE] = folder

        def chosen(code: int) -> str | None:
            files = sorted(Path(folder).glob("*.json"), key=lambda file: int(file.stem))
            found = [json.loads(file.read_text(encoding="utf-8")) for file in files]
            if not found:
                return None
            answer = next((one for one in reversed(found) if one["exit_code"] == code), found[0])
            return json.dumps({**answer, "exit_code": code}, indent=1) + "\n"

        try:
            yield chosen
        finally:
            del os.environ[ANSWERS_VARIABLE]
