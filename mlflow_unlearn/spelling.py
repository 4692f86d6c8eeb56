"""Options in sentences, as their user types them: in the shell, as ``-P`` of `mlflow run`, or as Python's arguments."""

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

Spelling = Literal["shell", "project", "python"]

_spelling: dict[str, Spelling] = {"now": "python"}


@contextmanager
def spelling(way: Spelling) -> Iterator[None]:
    """Whose the user's spelling is, inside the block."""
    before, _spelling["now"] = _spelling["now"], way
    try:
        yield
    finally:
        _spelling["now"] = before


def spelled(name: str, value: object = None) -> str:
    """An option as the user types it, with its value where there is one.

    >>> spelled("until", "pass")
    'until=pass'
    >>> with spelling("shell"):
    ...     spelled("model_uri"), spelled("data", "folder:my images"), spelled("force", True)
    ('--model-uri', "--data 'folder:my images'", '--force')
    >>> with spelling("project"):
    ...     spelled("model_uri"), spelled("force", True)
    ('-P model_uri=', '-P force=true')
    """
    text = "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    text = text.removesuffix(".0") if isinstance(value, float) else text
    if _spelling["now"] == "project":
        return f"-P {shlex.quote(f'{name}={text}')}"
    if _spelling["now"] == "python":
        return f"{name}={shlex.quote(text) if text else ''}"
    flag = f"--{name.replace('_', '-')}"
    return flag if value is None or value is True else f"{flag} {shlex.quote(text)}"


def command_line(*arguments: str, remark: str = "") -> str:
    """A command of ours, ready to paste where the user has started this one.

    Args:
        arguments: its name, and its options as the shell has them.
        remark: a comment behind it.

    >>> with spelling("project"):
    ...     command_line("review", "--model-uri", "models:/my model/2")
    "mlflow run . -e review -P 'model_uri=models:/my model/2'"
    """
    if _spelling["now"] != "project":
        return shell_line(*arguments, remark=remark)
    name, *rest = arguments
    parts = ["mlflow", "run", ".", "-e", name]
    while rest:
        option = rest.pop(0).removeprefix("--").replace("-", "_")
        value = rest.pop(0) if rest and not rest[0].startswith("--") else ""
        parts += ["-P", f"{option}={value}"]
    return _with_remark(parts, remark)


def shell_line(*arguments: str, remark: str = "") -> str:
    """A command of the shell, ready to paste: for what is stored.

    >>> shell_line("review", "--model-uri", "models:/my model/2")
    "mlflow-unlearn review --model-uri 'models:/my model/2'"
    """
    return _with_remark(["mlflow-unlearn", *arguments], remark)


def _with_remark(parts: list[str], remark: str) -> str:
    return shlex.join(parts) + (f"  # {remark}" if remark else "")
