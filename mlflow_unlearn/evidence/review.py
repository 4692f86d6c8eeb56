"""`review`: judge a version by a policy; the verdict is a file of its own, bound to what it is about."""

import re
from collections.abc import Iterable
from typing import Any

from pydantic import Field, model_validator

from mlflow_unlearn.evidence.policy import Policy, Verdict
from mlflow_unlearn.evidence.record import FOLDER, FrozenRecord, Person

TAG = "unlearn.review."
VERDICT_TAG = "unlearn.verdict"


class ReviewRecord(FrozenRecord):
    """One verdict on one version, by name, number and digests: a copy of the version is another version."""

    n: int = Field(description="Reviews of a version are counted from 1; the last one counts.")
    at: str
    by: Person
    name: str
    version: str
    weights_sha256: str
    evidence_sha256: str
    policy: Policy
    verdict: Verdict

    @model_validator(mode="before")
    @classmethod
    def _of_earlier_releases(cls, values: Any) -> Any:
        """Their policies did not ask whether a name was authenticated, nor whether a pass tells anything."""
        if not isinstance(values, dict) or not isinstance(values.get("policy"), dict):
            return values
        policy = {"authenticated": False} | values["policy"]
        if isinstance(policy.get("membership"), dict):
            policy["membership"] = {"uninformative": "accept"} | policy["membership"]
        return values | {"policy": policy}

    @property
    def file(self) -> str:
        """Its path in its run."""
        return f"{FOLDER}/review-{self.n}.json"

    def to_json(self) -> str:
        """What is stored."""
        return self.model_dump_json(indent=1) + "\n"


def numbers(tags: Iterable[str]) -> list[int]:
    """Of the reviews that a version's tags name, from the tags' keys."""
    found = [key.removeprefix(TAG) for key in tags if key.startswith(TAG)]
    return [int(number) for number in found if re.fullmatch("[1-9][0-9]*", number)]
