"""Whether an exported program (pt2) is data: tensors and a graph of what image classifiers compute.

`torch.export.load` runs what a crafted archive asks for, also without pickles and compiled libraries: it evaluates
sizes and guards as Python, puts names into the source of functions, imports what a nesting names, and an operation may
be any function below ``torch``. So each string is judged by the field in which torch reads it, and what is not known to
be harmless there counts as code.
"""

import ast
import dataclasses
import functools
import io
import json
import keyword
import re
import types
import typing
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch


def code_in_program(path: Path) -> str | None:
    """Why ``torch.export.load`` would run code of this pt2 archive; None where it holds data alone."""
    from torch._export.serde import schema  # torch's own: what it does not read as a name, it does not use as one

    try:
        # torch's own: another one may find other records in the same file
        reader = torch._C.PyTorchFileReader(str(path))
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
            kind = schema.PayloadConfig if name in configs else schema.ExportedProgram
            if (found := _first_code(kind, reader.get_record(name))) is not None:
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
            return _nameless(torch.load(io.BytesIO(content), map_location="cpu", weights_only=True))
    except Exception:  # Whatever crafted bytes raise.
        return not content


def _nameless(value: Any) -> bool:
    """Whether it holds no text but names: keys of the sample inputs get into the source of the guards."""
    if isinstance(value, dict):
        named = all(type(key) is int or isinstance(key, str) and _DOTTED.fullmatch(key) for key in value)
        return named and all(map(_nameless, value.values()))
    if isinstance(value, list | tuple):
        return all(map(_nameless, value))
    return not isinstance(value, str)


def _first_code(kind: Any, content: bytes) -> str | None:
    """The first part of a JSON record that may be more than data; ``kind`` is torch's class for it."""
    try:
        return next(_more_than_data(kind, json.loads(content.decode())), None)
    except (ValueError, RecursionError) as error:
        return type(error).__name__


_hints = functools.cache(typing.get_type_hints)


def _more_than_data(kind: Any, value: Any, field: str = "") -> Iterator[str]:
    """What may be code in a value that stands in a field of torch's schema, where it has this type."""
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        if value is not None:
            yield from _more_than_data(parts[0], value, field)
    elif isinstance(kind, type) and dataclasses.is_dataclass(kind) and isinstance(value, dict):
        if kind.__name__ == "Node":
            yield from _foreign_operation(value)
            value = {key: part for key, part in value.items() if key not in ("target", "inputs", "metadata")}
        for key, part in value.items():
            if key in _hints(kind):
                yield from _more_than_data(_hints(kind)[key], part, key)
            else:
                yield key
    elif origin is list and isinstance(value, list):
        for part in value:
            yield from _more_than_data(parts[0], part, field)
    elif origin is dict and isinstance(value, dict):
        for key, part in value.items():
            if not _DOTTED.fullmatch(key):
                yield key
            yield from _more_than_data(parts[1], part, field)
    elif kind is str and isinstance(value, str):
        if field not in _TEXTS or not _TEXTS[field](value):
            yield value
    elif not (
        isinstance(kind, type)
        and issubclass(kind, int | float)
        and (isinstance(value, int | float) or kind is float and value in _NOT_FINITE)
    ):
        yield str(value)


_NOT_FINITE = ("Infinity", "-Infinity", "NaN")


# Names


_DOTTED = re.compile(r"[\w.]*", re.ASCII)
"""A name of a parameter or module. torch writes it as attributes or, where it is no identifier, in quotes."""


def _is_name(text: str) -> bool:
    """Whether it is a name in generated source; torch leaves some of them empty."""
    return not text or re.fullmatch(r"[A-Za-z_]\w*", text, re.ASCII) is not None and not keyword.iskeyword(text)


# Sizes and guards

_FUNCTIONS = frozenset(
    "Symbol Integer Float Rational Add Mul Pow Mod PythonMod Max Min Abs FloorDiv CleanDiv CeilDiv CeilToInt "
    "FloorToInt TruncToFloat TruncToInt RoundToInt ToFloat IntTrueDiv FloatTrueDiv PowByNatural FloatPow Identity "
    "ModularIndexing Where floor ceiling And Or Not Equality Unequality GreaterThan LessThan StrictGreaterThan "
    "StrictLessThan max min abs".split()
)
"""Of sizes: sympy's, torch's and, in guards, Python's."""
_POWERS = ("Pow", "PowByNatural", "FloatPow")
_KEYWORDS = ("integer", "positive", "nonnegative", "real", "precision", "evaluate")
_QUOTED = re.compile(r"\b(?:(Symbol)\('[A-Za-z_]\w{0,30}'|(Float)\('-?[\d.]{1,30}(?:e[+-]?\d{1,2})?')", re.ASCII)
_SIZE = re.compile(
    r"\bL(?:\['[A-Za-z_]\w*'\]|\[\d+\])+\.(?:size\(\)\[\d+\]|stride\(\)\[\d+\]|storage_offset\(\))", re.ASCII
)
_OF_A_MODULE = re.compile(r"\b(?:torch\.sym_(?:float|int)|math\.(?:trunc|floor|ceil))\(")
_CHARACTERS = re.compile(r"[\w ,.()=<>!+*/%-]*", re.ASCII)
_SYNTAX = (
    *(ast.Expression, ast.Call, ast.keyword, ast.Name, ast.Load, ast.Constant, ast.BinOp, ast.UnaryOp, ast.Compare),
    *(ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod, ast.Pow, ast.USub, ast.cmpop),
    *(ast.BoolOp, ast.And, ast.Or, ast.Not),
)


def _is_guard(text: str) -> bool:
    """Whether it compares sizes of inputs, such as ``L['x'].size()[2] % 32 == 0``."""
    return _is_expression(_OF_A_MODULE.sub("Abs(", _SIZE.sub("(s0)", text)))


def _is_expression(text: str) -> bool:
    """Whether it is arithmetic on sizes, such as ``Max(Symbol('s0'), Integer(1))``, whose evaluation ends soon."""
    text = _QUOTED.sub(lambda found: f"{found[1] or found[2]}(s0", text)
    if not _CHARACTERS.fullmatch(text):
        return False
    try:
        tree = ast.parse(text, mode="eval")
        whole = [re.sub("[ ()]", "", part) for part in (ast.unparse(tree), text)]
        return whole[0] == whole[1] and all(map(_is_arithmetic, ast.walk(tree)))
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return False


def _is_arithmetic(node: ast.AST) -> bool:
    match node:
        case ast.Constant():
            return isinstance(node.value, int | float) and abs(node.value) < 2**63
        case ast.Name():
            return node.id in _FUNCTIONS or re.fullmatch(r"[a-z]{1,3}\d{1,9}|oo|int_oo|true|false", node.id) is not None
        case ast.keyword():
            return node.arg in _KEYWORDS and isinstance(node.value, ast.Constant)
        case ast.Call() if getattr(node.func, "id", None) in _POWERS:
            return len(node.args) == 2 and _is_small_power(*node.args)
        case ast.Call():
            return getattr(node.func, "id", None) in _FUNCTIONS
        case ast.BinOp(op=ast.Pow()):
            return _is_small_power(node.left, node.right)
    return isinstance(node, _SYNTAX)


def _is_small_power(base: ast.expr, exponent: ast.expr) -> bool:
    """Whether the exponent is a small number and the base no power itself: ``9**9**9`` would take all memory."""
    digits = re.fullmatch(r"(?:Integer\()?-?(\d)\)?", ast.unparse(exponent))
    inner = (getattr(getattr(node, "func", None), "id", None) in _POWERS for node in ast.walk(base))
    return digits is not None and not any(inner) and not any(isinstance(node, ast.Pow) for node in ast.walk(base))


# Nesting of inputs and outputs


def _is_structure(text: str) -> bool:
    """Whether it is JSON that says how inputs and outputs are nested in tuples, lists and dicts."""

    def plain(node: Any) -> bool:
        kind, context = node["type"], node["context"]
        if kind == "builtins.dict":
            keys = json.loads(context)
            told = isinstance(keys, list) and all(isinstance(key, str) and key and _is_name(key) for key in keys)
        else:
            told = (kind, context) in ((None, None), ("builtins.tuple", "null"), ("builtins.list", "null"))
        return told and len(node) == 3 and all(map(plain, node["children_spec"]))

    try:
        protocol, root = json.loads(text)
        return protocol == 1 and plain(root)
    except (ValueError, TypeError, KeyError, RecursionError):
        return False


_TEXTS: dict[str, Callable[[str], object]] = {
    **dict.fromkeys(("name", "as_name", "user_input_name", "forward_arg_names", "verifiers", "type"), _is_name),
    **dict.fromkeys(("parameter_name", "buffer_name", "tensor_constant_name", "fqn", "path_name"), _DOTTED.fullmatch),
    "expr_str": _is_expression,
    "guards_code": _is_guard,
    "in_spec": _is_structure,
    "out_spec": _is_structure,
    "torch_version": re.compile(r"[\w.+]*", re.ASCII).fullmatch,
}
"""What a text may be, by its field in torch's schema. Others are not what a classifier needs (`custom_obj_name`)."""


# Operations

_PYTHON = re.compile(
    r"torch\.sym_(?:float|int|ite|max|min|not|sqrt|sum)|math\.trunc|"
    r"_operator\.(?:getitem|eq|ne|le|ge|lt|gt|neg|pos|mul|add|sub|floordiv|truediv|mod|pow|and_|or_)"
)
_HIGHER_ORDER = re.compile(r"torch\.ops\.higher_order\.wrap_with_(?:set_grad_enabled|autocast)")
_ATEN = re.compile(r"torch\.ops\.aten\.(\w+)\.(\w+)", re.ASCII)
_PRIVATE = frozenset(
    "_assert_tensor_metadata _to_copy _softmax _log_softmax _adaptive_avg_pool2d _native_batch_norm_legit_no_training "
    "_upsample_bicubic2d_aa".split()
)
"""Operations with a leading underscore that exported classifiers have, also after their decomposition."""
_UNSAFE = re.compile(r"from_file|(?:set|fbgemm|mkldnn|miopen|cudnn|mps|quantized|sparse)_.*|.*_backward")
"""Without side effects by their schema, and yet not data, or for other devices and libraries."""
_IN_PLACE = frozenset(
    "relu relu6 leaky_relu elu celu selu silu mish gelu hardtanh hardswish hardsigmoid sigmoid tanh softmax clamp "
    "clamp_min clamp_max dropout feature_dropout alpha_dropout add sub mul div pow sqrt exp neg abs round floor "
    "copy fill zero masked_fill index_put unsqueeze squeeze transpose detach".split()
)
_TYPES = re.compile(
    r"(?:Optional\[)?(?:List\[)?(?:Optional\[)?(?:Tensor|int|float|bool|number|complex|Device|Generator)\]*"
)
_RESULTS = re.compile(r"(?:List\[)?(?:Tensor|int|number|bool)\]?")
_CHOICES = {
    "approximate": ("none", "tanh"),
    "rounding_mode": ("floor", "trunc"),
    "mode": ("constant", "reflect", "replicate", "circular"),
    "padding": ("valid", "same"),
    "indexing": ("ij", "xy"),
    "norm": ("backward", "ortho", "forward"),
}
"""Values of arguments that are texts."""


def _foreign_operation(node: dict[str, Any]) -> Iterator[str]:
    """What a node calls, or gives to it, beyond what exported classifiers have."""
    from torch._export.serde import schema

    target = str(node.get("target"))
    if not (_PYTHON.fullmatch(target) or _HIGHER_ORDER.fullmatch(target) or _is_arithmetic_of_tensors(target)):
        yield target
    inputs = node.get("inputs", [])
    for entry in inputs if isinstance(inputs, list) else [inputs]:
        named = isinstance(entry, dict) and isinstance(entry.get("arg"), dict) and "as_string" in entry["arg"]
        if not named:
            yield from _more_than_data(schema.NamedArgument, entry)
        elif not _is_choice(target, entry):
            yield str(entry["arg"]["as_string"])


def _is_choice(target: str, entry: dict[str, Any]) -> bool:
    """Whether the text of an argument is one of those that it takes."""
    name, text = entry.get("name"), entry["arg"]["as_string"]
    if len(entry["arg"]) > 1 or not isinstance(name, str) or not isinstance(text, str):
        return False
    if _HIGHER_ORDER.fullmatch(target):
        return text in ("cpu", "cuda")
    if name == "equation":
        return re.fullmatch(r"[A-Za-z.,> -]*", text) is not None
    return text in _CHOICES.get(name, ())


@functools.cache
def _is_arithmetic_of_tensors(target: str) -> bool:
    """Whether a target is an operation of torch's that by its schema makes tensors out of tensors and numbers."""
    found = _ATEN.fullmatch(target)
    if found is None or found[1].startswith("_") and found[1] not in _PRIVATE or _UNSAFE.fullmatch(found[1]):
        return False
    operation = getattr(getattr(torch.ops.aten, found[1], None), found[2], None)
    if not isinstance(operation, torch._ops.OpOverload):
        return False
    arguments, results = operation._schema.arguments, operation._schema.returns
    if any(argument.alias_info is not None and argument.alias_info.is_write for argument in arguments) and not (
        found[1].endswith("_") and found[1][:-1] in _IN_PLACE and found[2] != "out"
    ):
        return False
    texts = [argument.name for argument in arguments if "str" in str(argument.type)]
    return (
        all(name in (*_CHOICES, "equation") for name in texts)
        and all(_TYPES.fullmatch(str(argument.type)) for argument in arguments if argument.name not in texts)
        and all(_RESULTS.fullmatch(str(result.type)) for result in results)
        and any("Tensor" in str(part.type) for part in (*arguments, *results))
        and (bool(results) or found[1] in _PRIVATE)
    )
