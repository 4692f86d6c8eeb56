"""How weights came about: the method, its hyperparameters, and what else decides the outcome."""

import json
from collections.abc import Iterator, Mapping
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator

ATTEMPTS_TAG = "unlearn.n_attempts"
"""Of a version that ``unlearn --until pass`` has made."""


class Attempt(BaseModel):
    """One setting that ``unlearn --until pass`` has tried, and how the policy judged it on the validation set."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    method: str
    params: dict[str, Any]
    passed: bool
    outcome: str = Field(description="What the policy found, or why the method failed.")
    metrics: dict[str, float] = Field({}, description="On forget, retain and validation set; none where it failed.")
    shortfall: float | None = Field(None, description="By how much its checks fail in all; None where it failed.")
    trained: int = Field(0, description="Samples that went through the model for a gradient.")
    share: float = Field(0.0, description="That, as a fraction of what retraining trains on.")
    seconds: float = 0.0
    run_id: str | None = None
    weights_sha256: str | None = None

    def __str__(self) -> str:
        """For people: the setting and how it ended."""
        params = ", ".join(f"{name} {value}" for name, value in self.params.items())
        return f"{self.method}{f' ({params})' if params else ''}: {self.outcome}"


class Selection(BaseModel):
    """What chose the setting, where no one did by hand."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    by: Literal["tune", "compare", "until"]
    rule: str
    study: str | None = Field(None, description="Of `tune`, as are trial and trials.")
    trial: int | None = None
    trials: int | None = Field(None, description="How many there were to choose from.")
    attempts: list[Attempt] = Field([], description="Of `unlearn --until pass`, in their order; the last one passed.")
    metrics: dict[str, float] = Field(
        {}, description="Of what was chosen, with the validation set in the place of the test set; of `tune`."
    )

    @property
    def on_validation(self) -> Mapping[str, float]:
        """The figures of what was chosen where it was chosen, with the validation set in the place of the test set."""
        return self.attempts[-1].metrics if self.attempts else self.metrics

    def tags(self) -> dict[str, str]:
        """The version's tags about a study or attempts; `compare` leaves none."""
        if self.by == "until":
            return {"unlearn.selection": self.rule, ATTEMPTS_TAG: str(len(self.attempts))}
        if self.by != "tune":
            return {}
        return {
            "unlearn.study": str(self.study),
            "unlearn.trial": str(self.trial),
            "unlearn.selection": self.rule,
            "unlearn.n_trials": str(self.trials),
        }

    def rows(self) -> Iterator[tuple[str, str]]:
        """The rule and what there was to choose from, for people; a study and its trial stand in the recipe."""
        if self.by == "tune":
            yield from (("selection", self.rule), ("n_trials", str(self.trials)))
        elif self.by == "until":
            yield "selection", self.rule
            for number, attempt in enumerate(self.attempts, 1):
                yield f"attempt {number} of {len(self.attempts)}", str(attempt)


class Provenance(BaseModel):
    """From the command to the evidence: what a rerun would need beside the data and the source version.

    Attributes:
        method: registered name, or ``train``.
        params: the method's hyperparameters, all of them. A field of their own, so that they may have any name.
        seed: of everything random.
        prefix: name of the first module that was trained, where the layers before it were frozen.
        augment: random augmentation of the training images, where there was one to choose.
        selection: what chose the setting.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: str
    params: dict[str, Any]
    seed: int
    prefix: str | None = None
    augment: str | None = None
    selection: Selection | None = None

    @field_validator("params", mode="before")
    @classmethod
    def _as_stored(cls, value: Any) -> Any:
        """A tuple is a list from the start, as it is when the record is read again."""
        return json.loads(json.dumps(value))

    @classmethod
    def from_recipe(cls, method: str, recipe: Mapping[str, Any], selection: Mapping[str, str] | None = None) -> Self:
        """From the one untyped mapping that records held before evidence schema 3.

        Args:
            method: its name.
            recipe: hyperparameters, seed, prefix, augmentation, study and trial side by side.
            selection: the study's tags.
        """
        params = dict(recipe)
        seed, prefix, augment = params.pop("seed", 0), params.pop("prefix", None), params.pop("augment", None)
        study, trial, chosen_by = (params.pop(name, None) for name in ("study", "trial", "chosen_by"))
        params.pop("exclude", None)  # of a training: what it left out, which the record itself tells
        chosen = None
        if selection:
            trials = selection.get("unlearn.n_trials")
            rule = selection.get("unlearn.selection", "")
            chosen = Selection(
                by="tune", rule=rule, study=study, trial=trial, trials=int(trials) if trials is not None else None
            )
        elif chosen_by is not None:
            chosen = Selection(by="compare", rule=str(chosen_by).removeprefix("compare, "))
        return cls(method=method, params=params, seed=seed, prefix=prefix, augment=augment, selection=chosen)

    def rows(self) -> Iterator[tuple[str, str]]:
        """Name and value of everything that decides the outcome, for people."""
        yield from ((name, str(value)) for name, value in self.recipe().items())

    def recipe(self) -> dict[str, Any]:
        """Everything side by side, as earlier releases read it in a version's record."""
        chosen: dict[str, Any] = {}
        if self.selection is not None and self.selection.by == "tune":
            chosen = {"study": self.selection.study, "trial": self.selection.trial}
        elif self.selection is not None:
            chosen = {"chosen_by": f"{self.selection.by}, {self.selection.rule}"}
        others = {"augment": self.augment, **chosen, "prefix": self.prefix}
        return {
            **self.params,
            "seed": self.seed,
            **{name: value for name, value in others.items() if value is not None},
        }
