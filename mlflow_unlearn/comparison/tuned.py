"""Tuning within a comparison: as many trials for every method, judged without gold standard and test set."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import optuna

from mlflow_unlearn import config
from mlflow_unlearn.comparison.runs import ComparisonRunner
from mlflow_unlearn.console import without_passwords
from mlflow_unlearn.engine.architectures import model_family
from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.methods import get_method
from mlflow_unlearn.spelling import spelled
from mlflow_unlearn.tuning.runner import new_sampler
from mlflow_unlearn.tuning.selection import not_computed
from mlflow_unlearn.tuning.space import search_space
from mlflow_unlearn.tuning.trials import judge
from mlflow_unlearn.tuning.winner import choose

OBJECTIVE: str = config.Tune.model_fields["objective"].default
"""That of `tune`, and so are the constraints and the rule by which a trial is chosen."""


@dataclass(frozen=True)
class Tuned:
    """What the trials of one method came to.

    Attributes:
        params: all hyperparameters of the chosen trial; None where no trial meets the constraints.
        remark: which trial that is, or why there is none.
    """

    params: Mapping[str, Any] | None
    remark: str


def check_tunable(runner: ComparisonRunner, tuned: int) -> None:
    """Whether the objective can be computed on these data.

    Args:
        runner: that would run the trials.
        tuned: how many are asked for.

    Raises:
        UnlearnError: it cannot.
    """
    if missing := not_computed(OBJECTIVE, runner.before):
        raise UnlearnError(
            f"{spelled('tuned', tuned)} goes by {OBJECTIVE}, which needs {missing}: compare without it, and give the "
            f"hyperparameters that tune finds by another objective as {spelled('params')}"
        )


def tune_method(runner: ComparisonRunner, method: str, own: Mapping[str, Any], n_trials: int, seed: int) -> Tuned:
    """Search a method's hyperparameters, its own setting first; finished runs are reused, so that it resumes.

    The sampler is seeded and learns from what the trials measured alone: the same trials come again after a stop.

    Args:
        runner: that runs the trials.
        method: a registered name.
        own: all hyperparameters of the method's row.
        n_trials: how many, failed ones among them.
        seed: of the sampler and of every trial.
    """
    family = model_family(runner.session.module)
    space = search_space([method], family, ["none"], {}, {method: own})
    if not space.distributions[method]:
        return Tuned(None, "not tuned: it declares nothing to search")

    def complete(params: Mapping[str, Any]) -> dict[str, Any]:
        return get_method(method)(params, family=family).params.model_dump(mode="json")

    def objective(trial: optuna.Trial) -> float:
        # What lies outside of the space is tried all the same, and the sampler learns nothing from it.
        searched = trial.number > 0 or own_is_searched
        params = complete(space.suggest(trial).params) if searched else own
        trial.set_user_attr("params", params)
        try:
            done = runner.candidate(method, params, seed, trial.number)
        except UnlearnError as error:
            trial.set_user_attr("error", without_passwords(str(error)))
            raise
        value, _ = judge(trial, OBJECTIVE, done.selection_metrics, runner.before, done.weight_change)
        return value

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=new_sampler("tpe", n_trials, seed))
    [published] = space.published_settings()
    own_is_searched = complete(space.config(published).params) == own
    if own_is_searched:
        study.enqueue_trial(published)
    study.optimize(objective, n_trials=n_trials, catch=(UnlearnError,))
    try:
        best = choose(study)
    except UnlearnError as error:
        return Tuned(None, f"not tuned: {error}")
    params = best.user_attrs["params"]
    changed = ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in params.items()
        if value != own[name]
    )
    return Tuned(params, f"trial {best.number} of {n_trials}, {changed or 'which is its own setting'}")
