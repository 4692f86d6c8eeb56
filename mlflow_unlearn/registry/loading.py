"""What loading a version would run, decided from its files alone: the one way from an opened version to a loaded one.

The list is on the safe side: what is not known to hold data alone counts as code.
"""

import ast
import io
import json
import re
import warnings
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from mlflow_unlearn.config import ReadOptions, Request
from mlflow_unlearn.engine.architectures import is_factory
from mlflow_unlearn.errors import Refused
from mlflow_unlearn.registry.versions import Version


def admitted(version: Version, options: ReadOptions | Request) -> Version:
    """The version with what loading it will run in ``code``; for a `Request` only its data are read.

    Raises:
        Refused: there is something, and the options forbid it.
    """
    found = tuple(_code(version, options))
    if found and options.no_code:
        raise Refused(
            f"loading {version.uri} would run code ({'; '.join(found)}), which no_code forbids: nothing was loaded; "
            "leave no_code out if you trust all of it, or choose a version in pt2 format of a known architecture"
        )
    return replace(version, code=found)


def _code(version: Version, options: ReadOptions | Request) -> Iterator[str]:
    record = version.record
    data = options.data or (record.data if record is not None else None)
    if data is not None and data.startswith("python:"):
        yield f"its data source is {data}"
    if isinstance(options, Request):
        return
    if version.format == "pickle":
        yield "its model is a pickle"
    elif (reason := code_in_program(version.program)) is not None:
        yield f"its exported program {reason}"
    if version.model.flavors["pytorch"].get("code"):
        yield "it brings a folder of code, which is searched first for all that is imported"
    transform = options.transform or (record.transform if record is not None else None)
    if transform is not None and transform.startswith("python:"):
        yield f"its transform is {transform}"
    architecture = options.architecture or (record.architecture if record is not None else None)
    if architecture is not None and is_factory(architecture):
        yield f"its architecture is the function {architecture}"


def code_in_program(path: Path) -> str | None:
    """Why ``torch.export.load`` would run code of this pt2 archive; None where it holds data alone.

    Beside pickles and compiled libraries it runs what the graph's JSON names: shapes and guards are evaluated as
    Python, names go into generated source, and an operation may be any function below ``torch``. So of each string
    only what an image classifier needs counts as data.
    """
    try:
        reader = torch._C.PyTorchFileReader(
            str(path)
        )  # torch's own: another one may find other records in the same file
        names = reader.get_all_records()
        with zipfile.ZipFile(path) as archive:
            old = "version" in archive.namelist()
    except (RuntimeError, OSError, zipfile.BadZipFile):
        return "cannot be read before it is loaded"
    if old:
        return "is in torch's earlier format, which holds pickles"
    configs = {name: reader.get_record(name) for name in names if _CONFIG.fullmatch(name)}
    tensors = _raw_tensors(configs)
    for name in names:
        if name.startswith("data/aotinductor/"):
            return f"brings a compiled library ({name})"
        if name.startswith("models/") or name in configs:
            if (found := _first_code(reader.get_record(name))) is not None:
                return f"is more than a graph ({name}: {found[:80]!r})"
        elif name.startswith("data/") and name not in tensors and not _safely_unpickled(reader.get_record(name)):
            return f"holds a pickle ({name})"
    return None


_CONFIG = re.compile(r"(data/(?:weights|constants)/)[^/]+_config\.json")


def _raw_tensors(configs: dict[str, bytes]) -> set[str]:
    """The records that are read as bytes of a tensor, and by no entry as a pickle."""
    kinds: dict[bool, set[str]] = {True: set(), False: set()}
    for name, content in configs.items():
        folder = name.rpartition("/")[0]
        try:
            for entry in json.loads(content)["config"].values():
                raw = entry["use_pickle"] is False and entry["path_name"].startswith(("weight_", "tensor_"))
                kinds[raw].add(f"{folder}/{entry['path_name']}")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return set()
    return kinds[True] - kinds[False]


def _safely_unpickled(content: bytes) -> bool:
    """Whether torch's restricted unpickler, which knows tensors and plain containers alone, takes all of it."""
    try:
        with warnings.catch_warnings(action="ignore"):
            torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception:  # Whatever crafted bytes raise.
        return not content
    return True


_OPERATIONS = re.compile(
    r"torch\.ops\.aten\.(?!__)\w+\.(?!__)\w+|torch\.ops\.higher_order\.wrap_with_\w+|torch\.sym_\w+|math\.trunc|"
    r"_operator\.(getitem|eq|ne|le|ge|lt|gt|neg|pos|mul|add|sub|floordiv|truediv|mod|pow|and_|or_|lshift|rshift)"
)
_FUNCTIONS = frozenset(
    "Symbol Integer Float Rational Add Mul Pow Mod PythonMod Max Min Abs FloorDiv CleanDiv CeilDiv CeilToInt "
    "FloorToInt TruncToFloat TruncToInt RoundToInt ToFloat IntTrueDiv FloatTrueDiv PowByNatural FloatPow Identity "
    "ModularIndexing Where floor ceiling And Or Not Equality Unequality GreaterThan LessThan StrictGreaterThan "
    "StrictLessThan".split()
)
"""Of shapes: sympy's and torch's."""
_WORD = re.compile(r"[\w.+]*")
_ARITHMETIC = (ast.BinOp, ast.operator, ast.UnaryOp, ast.unaryop, ast.Compare, ast.cmpop, ast.BoolOp, ast.boolop)
_SYNTAX = (ast.Expression, ast.Call, ast.keyword, ast.Name, ast.Load, ast.Constant, *_ARITHMETIC)


def _first_code(content: bytes) -> str | None:
    """The first string of a JSON record that may be more than data."""
    try:
        return next(_more_than_data(json.loads(content)), None)
    except (ValueError, RecursionError) as error:
        return type(error).__name__


def _more_than_data(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if "target" in value:  # of an operation
            if not _OPERATIONS.fullmatch(str(value["target"])):
                yield str(value["target"])
            # What stands in its metadata is for people.
            value = {key: part for key, part in value.items() if key not in ("target", "metadata")}
        if "as_operator" in value:
            yield str(value["as_operator"])
        for key, part in value.items():
            yield from _more_than_data(key)
            yield from _more_than_data(part)
    elif isinstance(value, list):
        for part in value:
            yield from _more_than_data(part)
    elif isinstance(value, str) and not (_WORD.fullmatch(value) or _is_shape(value) or _is_structure(value)):
        yield value


def _is_shape(text: str) -> bool:
    """Whether it is arithmetic on sizes, such as ``Max(Symbol('s0'), Integer(1))``."""
    try:
        nodes = list(ast.walk(ast.parse(text, mode="eval")))
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return False
    return all(
        isinstance(node, _SYNTAX)
        and (not isinstance(node, ast.Call) or getattr(node.func, "id", "") in _FUNCTIONS)
        and not (isinstance(node, ast.Constant) and isinstance(node.value, str) and not _WORD.fullmatch(node.value))
        for node in nodes
    )


def _is_structure(text: str) -> bool:
    """Whether it is JSON that says how inputs and outputs are nested in tuples, lists and dicts."""

    def plain(value: Any) -> bool:
        if isinstance(value, dict):
            return all(map(plain, [*value, *value.values()]))
        if isinstance(value, list):
            return all(map(plain, value))
        if not isinstance(value, str) or re.fullmatch(r"(builtins\.(tuple|list|dict))?|\w+", value):
            return True
        return _is_structure(value)

    try:
        return plain(json.loads(text))
    except (ValueError, RecursionError):
        return False
