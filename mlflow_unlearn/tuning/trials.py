"""Carrying out trials: what those of one process share, and what becomes of each."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import mlflow
import numpy as np
import optuna
import torch
from optuna.trial import TrialState
from torch import nn
from torch.utils.data import Dataset, Subset

from mlflow_unlearn.api import Result
from mlflow_unlearn.console import note
from mlflow_unlearn.data.splits import labels_of
from mlflow_unlearn.distributed.ranks import RankLost
from mlflow_unlearn.engine.architectures import weights_digest
from mlflow_unlearn.engine.loop import Epoch, RunOptions, Watch
from mlflow_unlearn.engine.predictions import evaluate_split, evaluate_splits
from mlflow_unlearn.engine.teacher import Teacher
from mlflow_unlearn.errors import UnlearnError, without_passwords
from mlflow_unlearn.governance.publish import log_epoch, nothing_to_unlearn
from mlflow_unlearn.methods import get_method
from mlflow_unlearn.metrics.catalog import OBJECTIVES
from mlflow_unlearn.metrics.outputs import Outputs
from mlflow_unlearn.registry import tracking
from mlflow_unlearn.session.session import Session
from mlflow_unlearn.tuning.selection import (
    SELECTION_SPLITS,
    constraints,
    criterion,
    on_validation,
    penalised,
)
from mlflow_unlearn.tuning.space import Setting, Space
from mlflow_unlearn.tuning.storage import queue_again, retry

RUN, COMMAND_RUN, DIGEST = "run_id", "command_run_id", "weights_sha256"
"""User attributes of a trial: its run, the run of the command that carried it out, and the digest of its weights."""


class Aborted(BaseException):
    """A signal amid a trial, which is queued again; Optuna lets it through."""


@dataclass
class _Best:
    """The best feasible trial of this process, kept so that its very weights are registered."""

    value: float = math.inf
    number: int = -1
    result: Result | None = None


class Objective:
    """Optuna's objective: unlearns with the setting of a trial, and keeps what the trials of this process share."""

    def __init__(
        self,
        session: Session,
        study: optuna.Study,
        space: Space,
        teacher: Teacher,
        original: Outputs,
        gold: Outputs | None,
        *,
        objective: str,
        seed: int,
        run_id: str,
    ) -> None:
        """Judge the original, against which every trial is held.

        Raises:
            UnlearnError: the objective cannot be computed on these data.
        """
        self.session, self.study, self.space, self.command_run, self.parent = session, study, space, run_id, run_id
        self._original, self._gold, self._objective, self._seed = original, gold, objective, seed
        self._teachers: dict[str, Teacher] = {"none": teacher}
        self._best = _Best()
        self._source = weights_digest(session.module)
        self._fronts = len(study.directions) > 1
        self.before = on_validation(original, original, gold=gold, seed=seed)
        missing = [name for name in OBJECTIVES[objective] if name in self.before.missing]
        if missing:
            reason = self.before.missing[missing[0]]
            others = [name for name, parts in OBJECTIVES.items() if not set(parts) & self.before.missing.keys()]
            raise UnlearnError(
                f"objective = {objective!r} needs {missing[0]}, which is not computed here ({reason}): "
                f"{'use ' + ' or '.join(others) if others else 'nothing else is, either: use unlearn'}"
            )

    def __call__(self, trial: optuna.Trial) -> float | tuple[float, float]:
        """Unlearn with the trial's setting, judge the result, log both in a run of its own."""
        trial.set_user_attr(COMMAND_RUN, self.command_run)
        pruned: optuna.TrialPruned | None = None
        values: tuple[float, ...] = ()
        try:
            with tracking.nested_run(f"trial {trial.number}", parent=self.parent) as run_id:
                trial.set_user_attr(RUN, run_id)
                setting = self.space.suggest(trial)
                _log_setting(self.study, trial, setting)
                try:
                    values = self._carry_out(trial, setting)
                except optuna.TrialPruned as stop:
                    pruned = stop
                    mlflow.set_tag("unlearn.trial_state", "pruned")
        except RankLost as error:
            raise self._aborted(trial) from error
        except UnlearnError as error:
            # A setting that diverges is a result of the search, not its end.
            trial.set_user_attr("error", without_passwords(str(error)))
            note(f"Note: trial {trial.number} failed: {error}")
            raise
        except Exception:
            # The store's or the machine's fault, not the setting's.
            left = self._left(trial)
            if not left.state.is_finished():
                retry(self.study, left)
            raise
        except BaseException as stop:
            raise self._aborted(trial) from stop
        if pruned is not None:
            raise pruned
        return (values[0], values[1]) if self._fronts else values[0]

    def unlearn(
        self,
        setting: Setting,
        *,
        on_epoch: Callable[[Epoch], None] | None = None,
        on_state: Watch | None = None,
    ) -> Result:
        """Carry out a setting; equal settings give equal weights on one machine."""
        prefix = setting.prefix
        if prefix not in self._teachers:
            session = self.session
            model = session.hardware.place(session.module)
            self._teachers[prefix] = Teacher(model, vars(session.splits), session.hardware, prefix=prefix)
        options = RunOptions(self._seed, teacher=self._teachers[prefix], on_epoch=on_epoch, on_state=on_state)
        return self.session.unlearn(setting.method, setting.params, options)

    def result(self, winner: optuna.trial.FrozenTrial) -> Result:
        """The winner's model: as this process made it, or made again.

        Raises:
            UnlearnError: its weights come out otherwise here.
        """
        if self._best.number == winner.number and self._best.result is not None:
            return self._best.result
        result = self.unlearn(self.space.setting(winner.params))
        if weights_digest(result.model) != winner.user_attrs.get(DIGEST):
            raise UnlearnError(
                f"trial {winner.number} ran elsewhere, with another seed or other versions, and its weights do not "
                "come out the same here: continue the study where it ran, or start a new one"
            )
        return result

    def _carry_out(self, trial: optuna.Trial, setting: Setting) -> tuple[float, float]:
        pruning = not isinstance(self.study.pruner, optuna.pruners.NopPruner)
        watch = _PruningCallback(self, trial) if pruning else None
        method = get_method(setting.method)
        result = self.unlearn(setting, on_epoch=partial(log_epoch, method), on_state=watch)
        digest = weights_digest(result.model)
        if digest == self._source:
            raise UnlearnError(nothing_to_unlearn(method, result))
        start = time.perf_counter()
        outputs = evaluate_splits(result.model, self.session.splits, self.session.hardware, only=SELECTION_SPLITS)
        metrics = on_validation(outputs, self._original, gold=self._gold, seed=self._seed)
        seconds = {"unlearn_seconds": result.seconds, "judge_seconds": time.perf_counter() - start}
        violations = constraints(metrics, self.before)
        for name, value in violations.items():
            trial.set_constraint(name, value)
        trial.set_user_attr(DIGEST, digest)
        feasible = all(value <= 0 for value in violations.values())
        value = criterion(self._objective, metrics)
        mlflow.log_metrics({**metrics, "objective": value, "feasible": float(feasible), **seconds})
        mlflow.set_tags({"unlearn.weights_sha256": digest, "unlearn.trial_state": "complete"})
        if feasible and value < self._best.value:
            self._best = _Best(value, trial.number, result)
        return value, metrics["acc_val"]

    def value_during_training(self, model: nn.Module, datasets: Mapping[str, Dataset[Any]]) -> float:
        """The penalised value of a model that is still learning; of the retain set a part is read."""
        outputs = {}
        for role in SELECTION_SPLITS:
            data = datasets[role]
            if role == "retain":
                data = Subset(data, _part(labels_of(data), len(datasets["val"])))  # type: ignore[arg-type]
            outputs[role] = evaluate_split(model, data, self.session.hardware, keep_probabilities=role == "forget")
        metrics = on_validation(outputs, self._original, gold=self._gold, seed=self._seed)
        return penalised(criterion(self._objective, metrics), constraints(metrics, self.before))

    def _aborted(self, trial: optuna.Trial) -> Aborted:
        """Queue the trial again as it was: whoever goes on with the study carries it out."""
        left = self._left(trial)
        if not left.state.is_finished():
            queue_again(self.study, left)
            self.study.tell(trial.number, state=TrialState.FAIL)
        return Aborted()

    def _left(self, trial: optuna.Trial) -> optuna.trial.FrozenTrial:
        return self.study.get_trials(deepcopy=False)[trial.number]


class _PruningCallback:
    """Reports a trial's value after each epoch, and stops it where the pruner says so."""

    def __init__(self, objective: Objective, trial: optuna.Trial) -> None:
        self._objective, self._trial = objective, trial

    def __call__(self, epoch: Epoch, model: nn.Module, datasets: Mapping[str, Dataset[Any]]) -> None:
        step = int(epoch["epoch"]) + 1
        value = self._objective.value_during_training(model, datasets)
        self._trial.report(value, step)
        mlflow.log_metric("penalised_value", value, step=step)
        if self._trial.should_prune():
            mlflow.log_metric("pruned_after_epochs", step)
            raise optuna.TrialPruned


def _log_setting(study: optuna.Study, trial: optuna.Trial, setting: Setting) -> None:
    tags = {"unlearn.study": study.study_name, "unlearn.trial": str(trial.number), "unlearn.method": setting.method}
    mlflow.set_tags({**tags, "unlearn.prefix": setting.prefix})
    mlflow.log_params({f"unlearn.params.{key}": value for key, value in setting.params.items()})


def _part(labels: torch.Tensor, size: int) -> Sequence[int]:
    """Evenly spread indices, and the first of each class: none may look wholly forgotten."""
    every = np.asarray(labels)
    _, first = np.unique(every, return_index=True)
    spread = np.linspace(0, len(every) - 1, min(size, len(every))).round().astype(int)
    chosen: list[int] = np.union1d(spread, first).tolist()
    return chosen
