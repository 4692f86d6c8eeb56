"""`methods`: the unlearning methods with their hyperparameters."""

from mlflow_unlearn import config
from mlflow_unlearn.console import note
from mlflow_unlearn.methods import all_methods, plugin_failures
from mlflow_unlearn.report import table


def methods(options: config.Methods) -> None:
    """Print every method with its hyperparameters, and the plugins that could not be loaded."""
    table.show_methods(all_methods())
    for name, reason in plugin_failures().items():
        note(f"Warning: the method {name!r} cannot be used: {reason}")
