"""The one place that reads JSON, YAML and numbers that users, or somebody else's files, contain.

Whatever is wrong with them is a ``ValueError`` whose message is one sentence; the caller adds where the text stood.
"""

import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from pydantic import BaseModel, ValidationInfo, field_validator

if TYPE_CHECKING:
    from yaml.nodes import Node

DEEPEST = 100
"""Levels of a text; Python itself gives up at some hundreds, and where depends on the caller."""
LONGEST_NUMBER = 400
"""Digits: more than any float has."""
MOST_NODES = 100_000
"""Values of a YAML file, with those that its aliases repeat: a few lines can stand for billions."""
LARGEST_FILE = 2**18
"""Bytes of a file of options or of a policy; YAML takes some seconds for as many."""
LARGEST_LIST = 2**30
"""Bytes of a list of ids."""


def load_json(text: str | bytes) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: it is none, has a key twice, NaN or Infinity, a number with too many digits, or too many levels.
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8-sig")
    try:
        value = json.loads(
            text.removeprefix("\ufeff"),
            object_pairs_hook=_unique,
            parse_constant=_not_finite,
            parse_int=_whole,
            parse_float=_decimal,
        )
    except RecursionError:
        raise ValueError(f"more than {DEEPEST} levels inside each other") from None
    _check_depth(value)
    return value


def load_yaml(text: str | bytes) -> Any:
    """The value of a YAML text of one document: text, numbers, booleans, lists and mappings.

    Raises:
        ValueError: it is none, or as with `load_json`; also where its aliases stand for too many values.
    """
    import yaml  # takes 30 ms, which `--help` does without

    if isinstance(text, bytes):
        text = text.decode("utf-8-sig")
    loader: Any = None
    try:
        loader = yaml.SafeLoader(text.removeprefix("\ufeff"))
        node = loader.get_single_node()
        if node is None:
            return None
        count = 0
        for count, _ in enumerate(_nodes(node)):  # noqa: B007
            if count > MOST_NODES:
                raise ValueError(f"more than {MOST_NODES} values, with those that its aliases repeat")
        value = loader.construct_document(node)
    except RecursionError:
        raise ValueError(f"more than {DEEPEST} levels inside each other") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark is not None else ""
        raise ValueError(where + ", ".join(filter(None, (error.context, error.problem)))) from error
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error
    finally:
        if loader is not None:
            loader.dispose()
    return value


def load_options(text: str | bytes, *, yaml: bool) -> Any:
    """What a user has written as JSON, or as YAML: besides, every number is finite and every key a text.

    Raises:
        ValueError: likewise, or there are values that JSON has not, such as dates.
    """
    value = load_yaml(text) if yaml else load_json(text)
    for path, inner in _values(value):
        if isinstance(inner, Mapping):
            for key in inner:
                if not isinstance(key, str):
                    raise ValueError(f"the key {key!r} is not a text: put it in quotes")
        elif isinstance(inner, float) and not math.isfinite(inner):
            raise ValueError(f"{path or 'the value'} = {inner} is not a finite number")
        elif not isinstance(inner, str | int | float | list | None):
            raise ValueError(f"{path or 'the value'} is read as a {type(inner).__name__}: put it in quotes")
    return value


def read_text(path: str | Path, largest: int = LARGEST_FILE) -> str:
    """The text of a file, its lines ended by a newline each, without the mark that some editors put before it.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not in UTF-8, or has more than ``largest`` bytes.
    """
    with open(os.path.expanduser(path), "rb") as file:
        content = file.read(largest + 1)  # some files, such as devices, have no end
    if len(content) > largest:
        raise ValueError(f"it has more than {largest} bytes")
    return content.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")


def whole_number(text: str) -> int | None:
    """The number that digits stand for; None for anything else, and for more digits than any count or seed has.

    >>> whole_number("12"), whole_number("-1"), whole_number("9" * 5000)
    (12, None, None)
    """
    return int(text) if re.fullmatch(r"\d{1,100}", text) else None


def message(error: Mapping[str, Any]) -> str:
    """What pydantic says of a value, as a part of a sentence.

    >>> message({"msg": "Value error, Give a number"})
    'give a number'
    """
    text: str = error["msg"].removeprefix("Value error, ")
    return text[:1].lower() + text[1:]


class NumbersAreNumbers(BaseModel):
    """A base that refuses ``true`` where a number is to stand; pydantic alone takes it for 1."""

    @field_validator("*", mode="before")
    @classmethod
    def _no_boolean(cls, value: Any, info: ValidationInfo) -> Any:
        if _takes_numbers_alone(cls, str(info.field_name)) and any(isinstance(v, bool) for _, v in _values(value)):
            raise ValueError("true and false are not numbers")
        return value


@cache
def _takes_numbers_alone(model: type[BaseModel], field: str) -> bool:
    """Or texts beside them, but no booleans, and no records, which check their own fields."""
    kinds = set(_kinds(model.model_fields[field].annotation))
    records = any(isinstance(kind, type) and issubclass(kind, BaseModel) for kind in kinds)
    return bool(kinds & {int, float}) and not kinds & {bool, Any} and not records


def _kinds(annotation: Any) -> Iterator[Any]:
    inner = get_args(annotation)
    if not inner:
        yield annotation if isinstance(annotation, type) or annotation is Any else type(annotation)
    for each in inner:
        yield from _kinds(each)


def _values(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """A value and all that are in it, each with its path; what an alias repeats is met again."""
    waiting = [(path, value)]
    while waiting:
        path, value = waiting.pop()
        yield path, value
        if isinstance(value, Mapping):
            waiting += [(f"{path}.{key}" if path else str(key), inner) for key, inner in value.items()]
        elif isinstance(value, list | tuple):
            waiting += [(f"{path}[{place}]", inner) for place, inner in enumerate(value)]


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(DEEPEST):
        inner = [each.values() if isinstance(each, dict) else each for each in level if isinstance(each, dict | list)]
        level = [each for some in inner for each in some]
        if not level:
            return
    raise ValueError(f"more than {DEEPEST} levels inside each other")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} occurs twice")
    return found


def _not_finite(name: str) -> float:
    """Python's own reading, with which `load_options` names the key; the text is not JSON."""
    return float(name)


def _whole(digits: str) -> int:
    return int(_not_too_long(digits))


def _decimal(digits: str) -> float:
    return float(_not_too_long(digits))


def _not_too_long(digits: str) -> str:
    if len(digits) > LONGEST_NUMBER:
        raise ValueError(f"a number of {len(digits)} digits")
    return digits


def _nodes(node: "Node") -> Iterator["Node"]:
    """The nodes of a YAML document, those behind an alias each time anew.

    Raises:
        ValueError: one of them is not usable.
    """
    import yaml

    waiting = [(node, 1)]
    while waiting:
        node, depth = waiting.pop()
        if depth > DEEPEST:  # an alias of what it stands in has no end
            raise ValueError(f"more than {DEEPEST} levels inside each other")
        yield node
        if isinstance(node, yaml.SequenceNode):
            waiting += [(inner, depth + 1) for inner in node.value]
        elif isinstance(node, yaml.MappingNode):
            names = [(key.tag, key.value) for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            if len(set(names)) < len(names):
                _, twice = next(name for name in names if names.count(name) > 1)
                raise ValueError(f"line {node.start_mark.line + 1}: the key {twice!r} occurs twice")
            waiting += [(inner, depth + 1) for pair in node.value for inner in pair]
        elif node.tag in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float"):
            _not_too_long(node.value)
