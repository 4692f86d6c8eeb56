"""A conformance suite for unlearning methods: small real models, real images, one property per known defect.

To test a method of your own, paste this into a test file:

    import pytest
    from my_package import MyMethod
    from mlflow_unlearn.testing import cases, check_method

    @pytest.mark.parametrize(("name", "model"), cases(MyMethod))
    def test_my_method_conforms(name, model):
        assert check_method(MyMethod, properties=[name], models=[model]) == []

`PROPERTIES` lists what is checked, and the docstring of each names the defect that it catches. The last three
hold only for methods that promise them, for instance ``check_method(MyMethod, promises={"masked": {"share": 0.1}})``.

Nothing is downloaded or written. The models are trained, in seconds, when they are first asked for.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from mlflow_unlearn.engine.method import Method
from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.methods import get_method
from mlflow_unlearn.testing.models import FORGET, MODELS, RETAIN, TEST, TRAIN, VAL, original
from mlflow_unlearn.testing.probe import MethodProbe, Run, recipe_of
from mlflow_unlearn.testing.properties import GENERAL, PROMISED, PROPERTIES, Property, refuses
from mlflow_unlearn.testing.settings import BATCH_SIZE, PROMISES, SETTINGS, Promises, Unlearner

__all__ = [
    "BATCH_SIZE",
    "FORGET",
    "MODELS",
    "PROMISES",
    "PROPERTIES",
    "RETAIN",
    "SETTINGS",
    "TEST",
    "TRAIN",
    "VAL",
    "Finding",
    "MethodProbe",
    "Promises",
    "Property",
    "Run",
    "Unlearner",
    "cases",
    "check_method",
    "original",
]


@dataclass(frozen=True)
class Finding:
    """A property that does not hold.

    Attributes:
        property: its name in `PROPERTIES`.
        model: the name in `MODELS` of the model that showed it.
        sentence: what is wrong.
    """

    property: str
    model: str
    sentence: str


def check_method(
    method: str | type[Method] | Unlearner,
    *,
    params: Mapping[str, Any] | None = None,
    models: Iterable[str] | None = None,
    properties: Iterable[str] | None = None,
    promises: Promises | None = None,
    stochastic: bool | None = None,
) -> list[Finding]:
    """Look for properties that ``method`` lacks; an empty list is a pass.

    An exception that the method raises is a finding of the property that met it. Of a model that the method refuses
    (`Method.unsuited`) it is only checked that it does, as of a method that goes back to what a version keeps of its
    training (`Method.needs`).

    Args:
        method: a registered name, a `Method` (registered or not), or a callable ``(model, splits, seed)`` → model.
        params: hyperparameters of a `Method`, over those of `SETTINGS`.
        models: names in `MODELS`; None for all.
        properties: names in `PROPERTIES`; None for those that every method has and those that this one promises.
        promises: None for those that `PROMISES` has of a `Method` by its name.
        stochastic: whether another seed gives other weights; None: as a `Method` declares it, True for a callable.

    Raises:
        UnlearnError: an unknown method, model, property or promise; hyperparameters that the method does not take.
    """
    method = get_method(method) if isinstance(method, str) else method
    promises = _promises(method) if promises is None else promises
    expected = _expected(promises)
    findings = []
    for model in _known("model", MODELS, models):
        probe = MethodProbe(method, model, params or {}, promises, stochastic)
        names = _known("property", PROPERTIES, expected if properties is None else properties)
        checked = {"refuses": refuses} if probe.refuses else {name: PROPERTIES[name] for name in names}
        for name, prop in checked.items():
            try:
                sentence = prop(probe)
            except Exception as error:  # A method may raise anything, and the other properties are still to be checked.
                sentence = f"raised {type(error).__name__}: {error}"
            if sentence is not None:
                findings.append(Finding(name, model, sentence))
    return findings


def cases(method: str | type[Method] | Unlearner, *, promises: Promises | None = None) -> list[tuple[str, str]]:
    """``(property, model)`` of every check that `check_method` makes: the values for ``pytest.mark.parametrize``."""
    method = get_method(method) if isinstance(method, str) else method
    expected = _expected(_promises(method) if promises is None else promises)
    return [(name, model) for model in MODELS for name in expected]


def _promises(method: type[Method] | Unlearner) -> Promises:
    recipe = recipe_of(method)
    return {} if recipe is None else PROMISES.get(recipe.name, {})


def _expected(promises: Iterable[str]) -> list[str]:
    return [*GENERAL, *_known("promise", PROMISED, promises)]


def _known(kind: str, table: Mapping[str, Any], names: Iterable[str] | None) -> list[str]:
    chosen = list(table if names is None else names)
    for name in chosen:
        if name not in table:
            raise UnlearnError(f"unknown {kind} {name!r} of the conformance suite: valid values: {', '.join(table)}")
    return chosen
