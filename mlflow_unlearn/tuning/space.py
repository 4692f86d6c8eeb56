"""What a study searches: the ranges that the methods' `Params` declare, or those that the user gives instead."""

import json
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Annotated, Any, Self

import optuna
from optuna.distributions import (
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    distribution_to_json,
)
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.methods import Params, get_method
from mlflow_unlearn.parsing import NumbersAreNumbers, message
from mlflow_unlearn.spelling import spelled

METHOD, PREFIX = "method", "prefix"
_APART = "params."
"""Before a hyperparameter whose own name is `PREFIX`."""
MOST_STEPS = 1e9
"""Parts of a range; floating-point numbers soon have no more."""
GRID_POINTS = 4
"""How many values of a range a grid has."""


_Number = IntDistribution | FloatDistribution
_Kind = CategoricalDistribution | _Number


@dataclass(frozen=True)
class TrialConfig:
    """What a trial runs.

    Attributes:
        method: registered name.
        prefix: module before which the layers are frozen, or "none".
        params: hyperparameters of the method.
    """

    method: str
    prefix: str
    params: Mapping[str, Any]

    def to_yaml(self) -> dict[str, Any]:
        """As ``unlearn --params`` takes it; hyperparameters stand apart where one is itself called method or prefix."""
        ours = {METHOD: self.method, PREFIX: self.prefix}
        return {**ours, **({"params": dict(self.params)} if ours.keys() & self.params.keys() else self.params)}


class Range(NumbersAreNumbers):
    """Numbers between two bounds, both included; ``log`` as the hyperparameter declares it unless given."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)
    low: float
    high: float
    log: bool | None = None
    step: Annotated[float, Field(gt=0)] | None = None

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.low > self.high:
            raise ValueError(f"low = {self.low:g} is above high = {self.high:g}")
        if self.log and self.low <= 0:
            raise ValueError(f"a logarithmic range cannot begin at {self.low:g}")
        if self.log and self.step is not None:
            raise ValueError("a logarithmic range has no step")
        if self.step is not None and (self.high - self.low) / self.step > MOST_STEPS:
            raise ValueError(f"step = {self.step:g} divides the range into more than {MOST_STEPS:.0e} parts")
        return self


class Choices(BaseModel):
    """One of several values."""

    model_config = ConfigDict(extra="forbid")
    choices: list[bool | int | float | str]

    @model_validator(mode="after")
    def _not_empty(self) -> Self:
        if not self.choices:
            raise ValueError("choices is empty")
        return self


@dataclass(frozen=True)
class Space:
    """Distributions by method and hyperparameter, ``prefix`` among them; what is not searched is fixed.

    With one method a trial's parameters have the hyperparameters' own names, with several they are ``method`` and
    ``<method>.<hyperparameter>``. A hyperparameter that is itself called ``prefix`` goes as ``params.prefix``.
    """

    distributions: Mapping[str, Mapping[str, _Kind]]
    fixed: Mapping[str, Mapping[str, Any]]
    published: Mapping[str, Mapping[str, Any]]

    @property
    def methods(self) -> tuple[str, ...]:
        """The first trials have their published hyperparameters, in this order."""
        return tuple(self.distributions)

    def of(self, methods: Sequence[str]) -> "Space":
        """The part of some of the methods."""
        return Space(*({method: part[method] for method in methods} for part in vars(self).values()))

    def suggest(self, trial: optuna.Trial) -> TrialConfig:
        """A trial's config, from its sampler."""
        method = self.methods[0]
        if len(self.methods) > 1:
            method = trial.suggest_categorical(METHOD, self.methods)
        values = {
            name: _suggest(trial, self._key(method, name), distribution)
            for name, distribution in self.distributions[method].items()
        }
        return self._config(method, values)

    def config(self, params: Mapping[str, Any]) -> TrialConfig:
        """The config that a finished trial's parameters stand for."""
        method = str(params[METHOD]) if len(self.methods) > 1 else self.methods[0]
        values = {name: params[self._key(method, name)] for name in self.distributions[method]}
        return self._config(method, values)

    def _config(self, method: str, values: Mapping[str, Any]) -> TrialConfig:
        complete = {PREFIX: "none", **self.fixed[method], **values}
        prefix = str(complete.pop(PREFIX))
        return TrialConfig(method, prefix, {name.removeprefix(_APART): value for name, value in complete.items()})

    def published_settings(self) -> list[dict[str, Any]]:
        """Of each method the published hyperparameters as parameters of a trial, as near as the space has them."""
        several = len(self.methods) > 1
        return [
            ({METHOD: method} if several else {})
            | {self._key(method, name): self.published[method][name] for name in distributions}
            for method, distributions in self.distributions.items()
        ]

    def grid(self, seed: int) -> list[dict[str, Any]]:
        """Every combination of all of few values and `GRID_POINTS` of a range, in an order by the seed.

        Raises:
            UnlearnError: with several methods, which have different parameters, there is no grid.
        """
        if len(self.methods) > 1:
            raise UnlearnError(
                f"{spelled('sampler', 'grid')} needs one method, and {spelled('methods', ','.join(self.methods))} "
                f"names {len(self.methods)}: use {spelled('sampler', 'tpe')}, or one study a method"
            )
        searched = self.distributions[self.methods[0]]
        points = [dict(zip(searched, values, strict=True)) for values in product(*map(_points, searched.values()))]
        random.Random(seed).shuffle(points)
        return points

    def prefixes(self) -> set[str]:
        """Every module that a trial may have as its split point."""
        named = {str(fixed.get(PREFIX, "none")) for fixed in self.fixed.values()}
        for distributions in self.distributions.values():
            named |= set(map(str, _points(distributions[PREFIX]))) if PREFIX in distributions else set()
        return named - {"none"}

    def most_epochs(self) -> int:
        """The longest training that the space has."""
        most = 1
        for method, distributions in self.distributions.items():
            fixed = {"epochs": 1, **self.published[method], **self.fixed[method]}["epochs"]
            searched = _points(distributions["epochs"]) if "epochs" in distributions else [1]
            most = max(most, int(fixed), *map(int, searched))
        return most

    def to_json(self) -> dict[str, Any]:
        """For the record, and to see whether two spaces are the same."""
        return {
            method: {
                **{name: json.loads(distribution_to_json(each)) for name, each in distributions.items()},
                **self.fixed[method],
            }
            for method, distributions in self.distributions.items()
        }

    def _key(self, method: str, name: str) -> str:
        return name if len(self.methods) == 1 else f"{method}.{name}"


def search_space(
    methods: Sequence[str],
    family: str,
    prefixes: Sequence[str],
    given: Mapping[str, Any],
    recorded: Mapping[str, Mapping[str, Any]] | None = None,
) -> Space:
    """The declared space of the methods, changed by what the user gives.

    ``{"alpha": [1, 16]}`` is a range, ``{"alpha": {"low": 1, "high": 16, "log": true}}`` the same in full,
    ``{"keep": {"choices": ["last", "closest"]}}`` a choice and ``{"epochs": 5}`` a fixed value; with several methods
    each has its own part, ``{"lotus": {"alpha": [1, 16]}}``.

    Args:
        methods: names.
        family: of the model, whose published hyperparameters count.
        prefixes: what to try for ``prefix``, unless ``given`` has it.
        given: the option ``space``, parsed.
        recorded: by method hyperparameters that take the place of its defaults, from the version's training.

    Raises:
        UnlearnError: an unknown key, or a value that the hyperparameter does not take.
    """
    parts = _by_method(given, methods)
    distributions: dict[str, dict[str, _Kind]] = {}
    fixed: dict[str, dict[str, Any]] = {}
    nearest: dict[str, dict[str, Any]] = {}
    for method in methods:
        of_training = (recorded or {}).get(method, {})
        published = get_method(method)(of_training, family=family).params
        own_prefixes = ["none"] if get_method(method).own_prefix else list(prefixes)
        own = {_searched(name): value for name, value in published.model_dump().items()}
        found: dict[str, Any] = {**_declared(published), PREFIX: Choices(choices=own_prefixes)}
        found |= {name: _entry(method, published, name, value) for name, value in parts[method].items()}
        kinds = {name: _distribution(method, published, name, entry) for name, entry in found.items()}
        distributions[method] = {name: kind for name, kind in kinds.items() if not kind.single()}
        fixed[method] = {_searched(n): value for n, value in of_training.items() if _searched(n) not in kinds}
        fixed[method] |= {name: _points(kind)[0] for name, kind in kinds.items() if kind.single()}
        nearest[method] = {**own, PREFIX: own_prefixes[0]}
        # A study begins with what it has in common with the paper.
        nearest[method] |= {name: _nearest(kind, nearest[method][name]) for name, kind in distributions[method].items()}
    return Space(distributions, fixed, nearest)


def _suggest(trial: optuna.Trial, name: str, kind: _Kind) -> Any:
    if isinstance(kind, CategoricalDistribution):
        return trial.suggest_categorical(name, kind.choices)
    if isinstance(kind, IntDistribution):
        return trial.suggest_int(name, kind.low, kind.high, step=kind.step, log=kind.log)
    return trial.suggest_float(name, kind.low, kind.high, step=kind.step, log=kind.log)


def _by_method(values: Mapping[str, Any], methods: Sequence[str]) -> dict[str, Mapping[str, Any]]:
    nested = [name for name in values if name in methods and isinstance(values[name], dict)]
    if len(methods) == 1 and methods[0] not in nested:
        return {methods[0]: values}
    for name in values:
        if name not in nested:
            raise UnlearnError(
                f"{spelled('space')}: {name!r} is not one of the methods {', '.join(methods)}: give each method "
                "its own part"
            )
    return {method: values.get(method, {}) for method in methods}


def _declared(published: Params) -> dict[str, Range | Choices]:
    """The ``search`` entries of the fields, around the published value where they name a factor."""
    space: dict[str, Range | Choices] = {}
    for name, field in type(published).model_fields.items():
        extra = field.json_schema_extra
        search: Any = extra.get("search") if isinstance(extra, dict) else None
        if search is None:
            continue
        value, name = getattr(published, name), _searched(name)
        if "choices" in search:
            space[name] = Choices(**search)
            continue
        factor = search.get("factor")
        up = search.get("up", factor)
        most = min((getattr(bound, "le", math.inf) for bound in field.metadata), default=math.inf)
        low, high = (value / factor, min(value * up, most)) if factor else (search["low"], search["high"])
        if isinstance(value, int):
            low, high = max(1, int(low)), int(high)
        space[name] = Range(low=low, high=high, log=bool(search.get("log")))
    return space


def _searched(name: str) -> str:
    """Under which a hyperparameter is searched."""
    return _APART + name if name == PREFIX else name


def _entry(method: str, published: Params, name: str, value: Any) -> Range | Choices:
    known = [*map(_searched, type(published).model_fields), PREFIX]
    if name not in known:
        names = ", ".join(sorted(known))
        raise UnlearnError(f"{spelled('space')}: unknown hyperparameter {name!r} of {method}: valid values: {names}")
    try:
        if isinstance(value, dict) and "choices" not in value:
            return Range.model_validate(value)
        if isinstance(value, list) and len(value) == 2 and all(map(_is_number, value)):
            return Range(low=value[0], high=value[1])
        return Choices.model_validate(
            value if isinstance(value, dict) else {"choices": value if isinstance(value, list) else [value]}
        )
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UnlearnError(
            f"{spelled('space')}: {name} = {json.dumps(value)} of {method} is not usable "
            f"({where + ': ' if where else ''}"
            f"{message(first)}): give [low, high], "
            '{"low": …, "high": …, "log": true}, {"choices": […]} or a value'
        ) from error


def _is_number(value: Any) -> bool:
    """YAML reads 1e-4 as a string."""
    if isinstance(value, str):
        try:
            float(value)
        except ValueError:
            return False
        return True
    return isinstance(value, int | float) and not isinstance(value, bool)


def _distribution(method: str, published: Params, name: str, entry: Range | Choices) -> _Kind:
    """The entry as Optuna's, after the hyperparameter's own check of its ends."""
    if isinstance(entry, Choices):
        checked = [v if name == PREFIX else _legal(method, published, name, v) for v in entry.choices]
        return CategoricalDistribution(checked)
    low, high = (_legal(method, published, name, value) for value in (entry.low, entry.high))
    if isinstance(low, bool | str):
        raise UnlearnError(f'{spelled("space")}: {name} of {method} takes no range: give {{"choices": […]}}')
    declared = _declared(published).get(name)
    log = entry.log if entry.log is not None else isinstance(declared, Range) and bool(declared.log)
    log = log and low > 0 and entry.step is None
    if isinstance(low, int):
        if entry.step is not None and entry.step != int(entry.step):
            raise UnlearnError(
                f"{spelled('space')}: {name} of {method} takes whole numbers, and step = {entry.step:g} is not one"
            )
        return IntDistribution(low, int(high), log=log, step=int(entry.step or 1))
    return FloatDistribution(float(low), float(high), log=log, step=entry.step)


def _legal(method: str, published: Params, name: str, value: Any) -> Any:
    name = name.removeprefix(_APART)
    try:
        parsed = type(published).parse({**published.model_dump(), name: value}, method=method)
    except UnlearnError as error:
        raise UnlearnError(f"{spelled('space')}: {error}") from error
    return getattr(parsed, name)


def _nearest(kind: _Kind, value: Any) -> Any:
    """The value, or the one nearest to it where the distribution does not contain it."""
    if isinstance(kind, CategoricalDistribution):
        return value if value in kind.choices else kind.choices[0]
    if not isinstance(value, int | float):
        return _points(kind)[0]
    within = min(max(value, kind.low), kind.high)
    return within if kind.log else _on_step(kind, within)


def _on_step(kind: _Number, value: float) -> float:
    return kind.low + round((value - kind.low) / kind.step) * kind.step if kind.step else value


def _points(kind: _Kind) -> list[Any]:
    """The values of a grid: all choices, or `GRID_POINTS` of a range at equal distances or ratios."""
    if isinstance(kind, CategoricalDistribution):
        return list(kind.choices)
    low, high = float(kind.low), float(kind.high)
    if low == high:
        return [kind.low]
    fractions = [n / (GRID_POINTS - 1) for n in range(GRID_POINTS)]
    values = [_on_step(kind, low * (high / low) ** f if kind.log else low + f * (high - low)) for f in fractions]
    if isinstance(kind, IntDistribution):
        return sorted({math.floor(value + 0.5) for value in values})
    return sorted({min(max(value, low), high) for value in values})
