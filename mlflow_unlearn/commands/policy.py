"""`policy`: what a review asks for, as a file to edit."""

from typing import Any

import yaml
from pydantic import Field

from mlflow_unlearn import config
from mlflow_unlearn.answer import CommandResult
from mlflow_unlearn.evidence.policy import read_policy


class PolicyResult(CommandResult):
    """One policy."""

    sha256: str = Field(description="By which a review names it: of the policy with all its defaults.")
    policy: dict[str, Any] = Field(description="Complete.")


def policy(options: config.Policy) -> PolicyResult:
    """Print it as YAML.

    Raises:
        UnlearnError: the file is not a policy.
    """
    found = read_policy(options.policy)
    complete = found.model_dump(mode="json")
    print(yaml.safe_dump(complete, sort_keys=False, allow_unicode=True, width=100), end="")
    return PolicyResult(sha256=found.sha256, policy=complete)
