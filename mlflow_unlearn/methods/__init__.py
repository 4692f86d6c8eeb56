"""The unlearning methods: one file per paper, whose name is the method's; others come as plugins."""

import pkgutil
from collections.abc import Mapping
from difflib import SequenceMatcher
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from mlflow_unlearn.data.functions import users_code
from mlflow_unlearn.engine.method import (
    Batch,
    Method,
    OptimizerSpec,
    Params,
    Phase,
    Plan,
    Workspace,
    all_indices,
    changed,
    everything,
    override_phases,
    random_subset,
    repeated,
    run_epochs,
    sample,
)
from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.spelling import spelled

__all__ = [
    "BUILTIN",
    "Batch",
    "Method",
    "OptimizerSpec",
    "Params",
    "Phase",
    "Plan",
    "Workspace",
    "all_indices",
    "all_methods",
    "changed",
    "everything",
    "get_method",
    "override_phases",
    "plugin_failures",
    "random_subset",
    "repeated",
    "run_epochs",
    "sample",
]

TEMPLATES = Path(__file__).parent / "plugin"
"""What `new-method` makes a plugin of, with ``$name`` and the like in it."""
GROUP = "mlflow_unlearn.methods"
"""The entry-point group in which other distributions name their methods."""


def _discover() -> dict[str, type[Method]]:
    """The class called ``name`` in each file ``name.py`` of this folder, in the order of their `Method.position`."""
    found: list[type[Method]] = []
    for file in pkgutil.iter_modules(__path__):
        if not file.name.startswith("_"):
            defined = vars(import_module(f"{__name__}.{file.name}")).values()
            found += [kind for kind in defined if isinstance(kind, type) and getattr(kind, "name", "") == file.name]
    return {method.name: method for method in sorted(found, key=lambda method: method.position)}


BUILTIN: Mapping[str, type[Method]] = _discover()
"""Our own methods by name, in the order of tables."""


def all_methods() -> dict[str, type[Method]]:
    """Every method by name: ours, and those that plugins add.

    Raises:
        UnlearnError: two of them have one name.
    """
    return {**BUILTIN, **loaded_plugins()[0]}


def plugin_failures() -> Mapping[str, str]:
    """Name of each plugin that could not be loaded → why."""
    return loaded_plugins()[1]


@cache
def loaded_plugins() -> tuple[dict[str, type[Method]], dict[str, str]]:
    """The methods of plugins, and why others could not be loaded; looked up once a process.

    Raises:
        UnlearnError: two methods have one name.
    """
    loaded: dict[str, type[Method]] = {}
    failures: dict[str, str] = {}
    for entry in entry_points(group=GROUP):
        if entry.name in BUILTIN or entry.name in loaded or entry.name in failures:
            raise UnlearnError(
                f"the method name {entry.name!r} is taken, and {_origin(entry)} registers it again: "
                "uninstall that distribution, or rename its entry point"
            )
        try:
            with users_code(_origin(entry)):
                method = entry.load()
        except Exception as error:  # A plugin's module may raise anything when it is imported.
            failures[entry.name] = f"{_origin(entry)} fails to import: {type(error).__name__}: {error}"
            continue
        if not (isinstance(method, type) and issubclass(method, Method) and getattr(method, "name", "") == entry.name):
            failures[entry.name] = f"{_origin(entry)} is not a Method with the name {entry.name!r}"
            continue
        loaded[entry.name] = method
    return loaded, failures


def _origin(entry: EntryPoint) -> str:
    return f"{entry.value} of the distribution {entry.dist.name if entry.dist is not None else 'unknown'}"


def get_method(name: str) -> type[Method]:
    """The method registered as ``name``.

    Raises:
        UnlearnError: there is no such method; the message lists the registered ones.
    """
    methods = all_methods()
    if name in methods:
        return methods[name]
    if name in plugin_failures():
        raise UnlearnError(f"the method {name!r} cannot be used: {plugin_failures()[name]}")
    near = sorted(methods, key=lambda known: -SequenceMatcher(None, name, known).ratio())
    raise UnlearnError(f"unknown method {name!r}: known methods, nearest first, are {', '.join(near)}")


def chosen_methods(text: str) -> list[str]:
    """The methods of a comma-separated list, or "all"; retraining has a reference row of its own.

    Raises:
        UnlearnError: an unknown name, or none.
    """
    if text.strip() == "all":
        return [name for name in all_methods() if name != "retrain"]
    named = list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    chosen = [name for name in named if name not in ("retrain", "original", "floor")]
    for name in chosen:
        get_method(name)
    if not chosen:
        raise UnlearnError(
            f"{spelled('methods', text)} names no method to compare: use all, or names such as lotus,scrub"
        )
    return chosen
