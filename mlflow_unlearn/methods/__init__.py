"""The unlearning methods: one file per paper, one line per method in `METHODS`."""

from difflib import get_close_matches

from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.methods._api import Batch, Method, OptimizerSpec, Params, Phase, Workspace
from mlflow_unlearn.methods.lotus import Lotus

__all__ = ["METHODS", "Batch", "Method", "OptimizerSpec", "Params", "Phase", "Workspace", "get_method"]

METHODS: dict[str, type[Method]] = {"lotus": Lotus}


def get_method(name: str) -> type[Method]:
    """The method registered as ``name``.

    Raises:
        UnlearnError: there is no such method; the known ones are listed.
    """
    if name not in METHODS:
        near = get_close_matches(name, METHODS, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise UnlearnError(f"unknown method {name!r}: {hint}known methods are {', '.join(sorted(METHODS))}")
    return METHODS[name]
