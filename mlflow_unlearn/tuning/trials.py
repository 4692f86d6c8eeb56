"""Running trials: what those of one process share, and what becomes of each."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import mlflow
import numpy as np
import optuna
import torch
from optuna.trial import TrialState
from torch import nn
from torch.utils.data import Dataset, Subset

from mlflow_unlearn import config
from mlflow_unlearn.api import Result
from mlflow_unlearn.console import note, without_passwords
from mlflow_unlearn.data.splits import labels_of
from mlflow_unlearn.distributed.ranks import RankLost
from mlflow_unlearn.engine.architectures import weights_digest
from mlflow_unlearn.engine.loop import Epoch, RunOptions, Watch
from mlflow_unlearn.engine.predictions import evaluate_split, evaluate_splits
from mlflow_unlearn.engine.teacher import Teacher
from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.governance.publish import log_epoch, nothing_to_unlearn
from mlflow_unlearn.methods import get_method
from mlflow_unlearn.metrics.catalog import OBJECTIVES
from mlflow_unlearn.metrics.outputs import Outputs
from mlflow_unlearn.metrics.suite import Metrics
from mlflow_unlearn.registry import tracking
from mlflow_unlearn.session.session import Session
from mlflow_unlearn.spelling import spelled
from mlflow_unlearn.tuning.selection import (
    ADVANTAGE,
    SELECTION_SPLITS,
    constraints,
    criterion,
    not_computed,
    on_validation,
    penalised,
)
from mlflow_unlearn.tuning.space import Space, TrialConfig
from mlflow_unlearn.tuning.storage import queue_again, retry
from mlflow_unlearn.tuning.winner import STANDARD_ERROR, WEIGHT_CHANGE, Candidate, candidate, gentlest

RUN, COMMAND_RUN, DIGEST = "run_id", "command_run_id", "weights_sha256"
"""User attributes of a trial: its run, the run of the command that ran it, and the digest of its weights."""


class Aborted(BaseException):
    """A signal during a trial, which is queued again; Optuna lets it through."""


@dataclass
class _Best:
    """The trial of this process that would win so far, kept so that its very weights are registered."""

    candidates: list[Candidate] = field(default_factory=list)
    number: int = -1
    result: Result | None = None

    def add(self, candidate: Candidate, result: Result) -> None:
        """A feasible trial; one that is overtaken now and wins later is made again."""
        self.candidates.append(candidate)
        if gentlest(self.candidates).number == candidate.number:
            self.number, self.result = candidate.number, result


class Objective:
    """Optuna's objective: unlearns with the config of a trial, and keeps what the trials of this process share."""

    def __init__(
        self,
        session: Session,
        study: optuna.Study,
        space: Space,
        teacher: Teacher,
        original: Outputs,
        gold: Outputs | None,
        options: config.Tune,
        run_id: str,
    ) -> None:
        """Measure the original, with which every trial is compared.

        Args:
            session: the version opened for work.
            study: whose trials are run.
            space: that the study searches.
            teacher: of the trials without a frozen prefix.
            original: outputs of the version.
            gold: outputs of the gold standard, if one is given.
            options: of the command.
            run_id: of the command; the parent of the trials' runs until another command leads.

        Raises:
            UnlearnError: the objective cannot be computed on these data.
        """
        self.session, self.study, self.space, self.options = session, study, space, options
        self.original, self.gold, self.command_run, self.parent = original, gold, run_id, run_id
        self._teachers: dict[str, Teacher] = {"none": teacher}
        self._best = _Best()
        self._source = weights_digest(session.module)
        self.before = self._on_validation(original)
        if missing := not_computed(options.objective, self.before):
            others = [name for name in OBJECTIVES if not not_computed(name, self.before)]
            raise UnlearnError(
                f"{spelled('objective', options.objective)} needs {missing}: "
                f"{'use ' + ' or '.join(others) if others else 'nothing else is, either: use unlearn'}"
            )

    def __call__(self, trial: optuna.Trial) -> float | tuple[float, float]:
        """Unlearn with the trial's config, measure the result, log both in a run of its own.

        Raises:
            TrialPruned: the pruner stopped it.
            UnlearnError: the method failed with this config.
            Aborted: a signal or a lost rank ended it.
        """
        trial.set_user_attr(COMMAND_RUN, self.command_run)
        try:
            with tracking.nested_run(f"trial {trial.number}", parent=self.parent) as run_id:
                trial.set_user_attr(RUN, run_id)
                values = self._run(trial)
        except RankLost as error:
            raise self._aborted(trial) from error
        except UnlearnError as error:
            # Hyperparameters that diverge are a result of the search, not its end.
            trial.set_user_attr("error", without_passwords(str(error)))
            note(f"Note: trial {trial.number} failed: {error}")
            raise
        except Exception:
            # The store's or the machine's fault, not the hyperparameters'.
            left = self._left(trial)
            if not left.state.is_finished():
                retry(self.study, left)
            raise
        except BaseException as stop:
            raise self._aborted(trial) from stop
        if values is None:
            raise optuna.TrialPruned
        return values if len(self.study.directions) > 1 else values[0]

    def unlearn(
        self, chosen: TrialConfig, *, on_epoch: Callable[[Epoch], None] | None = None, on_state: Watch | None = None
    ) -> Result:
        """Run a config; equal configs give equal weights on one machine."""
        session, prefix = self.session, chosen.prefix
        if prefix not in self._teachers:
            model = session.hardware.place(session.module)
            self._teachers[prefix] = Teacher(model, vars(session.splits), session.hardware, prefix=prefix)
        teacher = self._teachers[prefix]
        options = RunOptions(self.options.seed, teacher=teacher, on_epoch=on_epoch, on_state=on_state)
        return session.unlearn(chosen.method, chosen.params, options)

    def result(self, winner: optuna.trial.FrozenTrial) -> Result:
        """The winner's model: as this process made it, or made again.

        Raises:
            UnlearnError: its weights come out otherwise here.
        """
        if self._best.number == winner.number and self._best.result is not None:
            return self._best.result
        result = self.unlearn(self.space.config(winner.params))
        if weights_digest(result.model) != winner.user_attrs.get(DIGEST):
            raise UnlearnError(
                f"trial {winner.number} ran elsewhere, with another seed or other versions, and its weights do not "
                "come out the same here: continue the study where it ran, or start a new one"
            )
        return result

    def _on_validation(self, outputs: Outputs) -> Metrics:
        return on_validation(outputs, self.original, gold=self.gold, seed=self.options.seed)

    def _run(self, trial: optuna.Trial) -> tuple[float, float] | None:
        """The objective and acc_val, or None where the trial was pruned."""
        chosen = self.space.suggest(trial)
        tags = {"study": self.study.study_name, "trial": str(trial.number)}
        tags |= {"method": chosen.method, "prefix": chosen.prefix}
        mlflow.set_tags({f"unlearn.{key}": value for key, value in tags.items()})
        mlflow.log_params({f"unlearn.params.{key}": value for key, value in chosen.params.items()})
        pruning = not isinstance(self.study.pruner, optuna.pruners.NopPruner)
        method = get_method(chosen.method)
        try:
            watch = partial(self._report, trial) if pruning else None
            result = self.unlearn(chosen, on_epoch=partial(log_epoch, method), on_state=watch)
        except optuna.TrialPruned:
            mlflow.set_tag("unlearn.trial_state", "pruned")
            return None
        digest = weights_digest(result.model)
        if digest == self._source:
            raise UnlearnError(nothing_to_unlearn(method, result))
        start = time.perf_counter()
        metrics = self._on_validation(
            evaluate_splits(result.model, self.session.splits, self.session.hardware, only=SELECTION_SPLITS)
        )
        seconds = {"unlearn_seconds": result.seconds, "judge_seconds": time.perf_counter() - start}
        trial.set_user_attr(DIGEST, digest)
        moved_by = weight_change(self.session.module, result.model)
        value, feasible = judge(trial, self.options.objective, metrics, self.before, moved_by)
        mlflow.log_metrics({**metrics, "objective": value, "feasible": float(feasible), **seconds})
        mlflow.set_tags({"unlearn.weights_sha256": digest, "unlearn.trial_state": "complete"})
        if feasible:
            self._best.add(candidate(value, trial.number, trial.user_attrs), result)
        return value, metrics["acc_val"]

    def _report(
        self, trial: optuna.Trial, epoch: Epoch, model: nn.Module, datasets: Mapping[str, Dataset[Any]]
    ) -> None:
        """Report a trial's value after each epoch, and stop it where the pruner wants that."""
        step = int(epoch["epoch"]) + 1
        value = self.value_during_training(model, datasets)
        trial.report(value, step)
        mlflow.log_metric("penalised_value", value, step=step)
        if trial.should_prune():
            mlflow.log_metric("pruned_after_epochs", step)
            raise optuna.TrialPruned

    def value_during_training(self, model: nn.Module, datasets: Mapping[str, Dataset[Any]]) -> float:
        """The penalised value of a model that is still learning; of the retain set a subset is evaluated."""
        outputs = {}
        for split in SELECTION_SPLITS:
            data = datasets[split]
            if split == "retain":
                data = Subset(data, _spread_subset(labels_of(data), len(datasets["val"])))  # type: ignore[arg-type]
            outputs[split] = evaluate_split(model, data, self.session.hardware, keep_probabilities=split == "forget")
        metrics = self._on_validation(outputs)
        return penalised(criterion(self.options.objective, metrics), constraints(metrics, self.before))

    def _aborted(self, trial: optuna.Trial) -> Aborted:
        """Queue the trial again as it was, for the next worker of the study."""
        left = self._left(trial)
        if not left.state.is_finished():
            queue_again(self.study, left)
            self.study.tell(trial.number, state=TrialState.FAIL)
        return Aborted()

    def _left(self, trial: optuna.Trial) -> optuna.trial.FrozenTrial:
        return self.study.get_trials(deepcopy=False)[trial.number]


def judge(
    trial: optuna.Trial, objective: str, metrics: Metrics, before: Metrics, moved_by: float
) -> tuple[float, bool]:
    """The trial's value and whether it meets the constraints; what `choose` goes by is noted on the trial.

    Args:
        trial: that is running.
        objective: one of `OBJECTIVES`.
        metrics: of what the trial has made, from `on_validation`.
        before: of the original, likewise.
        moved_by: the `weight_change`.
    """
    violations = constraints(metrics, before)
    for name, violation in violations.items():
        trial.set_constraint(name, violation)
    trial.set_user_attr(WEIGHT_CHANGE, moved_by)
    if ADVANTAGE in OBJECTIVES[objective] and "mia_advantage_se_val" in metrics:
        trial.set_user_attr(STANDARD_ERROR, metrics["mia_advantage_se_val"])
    return criterion(objective, metrics), all(violation <= 0 for violation in violations.values())


def weight_change(before: nn.Module, after: nn.Module) -> float:
    """``‖w − w₀‖ / ‖w₀‖`` over all parameters of a model after and before unlearning; float64."""
    moved = size = 0.0
    for old, new in zip(before.parameters(), after.parameters(), strict=True):
        start = old.detach().double().cpu()
        moved += float((new.detach().double().cpu() - start).square().sum())
        size += float(start.square().sum())
    return math.sqrt(moved / size) if size else 0.0


def _spread_subset(labels: torch.Tensor, size: int) -> Sequence[int]:
    """Evenly spread indices, and the first of each class: no class may look wholly forgotten."""
    values = np.asarray(labels)
    _, first = np.unique(values, return_index=True)
    spread = np.linspace(0, len(values) - 1, min(size, len(values))).round().astype(int)
    chosen: list[int] = np.union1d(spread, first).tolist()
    return chosen
