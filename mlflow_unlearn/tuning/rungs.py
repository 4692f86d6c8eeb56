"""The settings that ``unlearn --until pass`` tries, cheapest first: LoTUS, then disturb and repair, then retraining."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from mlflow_unlearn.engine.architectures import model_family
from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.methods import get_method
from mlflow_unlearn.parsing import load_options, read_text
from mlflow_unlearn.spelling import spelled

RETRAIN_FROM = 1.2
"""The budget, in retrainings, from which retraining itself is the last rung."""
STRONGER = 8.0
"""LoTUS's α in its second rung: four times the published one."""
LOTUS_SHARE = 0.025
"""What a rung of LoTUS may train on, as a fraction of what retraining does, where its own rule does not stop it."""
SHARES = (0.3, 0.6)
"""Of the training's epochs, for which a disturbed model is repaired."""


@dataclass(frozen=True)
class Rung:
    """One setting.

    Attributes:
        method: registered name.
        params: hyperparameters that differ from the method's own.
        share: the most that it trains on, as a fraction of what retraining does; None where only running it tells.
    """

    method: str
    params: Mapping[str, Any] = field(default_factory=dict)
    share: float | None = None


def disturbing(model: nn.Module) -> str:
    """The strongest method that disturbs and repairs ``model``: the kernels transposed, or where it has none, noise."""
    return "transpose" if get_method("transpose").unsuited(model) is None else "perturb"


def default_rungs(model: nn.Module, epochs: int, *, forget: int, retain: int, budget: float) -> tuple[Rung, ...]:
    """The ladder for a model.

    Args:
        model: that is to forget.
        epochs: of the version's recorded training.
        forget: samples of the forget set.
        retain: samples of the retain set.
        budget: in retrainings; what alone goes beyond it is left out.
    """
    lotus = get_method("lotus")(family=model_family(model)).params.model_dump()
    epoch = (forget + lotus["retain_fraction"] * retain) / (epochs * retain)
    most = min(lotus["epochs"], max(1, int(LOTUS_SHARE / epoch)))
    gentle = {} if most == lotus["epochs"] else {"epochs": most}
    lengths = dict.fromkeys(max(1, round(share * epochs)) for share in SHARES)
    rungs = [
        Rung("lotus", gentle, most * epoch),
        Rung("lotus", {"alpha": STRONGER, **gentle}, most * epoch),
        *(Rung(disturbing(model), {"epochs": length}, length / epochs) for length in lengths),
    ]
    if budget >= RETRAIN_FROM:
        rungs.append(Rung("retrain", {}, 1.0))
    return tuple(rung for rung in rungs if rung.share is not None and rung.share <= budget)


def parse_rungs(text: str) -> tuple[Rung, ...]:
    """What the option names: methods separated by commas, or a list of settings as JSON or in a YAML file.

    >>> parse_rungs('[{"method": "lotus", "params": {"alpha": 4}}]')
    (Rung(method='lotus', params={'alpha': 4}, share=None),)

    Raises:
        UnlearnError: it names no setting, an unknown method, or hyperparameters that the method does not take.
    """
    stripped = text.lstrip("\ufeff \t\r\n")
    if stripped.startswith("["):
        values = _loaded(text, yaml=False)
    elif text.endswith((".yaml", ".yml", ".json")):
        try:
            values = _loaded(read_text(text), yaml=True)
        except OSError as error:
            raise UnlearnError(
                f"{spelled('rungs', text)} cannot be read ({error.strerror}): give a YAML file"
            ) from error
    else:
        values = [part.strip() for part in text.split(",") if part.strip()]
    if not isinstance(values, list) or not values:
        raise UnlearnError(
            f"{spelled('rungs', text[:80])} names no setting: give methods such as lotus,transpose, or a list such as "
            '[{"method": "lotus", "params": {"alpha": 8}}]'
        )
    return tuple(_rung(value) for value in values)


def _loaded(text: str, *, yaml: bool) -> Any:
    try:
        return load_options(text, yaml=yaml)
    except ValueError as error:
        raise UnlearnError(f"rungs cannot be parsed ({error}): give a list of settings") from error


def _rung(value: Any) -> Rung:
    if isinstance(value, str):
        value = {"method": value}
    if not isinstance(value, dict) or not value.keys() <= {"method", "params"} or "method" not in value:
        raise UnlearnError(f"the rung {value!r} is not a setting: give {{method: NAME, params: {{…}}}}")
    method, params = value["method"], value.get("params") or {}
    if not isinstance(method, str) or not isinstance(params, dict):
        raise UnlearnError(f"the rung {value!r} is not a setting: method is a name, params names with values")
    get_method(method)(params)  # what is misspelt is refused before anything is loaded
    return Rung(method, params)


def described(rungs: Sequence[Rung]) -> str:
    """For people: the methods with the hyperparameters that differ from their own."""
    return "; ".join(
        f"{rung.method}{''.join(f' {name}={value}' for name, value in rung.params.items())}" for rung in rungs
    )
