"""Tags of the runs that are started inside an unlearning command, by itself or by the user's code.

MLflow loads this module during ``import mlflow``: it must be cheap, and an error here would break MLflow itself.
"""

import os

from mlflow.tracking.context.abstract_context import RunContextProvider

RUN_VARIABLE = "MLFLOW_UNLEARN_RUN_ID"
COMMAND_VARIABLE = "MLFLOW_UNLEARN_COMMAND"


class UnlearnRunContext(RunContextProvider):  # type: ignore[misc]
    """Names the command's run on every run that is created while MLFLOW_UNLEARN_RUN_ID is set; else it does nothing."""

    def in_context(self) -> bool:
        """Whether an unlearning command runs around us."""
        return bool(os.environ.get(RUN_VARIABLE))

    def tags(self) -> dict[str, str]:
        """The command's run and, where it is set, its name."""
        variables = {"unlearn.parent_run_id": RUN_VARIABLE, "unlearn.parent_command": COMMAND_VARIABLE}
        return {tag: os.environ[variable] for tag, variable in variables.items() if os.environ.get(variable)}
