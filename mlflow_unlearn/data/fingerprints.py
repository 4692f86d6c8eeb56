"""Digests of Python values: their state in one canonical form, and the source of the code behind them.

What is computed once may be reused where these digests are the same. State that cannot be seen has no digest: what
lives in C (a generator, a lock), a class made at run time, code without a source file. Then nothing is reused.
"""

import enum
import functools
import hashlib
import importlib.machinery
import importlib.metadata
import importlib.util
import os
import re
import sys
import types
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

BY_VERSION = ("torch", "torchvision", "timm", "numpy")
"""Packages whose version stands for their code; for ours its source does, which changes between releases."""

_OURS = __name__.partition(".")[0]
_SOURCES = (".py", *importlib.machinery.EXTENSION_SUFFIXES)
_IMPORT = re.compile(rb"^[ \t]*(?:from[ \t]+([\w.]+)[ \t]+import|import[ \t]+([\w., \t]+))", re.MULTILINE)
_ATOMS = (type(None), bool, int, float, complex, str, bytes, type(...), type(NotImplemented), range, slice)
_TORCH_ATOMS = (torch.dtype, torch.device, torch.layout, torch.memory_format)
_NAMED = (types.MethodDescriptorType, types.WrapperDescriptorType, types.GetSetDescriptorType, np.ufunc)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_BOOKKEEPING = frozenset(vars(nn.Module()))


class _Untold(Exception):
    """The state of something cannot be told."""


class _Plain:
    """As large as every object that has a ``__dict__`` and no other state."""


def value_digest(value: Any) -> str | None:
    """SHA-256 of a value: its state, and the source of the classes and functions in it; None where one is unknown.

    >>> value_digest([1, {"a": 2.0}]) == value_digest([1, {"a": 2.0}]) != value_digest([1, {"a": 2}])
    True
    >>> value_digest(torch.Generator()) is None
    True
    """
    return _digest(lambda writer: writer.write(value))


def module_digest(model: nn.Module) -> str | None:
    """SHA-256 of what a model is beside the tensors of its state dict; None where something cannot be told.

    That is, of every module: its class, its plain attributes, its buffers (also those that are not stored), its hooks,
    and which of its parameters are trained and which are one with others; and the source of the packages that its
    classes and functions come from.
    """

    def write(writer: _Writer) -> None:
        writer.names = {id(module): name for name, module in model.named_modules()}
        for name, module in model.named_modules():
            writer.put(name)
            writer.module(module)

    return _digest(write)


def _digest(write: "Callable[[_Writer], None]") -> str | None:
    writer = _Writer()
    try:
        write(writer)
        source = _source_digest(sorted(writer.packages))
    except (_Untold, OSError, RecursionError):
        return None
    writer.put(source)
    return writer.sha.hexdigest()


class _Writer:
    """Feeds values to a digest, each behind its length, and collects the packages whose code they run.

    Attributes:
        sha: the digest.
        packages: top-level names of the packages.
        names: of modules that are written elsewhere, by identity.
        parameters: their numbers, by identity: shared ones are trained as one.
    """

    def __init__(self) -> None:
        self.sha = hashlib.sha256()
        self.packages: set[str] = set()
        self.names: dict[int, str] = {}
        self.parameters: dict[int, int] = {}
        self._open: list[int] = []  # what is being written: a value may contain itself

    def put(self, content: str | bytes) -> None:
        data = content.encode() if isinstance(content, str) else content
        self.sha.update(len(data).to_bytes(8, "little"))
        self.sha.update(data)

    def write(self, value: Any) -> None:
        if type(value) in _ATOMS or isinstance(value, _TORCH_ATOMS):
            self.put(f"{type(value).__name__} {value!r}")
        elif id(value) in self._open:
            self.put(f"inside {len(self._open) - self._open.index(id(value))}")
        else:
            self._open.append(id(value))
            try:
                self._write(value)
            finally:
                self._open.pop()

    def _write(self, value: Any) -> None:
        if isinstance(value, type):
            self.kind(value)
        elif isinstance(value, types.ModuleType):
            self.put(value.__name__)
            self.code_of(value.__name__)
        elif isinstance(value, types.FunctionType):
            self.function(value)
        elif isinstance(value, types.MethodType):
            self.all(value.__func__, value.__self__)
        elif isinstance(value, types.BuiltinFunctionType):
            self.put(value.__qualname__)
            if value.__self__ is not None:
                self.write(value.__self__)
        elif isinstance(value, _NAMED):
            self.put(f"{type(value).__name__} {getattr(value, '__objclass__', '')} {value.__name__}")
        elif isinstance(value, nn.Module):
            if id(value) in self.names:
                self.put(f"module {self.names[id(value)]}")
            else:
                self.module(value)
                self.all(value._parameters, value._modules)
        else:
            self.kind(type(value))
            self.data(value)

    def data(self, value: Any) -> None:
        """The state of a value whose class is written."""
        if isinstance(value, Tensor):
            self.tensor(value)
        elif isinstance(value, np.ndarray | np.generic):
            array = np.asarray(value)
            self.put(f"{array.dtype.str} {array.dtype.descr} {array.shape}")
            if array.dtype.hasobject:
                self.write(array.tolist())
            else:
                self.put(array.tobytes())
        elif isinstance(value, enum.Enum):
            self.put(value.name)
        elif isinstance(value, PurePath | re.Pattern):
            self.put(repr(value))
        elif isinstance(value, functools.partial):
            self.all(value.func, value.args, value.keywords)
        elif isinstance(value, dict | types.MappingProxyType):
            self.put(f"{len(value)} items")
            self.all(*(part for item in value.items() for part in item))
            self.write(value.default_factory if isinstance(value, defaultdict) else None)
            self.attributes(value)
        elif isinstance(value, list | tuple | deque):
            self.put(f"{len(value)} items")
            self.all(*value)
            self.attributes(value)
        elif isinstance(value, set | frozenset):
            self.put(" ".join(sorted(self.apart(item) for item in value)))
        elif type(value).__basicsize__ == _Plain.__basicsize__ and hasattr(value, "__dict__"):
            self.attributes(value)
        else:
            raise _Untold(f"the state of a {type(value).__qualname__}")

    def all(self, *values: Any) -> None:
        for value in values:
            self.write(value)

    def apart(self, value: Any) -> str:
        """The digest of one member of a set."""
        whole, self.sha = self.sha, hashlib.sha256()
        try:
            self.write(value)
            return self.sha.hexdigest()
        finally:
            self.sha = whole

    def attributes(self, value: Any) -> None:
        for name, attribute in sorted(getattr(value, "__dict__", {}).items()):
            self.put(str(name))
            self.write(attribute)

    def tensor(self, tensor: Tensor) -> None:
        if tensor.layout is not torch.strided or tensor.is_quantized or tensor.device.type == "meta":
            raise _Untold(f"a {tensor.layout} tensor on {tensor.device}")
        content = tensor.detach().cpu().contiguous()
        self.put(f"{content.dtype} {list(content.shape)}")
        self.put(content.reshape(-1).view(torch.uint8).numpy().tobytes() if content.numel() else b"")

    def module(self, module: nn.Module) -> None:
        """A module without the values of its parameters and without the modules in it."""
        self.kind(type(module))
        attributes = {name: value for name, value in vars(module).items() if name not in _BOOKKEEPING}
        if isinstance(module, fx.GraphModule):
            # What else it has is how the code was made.
            self.put(module.code)
            attributes = {name: value for name, value in attributes.items() if isinstance(value, Tensor)}
        for name, value in sorted(attributes.items()):
            self.put(name)
            self.write(value)
        self.write(dict(sorted(module._buffers.items())))
        for name, parameter in sorted(module._parameters.items()):
            self.put(name)
            if parameter is not None:
                self.put(f"{parameter.requires_grad} {self.parameters.setdefault(id(parameter), len(self.parameters))}")
                for hooks in (parameter._backward_hooks, parameter._post_accumulate_grad_hooks):
                    self.all(list((hooks or {}).values()))
        self.write(module._is_full_backward_hook)
        for kind in _HOOKS:
            # By their order: their numbers count up through the process.
            with_kwargs = getattr(module, f"{kind}_with_kwargs", {})
            hooks = getattr(module, kind)
            self.put(f"{len(hooks)} hooks")
            for number, hook in hooks.items():
                self.put(str(number in with_kwargs))
                self.write(hook)

    def kind(self, kind: type) -> None:
        """A class with those that it inherits from."""
        for base in kind.__mro__[:-1]:
            self.put(f"{base.__module__}.{base.__qualname__}")
            if self.code_of(base.__module__):
                continue
            if _named(base.__module__, base.__qualname__) is not base:
                raise _Untold(f"where the class {base.__qualname__} comes from")
            for name, value in sorted(vars(base).items()):
                # Functions are in the source; values may have been set since.
                if not name.startswith("__") and isinstance(value, (*_ATOMS, list, tuple, dict, set, Tensor)):
                    self.put(name)
                    self.write(value)

    def function(self, function: types.FunctionType) -> None:
        self.put(f"{function.__module__}.{function.__qualname__}")
        by_version = function.__module__ is not None and self.code_of(function.__module__)
        if by_version and _named(function.__module__, function.__qualname__) is function:
            return
        self.bytecode(function.__code__)
        if function.__module__ is None:  # made by exec: there is no source, but what it reads
            names = sorted(set(function.__code__.co_names) & function.__globals__.keys())
            self.all({name: function.__globals__[name] for name in names})
        for cell in function.__closure__ or ():
            try:
                self.write(cell.cell_contents)
            except (ValueError, _Untold) as error:  # the former where it is not set yet
                # Wrappers of torch's keep its own settings.
                if not by_version:
                    raise _Untold(str(error)) from error
        self.all(function.__defaults__, function.__kwdefaults__)
        self.attributes(function)

    def bytecode(self, code: types.CodeType) -> None:
        self.put(code.co_code)
        self.all(code.co_names, code.co_varnames, code.co_freevars)
        for constant in code.co_consts:
            if isinstance(constant, types.CodeType):
                self.bytecode(constant)
            else:
                self.write(constant)

    def code_of(self, module: str) -> bool:
        """Note the package that a module is in; whether its version, or Python's own, stands for it."""
        top = module.partition(".")[0]
        if _by_version(top):
            return True
        self.packages.add(top)
        return False


def _by_version(top: str) -> bool:
    return top in (*BY_VERSION, _OURS) or (top in sys.stdlib_module_names and top != "__main__")


def _named(module: str, qualname: str) -> Any:
    """What an importable name stands for now."""
    found: Any = sys.modules.get(module)
    for part in qualname.split("."):
        found = getattr(found, part, None)
    return found


def _source_digest(packages: Iterable[str]) -> str:
    """SHA-256 of the source of packages, and of all that they import: of installed ones the version."""
    digest = hashlib.sha256()
    roots = set(packages)
    pending, seen = sorted(roots, reverse=True), set(roots)
    while pending:
        package = pending.pop()
        files, installed = _files(package)
        if package in roots and not files:
            raise _Untold(f"the source of {package}")
        digest.update(f"\n{package} ".encode())
        if installed and package not in roots:
            digest.update(" ".join(f"{name} {_version(name)}" for name in _distributions().get(package, ())).encode())
            continue
        for path in files:
            content = path.read_bytes()
            digest.update(f"\n{path.name} {len(content)}\n".encode() + content)
            if path.suffix == ".py":
                new = sorted(set(_imports(content)) - seen, reverse=True)
                seen.update(new)
                pending += [name for name in new if not _by_version(name)]
    digest.update(" ".join(f"{name} {_version(name)}" for name in BY_VERSION).encode())
    digest.update(f"python {sys.version_info[:3]} {_our_source()}".encode())
    return digest.hexdigest()


@functools.cache
def _our_source() -> str:
    folder, digest = Path(__file__).parent, hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(f"{path.relative_to(folder)} ".encode() + path.read_bytes())
    return digest.hexdigest()


def _imports(source: bytes) -> Iterator[str]:
    """Top-level names that a file imports; a regular expression, as parsing a large package takes minutes."""
    for origin, names in _IMPORT.findall(source):
        for name in (origin or names).split(b","):
            top = name.strip().partition(b" ")[0].partition(b".")[0].decode()
            if top:
                yield top


def _files(package: str) -> tuple[Sequence[Path], bool]:
    """The files of a package's code, none where it is not there, and whether it is installed as a distribution."""
    module = sys.modules.get(package)
    places, file = getattr(module, "__path__", None), getattr(module, "__file__", None)
    if module is None:
        try:
            spec = importlib.util.find_spec(package)
        except (ImportError, ValueError):
            spec = None
        places, file = (None, None) if spec is None else (spec.submodule_search_locations, spec.origin)
    if places is not None:
        walked = (Path(folder) / name for place in places for folder, _, names in os.walk(place) for name in names)
        files = sorted(path for path in walked if path.name.endswith(_SOURCES))
    else:
        files = [Path(file)] if file is not None and os.path.isfile(file) else []
    return files, any({"site-packages", "dist-packages"} & set(path.parts) for path in files[:1])


@functools.cache
def _distributions() -> Mapping[str, Sequence[str]]:
    return {name: sorted(set(found)) for name, found in importlib.metadata.packages_distributions().items()}


@functools.cache
def _version(distribution: str) -> str:
    return importlib.metadata.version(distribution)
