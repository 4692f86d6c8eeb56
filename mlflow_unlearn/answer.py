"""What a command says to a program: with ``--format json``, one document on standard output and nothing else there."""

import os
import sys
import typing
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, SerializeAsAny

from mlflow_unlearn.errors import NothingToUnlearn, Refused, UnlearnError


class Result(BaseModel):
    """Base of what commands return: the part of the answer that differs from command to command."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=True)


R = TypeVar("R", bound=Result)

Kind = Literal["bad input", "refused", "nothing to unlearn", "stopped", "crashed"]


class Problem(BaseModel):
    """Why a command did not do what it was asked for."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Kind
    message: str = Field(description="One sentence: what is wrong, and the way out.")


class Answer(BaseModel, Generic[R]):
    """What a command has done. A command that refuses may have a result beside its error, such as a verdict."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    command: str
    exit_code: int = Field(description="0 done or passed, 2 bad input, 3 judged and refused, 130 and 143 stopped.")
    result: SerializeAsAny[R] | None = None
    error: Problem | None = None
    note: str | None = Field(None, description="What else is to be known, such as that it was done before.")

    def to_json(self) -> str:
        """One document; numbers that are not finite are null."""
        return self.model_dump_json(indent=1) + "\n"


def problem(error: BaseException, message: str) -> Problem:
    """An error as programs read it."""
    kind: Kind = "stopped"
    if isinstance(error, Exception):
        kinds: dict[type[Exception], Kind] = {NothingToUnlearn: "nothing to unlearn", Refused: "refused"}
        of_usage: Kind = "bad input" if isinstance(error, UnlearnError) or hasattr(error, "exit_code") else "crashed"
        kind = next((name for of, name in kinds.items() if isinstance(error, of)), of_usage)
    return Problem(kind=kind, message=message)


def result_of(function: Callable[..., Any]) -> type[Result] | None:
    """What a command's function returns, by its annotation; None where that is nothing."""
    returned = typing.get_type_hints(function).get("return")
    return returned if isinstance(returned, type) and issubclass(returned, Result) else None


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
