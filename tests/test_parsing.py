"""What users and other programs write: whatever is wrong with it is one short sentence, found in no time."""

import time
from typing import Literal

import pytest
from pydantic import BaseModel, JsonValue, ValidationError

from mlflow_unlearn.parsing import NumbersAreNumbers, load_json, load_options, load_yaml, read_text

DEEP = 20_000
BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
MERGES = "a: &a {x: 1}\n" + "".join(
    f"{name}: &{name} {{<<: [{', '.join([f'*{before}'] * 9)}]}}\n"
    for before, name in zip("abcdefg", "bcdefgh", strict=True)
)


@pytest.mark.parametrize("load", [load_json, load_yaml])
@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[" * DEEP + "]" * DEEP, "more than 100 levels inside each other"),
        ('{"a":' * DEEP + "1" + "}" * DEEP, "more than 100 levels inside each other"),
        ("[" * 101 + "]" * 101, "more than 100 levels inside each other"),
        ('{"a": ' + "9" * 5000 + "}", "a number of 5000 digits"),
        ('{"a": 0.' + "9" * 5000 + "}", "a number of 5002 digits"),
        ('{"a": 1, "b": {"c": 2, "c": 3}}', "the key 'c' occurs twice"),
        (b'{"a": "\xff"}', "'utf-8' codec can't decode byte 0xff"),
        ('{"a": ', ""),
    ],
    ids=["lists", "mappings", "101", "digits", "decimals", "twice", "latin", "cut"],
)
def test_what_neither_reads(load, text, says):
    started = time.perf_counter()
    with pytest.raises(ValueError) as error:
        load(text)
    assert says in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 300
    assert not isinstance(error.value, RecursionError) and time.perf_counter() - started < 5


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (BOMB, "more than 100000 values, with those that its aliases repeat"),
        (MERGES, "more than 100000 values, with those that its aliases repeat"),
        ("a: &a [*a]", "more than 100 levels inside each other"),
        ("a: &a {b: *a}", "more than 100 levels inside each other"),
        ("\n".join("  " * n + "a:" for n in range(3000)), "more than 100 levels inside each other"),
        ("- " * DEEP, "more than 100 levels inside each other"),
        ("a: 1\nb: 2\na: 3", "line 1: the key 'a' occurs twice"),
        ("a:\n\t- 1", "line 2, column 1: while scanning for the next token, found character '\\t'"),
        ("a: " + "1:" * 3000 + "1", "a number of 6001 digits"),
        ("!!python/object/apply:os.system [ls]", "could not determine a constructor for the tag"),
        ("a: 1\n---\nb: 1", "expected a single document"),
        ("a: \0", "special characters are not allowed"),
        ("a: 2026-13-45", "month must be in 1..12"),
    ],
)
def test_what_yaml_alone_can_do(text, says):
    started = time.perf_counter()
    with pytest.raises(ValueError) as error:
        load_yaml(text)
    assert says.lower() in str(error.value).lower() and "\n" not in str(error.value)
    assert time.perf_counter() - started < 5


def test_what_is_read():
    assert load_yaml("a: &a [1, x]\nb: *a\nc: {<<: &m {d: 1}, e: 2}") == {
        "a": [1, "x"], "b": [1, "x"], "c": {"d": 1, "e": 2},
    }  # fmt: skip
    assert load_yaml("") is None and load_yaml(b"\xef\xbb\xbfa: 1") == {"a": 1}
    assert load_json("\ufeff" + "[" * 99 + "1" + "]" * 99) and load_json(b'\xef\xbb\xbf{"a": 1e308}') == {"a": 1e308}
    assert load_json("[NaN, -Infinity]")[1] == float("-inf")  # records of other programs have it


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{a: [1, .nan]}", "a[1] = nan is not a finite number"),
        ("a: {b: -.inf}", "a.b = -inf is not a finite number"),
        ("on: 1", "the key True is not a text"),
        ("{1: 2}", "the key 1 is not a text"),
        ("{? [a] : 2}", "found unhashable key"),
        ("a: 2026-01-01", "a is read as a date: put it in quotes"),
        ("a: !!binary aGk=", "a is read as a bytes"),
        ("a: !!set {b}", "a is read as a set"),
    ],
)
def test_what_options_cannot_be(text, says):
    with pytest.raises(ValueError) as error:
        load_options(text, yaml=True)
    assert says in str(error.value)
    assert load_options("a: [1, 2.5, x, true, null]", yaml=True) == {"a": [1, 2.5, "x", True, None]}
    with pytest.raises(ValueError, match="a = inf is not a finite number"):
        load_options('{"a": 1e999}', yaml=False)


def test_files(tmp_path):
    (tmp_path / "crlf.txt").write_bytes(b"\xef\xbb\xbfa\r\nb\rc\n")
    assert read_text(tmp_path / "crlf.txt") == "a\nb\nc\n"
    with pytest.raises(ValueError, match="it has more than 1000 bytes"):
        read_text("/dev/zero", 1000)
    with pytest.raises(OSError, match="Is a directory"):
        read_text(tmp_path)


class Inner(NumbersAreNumbers):
    size: int


class Outer(NumbersAreNumbers):
    whole: int = 0
    maybe: float | None = None
    by_name: dict[str, int] = {}
    one: Literal[1] = 1
    flag: bool = False
    either: list[bool | int] = []
    anything: JsonValue = None
    inner: Inner | None = None


@pytest.mark.parametrize(
    "values",
    [{"whole": True}, {"maybe": False}, {"by_name": {"a": 1, "b": True}}, {"one": True}, {"inner": {"size": True}}],
)
def test_true_is_not_a_number(values):
    with pytest.raises(ValidationError, match="true and false are not numbers"):
        Outer(**values)


def test_true_is_what_else_it_may_be():
    values = {"flag": True, "either": [True, 2], "anything": {"a": [True]}, "inner": {"size": 3}, "maybe": None}
    assert Outer(**values).model_dump(include=set(values)) == values
    assert Outer(whole="7", maybe="1e-4").maybe == 1e-4  # as YAML reads numbers
    assert issubclass(Outer, BaseModel)
