"""Which trial is registered: a stated, deterministic rule."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState

from mlflow_unlearn.console import counted
from mlflow_unlearn.errors import NothingToUnlearn, UnlearnError
from mlflow_unlearn.metrics.catalog import OBJECTIVES
from mlflow_unlearn.tuning.selection import ADVANTAGE, CONSTRAINTS

STANDARD_ERROR, WEIGHT_CHANGE = "standard_error", "weight_change"
"""User attributes of a trial: of its objective, if that has one; how far its weights moved, relative to their size."""


def rule(objective: str, mode: str) -> str:
    """The rule in words.

    >>> rule("rf_jsd_val", "constrained")
    'the smallest rf_jsd_val among the trials that meet the constraints; of equal ones the first'
    """
    if mode == "constrained":
        smallest = f"the smallest {objective} among the trials that meet the constraints"
        if ADVANTAGE in OBJECTIVES[objective]:
            smallest += ", and of those within one standard error of it the one that changed the weights least"
        return f"{smallest}; of equal ones the first"
    return (
        f"of the front of {objective} and acc_val among the trials that meet the constraints, the one nearest to the "
        "best of both, each scaled to its range on the front; of equal ones the first"
    )


def broken(trial: FrozenTrial) -> list[str]:
    """The constraints that a finished trial does not meet."""
    return [name for name, value in trial.constraints.items() if value > 0]


def front(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """The trials that no other one is at least as good as in both objectives and better in one.

    Values are (to be minimised, to be maximised).
    """

    def dominates(a: FrozenTrial, b: FrozenTrial) -> bool:
        first, second = (np.array([t.values[0], -t.values[1]]) for t in (a, b))
        return bool((first <= second).all() and (first < second).any())

    return [trial for trial in trials if not any(dominates(other, trial) for other in trials)]


class Candidate(NamedTuple):
    """A feasible trial as the rule sees it; without a standard error none but equal values are within it."""

    value: float
    number: int
    standard_error: float
    weight_change: float


def candidate(value: float, number: int, attributes: Mapping[str, Any]) -> Candidate:
    """Of a trial's objective, number and user attributes."""
    return Candidate(value, number, attributes.get(STANDARD_ERROR, 0.0), attributes.get(WEIGHT_CHANGE, math.inf))


def gentlest(candidates: Sequence[Candidate]) -> Candidate:
    """Of those within one standard error of the smallest value the one that changed the weights least.

    That error is of the smallest one. What is nearer to it than chance decides is no better, and more was done to it.

    >>> gentlest([Candidate(0.10, 0, 0.02, 0.9), Candidate(0.11, 1, 0.02, 0.3), Candidate(0.13, 2, 0.02, 0.1)]).number
    1
    """
    best = min(candidates, key=lambda each: (each.value, each.number))
    bound = best.value + best.standard_error
    if best.standard_error == 0:
        return best
    return min((each for each in candidates if each.value <= bound), key=lambda each: (each.weight_change, each.number))


def choose(study: optuna.Study) -> FrozenTrial:
    """The winner by the `rule`.

    Raises:
        UnlearnError: every trial failed.
        NothingToUnlearn: none meets the constraints; the message names those broken and the trial that came nearest.
    """
    trials = study.get_trials(deepcopy=False)
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    feasible = [trial for trial in complete if not broken(trial)]
    if not complete:
        failed = [trial for trial in trials if trial.state == TrialState.FAIL]
        why = next((trial.user_attrs["error"] for trial in failed if "error" in trial.user_attrs), "see their runs")
        raise UnlearnError(
            f"none of {counted(len(trials), 'trial')} was completed, {len(failed)} failed; the first one: {why}"
        )
    if not feasible:
        counts = Counter(name for trial in complete for name in broken(trial))
        nearest = min(complete, key=lambda trial: (_violation(trial), trial.number))
        by_how_much = ", ".join(f"{name} by {nearest.constraints[name]:.4f}" for name in broken(nearest))
        raise NothingToUnlearn(
            f"none of {len(complete)} complete trials met the constraints ({CONSTRAINTS}): "
            f"{', '.join(f'{name} was broken by {n}' for name, n in counts.most_common())}; trial {nearest.number} "
            f"came nearest ({by_how_much})"
        )
    if len(study.directions) == 1:
        chosen = gentlest([candidate(trial.values[0], trial.number, trial.user_attrs) for trial in feasible])
        return next(trial for trial in feasible if trial.number == chosen.number)
    best = front(feasible)
    values = np.array([[trial.values[0], -trial.values[1]] for trial in best])
    spread = np.ptp(values, axis=0)
    if not spread.all():  # Equal in one objective: on the front these are equal in both.
        return best[0]
    distances = np.linalg.norm((values - values.min(axis=0)) / spread, axis=1)
    return best[int(np.argmin(distances.round(12)))]


def _violation(trial: FrozenTrial) -> float:
    return sum(max(0.0, value) for value in trial.constraints.values())
