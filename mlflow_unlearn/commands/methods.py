"""`methods`: the unlearning methods with their hyperparameters."""

from typing import Any

from pydantic import Field

from mlflow_unlearn import config
from mlflow_unlearn.answer import CommandResult
from mlflow_unlearn.console import note
from mlflow_unlearn.evidence.record import FrozenRecord
from mlflow_unlearn.methods import BUILTIN, all_methods, plugin_failures
from mlflow_unlearn.report import table


class MethodRecord(FrozenRecord):
    """One method."""

    summary: str = Field(description="What it is, in a sentence.")
    plugin: bool = Field(description="Whether another distribution brings it.")
    presets: list[str] = Field(description="Other published settings, by name.")
    params: dict[str, Any] = Field(description="The JSON Schema of its hyperparameters, with defaults and bounds.")


class MethodsResult(CommandResult):
    """The methods that there are."""

    methods: dict[str, MethodRecord] = Field(description="By name, in the order of tables.")
    unusable: dict[str, str] = Field(description="Plugins that could not be loaded, and why.")


def methods(options: config.Methods) -> MethodsResult:
    """Print every method with its hyperparameters, and the plugins that could not be loaded."""
    found, unusable = all_methods(), plugin_failures()
    table.show_methods(found)
    for name, reason in unusable.items():
        note(f"Warning: the method {name!r} cannot be used: {reason}")
    return MethodsResult(
        methods={
            name: MethodRecord(
                summary=table.summary(method),
                plugin=name not in BUILTIN,
                presets=list(method.presets),
                params=method.Params.model_json_schema(),
            )
            for name, method in found.items()
        },
        unusable=dict(unusable),
    )
