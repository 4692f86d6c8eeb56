"""`tune`: an Optuna study over hyperparameters, selected on the validation set alone, and its winner registered.

Every command on a study runs trials until none is left. One of them leads: it queues the trials, its run is the parent
of all, and it registers the winner. Where it dies another takes over (see `mlflow_unlearn.tuning.storage`).
"""

import hashlib
import json
import math
import signal
import subprocess
import threading
import time
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, NoReturn

import mlflow
import numpy as np
import optuna
import torch
from mlflow.exceptions import MlflowException
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from pydantic import Field
from torch import nn

from mlflow_unlearn import config
from mlflow_unlearn.console import first_line, hidden_password, note, say
from mlflow_unlearn.engine.architectures import weights_digest
from mlflow_unlearn.engine.predictions import evaluate_splits
from mlflow_unlearn.errors import NothingToUnlearn, UnlearnError
from mlflow_unlearn.evidence.provenance import Provenance, Selection
from mlflow_unlearn.evidence.record import FrozenRecord
from mlflow_unlearn.evidence.registered import Registered
from mlflow_unlearn.governance.publish import log_history, publish
from mlflow_unlearn.methods import get_method
from mlflow_unlearn.metrics.outputs import Outputs
from mlflow_unlearn.registry import tracking
from mlflow_unlearn.registry.clients import quoted
from mlflow_unlearn.registry.registration import registered_before
from mlflow_unlearn.registry.uris import absolute_uri
from mlflow_unlearn.session.reuse import code_digest, reuse_key
from mlflow_unlearn.session.session import Session
from mlflow_unlearn.spelling import spelled
from mlflow_unlearn.tuning import study_report as report
from mlflow_unlearn.tuning.selection import CONSTRAINTS, SELECTION_SPLITS, as_if_tested, needs_gold
from mlflow_unlearn.tuning.space import Space
from mlflow_unlearn.tuning.storage import (
    GRACE_SECONDS,
    LeaderLock,
    QueueEmpty,
    count,
    has_heartbeats,
    queue_trials,
    retry,
)
from mlflow_unlearn.tuning.trials import COMMAND_RUN, DIGEST, RUN, Objective
from mlflow_unlearn.tuning.winner import choose, rule

SALT_OF_TASKS = "00"
"""For the forget set's digest in the study, which only has to be comparable."""
TASK, PARENT, SIZE = "task", "parent_run_id", "n_trials"
"""User attributes of a study: what it is about, the leader's run, trials asked for."""
_READABLE, _BY_CONTENT = (
    ("objective", "torch", "threads", "device"),
    ("pixels_sha256", "model_code_sha256", "method_code_sha256"),
)
"""Of the task, what is no digest; and what may be impossible to tell."""
PARENT_TAG = "unlearn.study_run"
"""On the run of a command that does not lead: the run that does."""
_POLL_SECONDS = 1.0
_UNKNOWN_SECONDS = 1200.0
"""Assumed duration of a trial while none is complete."""


@dataclass
class StudyRunner:
    """One command's part in a study."""

    objective: Objective
    leader_lock: LeaderLock
    task: dict[str, Any]
    stop: threading.Event = field(default_factory=threading.Event)

    @property
    def study(self) -> optuna.Study:
        """Whose trials are run."""
        return self.objective.study

    @property
    def options(self) -> config.Tune:
        """Of the command."""
        return self.objective.options

    def work(self) -> Iterator[None]:
        """Run trials until none is left, and lead if no one does; yields as the study's trials are finished."""
        deadline = time.monotonic() + (self.options.timeout or math.inf)
        waiting_since, shown, idle = time.monotonic(), 0, False
        while not self.stop.is_set() and time.monotonic() < deadline:
            led = self.leader_lock.held
            if self.leader_lock.take() and not led:
                self._take_over()
                self._queue()
            if not self._may_begin():
                time.sleep(_POLL_SECONDS)
                continue
            try:
                self.study.optimize(self.objective, n_trials=1, catch=(UnlearnError,))
                waiting_since, idle = time.monotonic(), False
            except QueueEmpty:
                none_runs = not count(self.study, TrialState.RUNNING)
                # Where one has failed, twice: a dead trial has failed a moment before it is queued again.
                if (none_runs and (idle or not count(self.study, TrialState.FAIL))) or self._given_up(waiting_since):
                    return
                idle = none_runs
                time.sleep(_POLL_SECONDS)
            except ValueError as error:
                if "Cannot tell" not in str(error):
                    raise
                note("Note: this process was suspended for long, and its trial was given up, so its result is dropped.")
            finished = count(self.study, TrialState.COMPLETE, TrialState.PRUNED)
            yield from [None] * (finished - shown)
            shown = finished

    def finishes(self) -> bool:
        """Whether this command is the one to choose and register the winner: it leads, or the leader died."""
        if self.leader_lock.held:
            return True
        if not self.leader_lock.take() or tracking.client().get_run(self.objective.parent).info.status == "FINISHED":
            return False
        self._take_over()
        return True

    def description(self) -> dict[str, Any]:
        """What the study is about, for its record."""
        return {
            "storage": hidden_password(absolute_uri(self.options.storage)),
            "parent_run_id": self.objective.parent,
            "sampler": type(self.study.sampler).__name__,
            "pruner": type(self.study.pruner).__name__,
            "rule": rule(self.options.objective, self.options.mode),
            "constraints": CONSTRAINTS,
            **self.task,
            "space": self.objective.space.to_json(),
        }

    def _take_over(self) -> None:
        """Lead from now on, in the place of a leader that died, if there was one."""
        self._check_same_task()
        before = self.study.user_attrs.get(PARENT)
        if before is not None and _close(before):
            note(f"Note: run {before}, which led study {self.study.study_name!r}, had died and is closed as KILLED.")
        self.study.set_user_attr(TASK, self.task)
        self.study.set_user_attr(PARENT, self.objective.command_run)
        self.objective.parent = self.objective.command_run

    def _queue(self) -> None:
        """Queue the trials that are missing."""
        options, space = self.options, self.objective.space
        # What it begins with is the same for the same seed; a continued study does not draw its first trials again.
        done = sum(trial.state.is_finished() for trial in self.study.get_trials(deepcopy=False))
        self.study.sampler = new_sampler(options.sampler, options.n_trials, options.seed + done)
        grid = space.grid(options.seed) if options.sampler == "grid" else None
        queue_trials(self.study, options.n_trials, space.published_settings(), grid)
        self.study.set_user_attr(SIZE, max(options.n_trials, self.study.user_attrs.get(SIZE, 0)))

    def _may_begin(self) -> bool:
        """Whether the leader has queued as many trials as this command asks for; notices a new leader."""
        stored = self.study.user_attrs
        if stored.get(SIZE, 0) < self.options.n_trials:
            return False
        if self.objective.parent != stored[PARENT]:
            self._check_same_task()
            self.objective.parent = stored[PARENT]
            mlflow.set_tag(PARENT_TAG, stored[PARENT])
        return True

    def _check_same_task(self) -> None:
        """Trials of one study are compared: they must all be about the same thing.

        Raises:
            UnlearnError: the study that is to be continued was about something else.
        """
        name, stored = self.study.study_name, self.study.user_attrs.get(TASK, self.task)
        different = [
            f"{key} ({stored[key]}, here {value})" if key in _READABLE else key
            for key, value in self.task.items()
            if key in stored and stored[key] != value
        ]
        if different:
            raise UnlearnError(
                f"study {name!r} was started with another {', '.join(different)}: continue it with the same model, "
                "data, forget set, objective, mode, methods, space, prefix, seed, code and versions, on the same kind "
                f"of device with as many threads (OMP_NUM_THREADS), or give another {spelled('study')}"
            )
        if unrecorded := [key for key in self.task if key not in stored]:
            note(
                f"Note: study {name!r} was started by an earlier release, which did not record "
                f"{', '.join(unrecorded)}: it is unknown whether these have changed since."
            )
        if untold := [key for key in _BY_CONTENT if self.task.get(key, "") is None]:
            note(
                f"Note: it is unknown what {', '.join(untold)} is, and so whether study {name!r} was started "
                "with another."
            )

    def _given_up(self, since: float) -> bool:
        """Without heartbeats no one knows whether a running trial's process lives: wait three times the longest."""
        if has_heartbeats(self.options.storage):
            return False
        taken = [
            trial.duration.total_seconds()
            for trial in self.study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
            if trial.duration is not None
        ]
        if time.monotonic() - since < max(GRACE_SECONDS, 3 * max(taken, default=_UNKNOWN_SECONDS)):
            return False
        note("Note: trials of other workers do not end; the study continues without them.")
        return True


def worthwhile(methods: Sequence[str], original: Outputs) -> list[str]:
    """The methods by which a study may find something; a note names the others.

    Args:
        methods: names.
        original: outputs of the version, with labels, predictions, entropies and margins ``[N]`` of each split.

    Raises:
        NothingToUnlearn: there is none.
    """
    given = [
        {split: torch.from_numpy(np.asarray(getattr(original[split], field))) for split in SELECTION_SPLITS}
        for field in ("labels", "predictions", "entropies", "margins")
    ]
    reasons = {method: get_method(method).not_worthwhile(*given) for method in methods}
    left = [method for method, reason in reasons.items() if reason is None]
    if not left:
        raise NothingToUnlearn(f"nothing to unlearn: {next(reason for reason in reasons.values() if reason)}")
    for method, reason in reasons.items():
        if reason is not None:
            note(f"Note: {method} is left out of the study: {reason}.")
    return left


def open_study(
    storage: BaseStorage, options: config.Tune, space: Space, default_name: str, run_id: str
) -> optuna.Study:
    """Begin a study, or continue the one of that name.

    Args:
        storage: of the study.
        options: of the command.
        space: that is searched.
        default_name: begins the study's name, where the command gives none.
        run_id: of the command.

    Raises:
        UnlearnError: the one of that name was started with another mode.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    name = options.study or f"{default_name}-{run_id[:8]}"
    # Workers that begin at once must not draw the same trials.
    sampler = new_sampler(options.sampler, options.n_trials, options.seed + zlib.crc32(run_id.encode()))
    directions = [StudyDirection.MINIMIZE, *([StudyDirection.MAXIMIZE] if options.mode == "pareto" else [])]
    named: dict[str, Any] = {"storage": storage, "study_name": name, "load_if_exists": True}
    study = optuna.create_study(**named, directions=directions, sampler=sampler, pruner=_pruner(options, space))
    if len(study.directions) != len(directions):
        raise UnlearnError(
            f"study {name!r} was started with another mode: use that one, or give another {spelled('study')}"
        )
    return study


def new_sampler(kind: str, n_trials: int, seed: int) -> optuna.samplers.BaseSampler:
    """A sampler for a study of so many trials.

    Args:
        kind: as the option ``sampler`` of `tune`.
        n_trials: of the study, a quarter of which are drawn at random before it learns from them.
        seed: of the sampler.
    """
    seed %= 2**32
    startup = min(10, max(4, n_trials // 4))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        match kind:
            case "tpe":
                # Trials that others are running count as bad: workers spread out.
                return optuna.samplers.TPESampler(seed=seed, n_startup_trials=startup, constant_liar=True)
            case "gp":
                return optuna.samplers.GPSampler(seed=seed, n_startup_trials=startup, deterministic_objective=True)
            case "nsga2":
                return optuna.samplers.NSGAIISampler(seed=seed, population_size=startup)
            case "qmc":
                return optuna.samplers.QMCSampler(seed=seed, scramble=True)
            case _:  # random; of a grid each point is queued
                return optuna.samplers.RandomSampler(seed=seed)


def _pruner(options: config.Tune, space: Space) -> optuna.pruners.BasePruner:
    match options.pruner:
        case "none":
            return optuna.pruners.NopPruner()
        case "median":
            return optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=1)
        case "hyperband":
            return optuna.pruners.HyperbandPruner(min_resource=1, max_resource=space.most_epochs())


def task_of(session: Session, space: Space, gold: nn.Module | None, options: config.Tune) -> dict[str, Any]:
    """What the trials of one study have in common.

    Args:
        session: the version opened for work.
        space: that is searched.
        gold: the gold standard, if one is given.
        options: of the command.
    """
    described = json.dumps(space.to_json(), sort_keys=True)
    data = [session.view.source.digest, session.view.transform, *session.view.classes]
    return {
        "weights_sha256": weights_digest(session.module),
        "forget_sha256": session.manifest(session.forget).hashed(SALT_OF_TASKS).digest,
        "data": hashlib.sha256(json.dumps(data).encode()).hexdigest(),
        "seed": options.seed,
        "objective": options.objective,
        "mode": options.mode,
        "space": hashlib.sha256(described.encode()).hexdigest(),
        "gold_sha256": weights_digest(gold) if gold is not None and needs_gold(options.objective) else None,
        **reuse_key(session),
        "method_code_sha256": code_digest(space.methods, *([] if gold is None else [gold])),
    }


def close_dead(run_id: str) -> Callable[[optuna.Study, FrozenTrial], None]:
    """Close the runs of a trial whose process has died, and queue it again."""

    def closing(study: optuna.Study, trial: FrozenTrial) -> None:
        again = "it is tried again" if retry(study, trial) else "it had been tried again before, and is given up"
        # The trial's run may have finished a moment before its result was to be stored: there will be another one.
        for key, alive in ((RUN, ("RUNNING", "FINISHED")), (COMMAND_RUN, ("RUNNING",))):
            dead = trial.user_attrs.get(key)
            if dead not in (None, run_id):
                _close(dead, alive)
        note(f"Note: the process of trial {trial.number} has died; {again}.")

    return closing


def _close(run_id: str, alive: Sequence[str] = ("RUNNING",)) -> bool:
    """End a dead process's run as KILLED; whether it was one of ``alive`` still."""
    client = tracking.client()
    try:
        if client.get_run(run_id).info.status not in alive:
            return False
        tracking.tag_error(run_id, "its process died")
        client.set_terminated(run_id, "KILLED")
        return True
    except MlflowException as error:
        note(f"Note: run {run_id} of a process that died cannot be closed ({first_line(error)}).")
        return False


@contextmanager
def first_interrupt_waits(stop: threading.Event, workers: "Sequence[subprocess.Popen[bytes]]") -> Iterator[None]:
    """Ctrl-C ends the study after the running trials, ours and the workers'; a second one ends it at once."""
    previous = signal.getsignal(signal.SIGINT)
    if not callable(previous) or threading.current_thread() is not threading.main_thread():
        yield  # ignored, as in background jobs
        return

    def asked(number: int, frame: FrameType | None) -> None:
        if stop.is_set():
            previous(number, frame)
            return
        stop.set()
        for worker in workers:
            worker.send_signal(signal.SIGINT)
        note("Stopping after the running trial; Ctrl-C again stops at once.")

    signal.signal(signal.SIGINT, asked)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


def stop_early(runner: StudyRunner) -> NoReturn:
    """Keep what there is and print how to continue."""
    study, options = runner.study, runner.options
    if runner.leader_lock.held:
        report.log(study, runner.description())
    done = count(study, TrialState.COMPLETE, TrialState.PRUNED)
    note(
        f"Stopped after {done} of {options.n_trials} trials. To continue: the same command with "
        f"{spelled('study', study.study_name)} {spelled('storage', hidden_password(options.storage))}"
    )
    raise KeyboardInterrupt


class BestTrial(FrozenRecord):
    """The winner of a study."""

    number: int
    setting: dict[str, Any] = Field(description="Method, prefix and hyperparameters, as `unlearn` takes params.")
    values: list[float] = Field(description="Of the objective, and in mode pareto acc_val; on the validation set.")


def finish(runner: StudyRunner, name: str | None) -> tuple[BestTrial, Registered | None]:
    """Choose the winner, keep the study as artifacts, measure the winner on the test set and register it as ``name``.

    Returns:
        The winner, and the version that it is registered as, now or before.

    Raises:
        UnlearnError: every trial failed, or the winner's weights come out otherwise here.
        NothingToUnlearn: no trial met the constraints.
    """
    study, objective, options = runner.study, runner.objective, runner.options
    try:
        winner = choose(study)
    except UnlearnError as error:
        report.log(study, runner.description())
        report.show(study, None, options.objective)
        if isinstance(error, NothingToUnlearn):
            way_out = "nothing was registered, give more trials or another space"
            raise NothingToUnlearn(f"{error}; {way_out}") from None
        raise
    chosen = objective.space.config(winner.params)
    report.log(study, runner.description(), winner, chosen)
    report.show(study, winner, options.objective)
    mlflow.log_metric("best_trial", winner.number)
    best = BestTrial(number=winner.number, setting=chosen.to_yaml(), values=winner.values)
    if options.register_ == "none":
        values = [f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in chosen.to_yaml().items()]
        say(f"The best trial is {winner.number} ({', '.join(values)}); nothing was registered, as asked.")
        return best, None
    registered = _registered(str(name), study.study_name, winner)
    if registered is not None:
        say(f"The best trial is still {winner.number}, which is registered as {registered.uri}.")
        return best, registered
    result = objective.result(winner)
    mlflow.log_params({f"unlearn.params.{key}": value for key, value in result.params.items()})
    log_history(get_method(chosen.method), result)
    session = objective.session.filed(options)
    unlearned = evaluate_splits(result.model, session.splits, session.hardware, name="winner")
    outputs = {"original": objective.original, "unlearned": unlearned}
    if objective.gold is not None:
        outputs["gold"] = objective.gold
    prefix = None if chosen.prefix == "none" else chosen.prefix
    if prefix is not None:
        mlflow.set_tag("unlearn.prefix", prefix)
        note(f"Note: the layers before {prefix} stayed frozen and cannot forget what they encode.")
    reason, trials = rule(options.objective, options.mode), count(study, TrialState.COMPLETE, TrialState.PRUNED)
    chosen_by = as_if_tested(unlearned, objective.original, gold=objective.gold, seed=options.seed)
    selection = Selection(
        by="tune",
        rule=reason,
        study=study.study_name,
        trial=winner.number,
        trials=trials,
        metrics=dict(chosen_by),
    )
    provenance = Provenance(
        method=chosen.method, params=dict(result.params), seed=options.seed, prefix=prefix, selection=selection
    )
    evidence = publish(session, objective.command_run, str(name), result, provenance, outputs, options)
    return best, Registered.of(evidence)


def _registered(name: str, study: str, winner: FrozenTrial) -> Registered | None:
    """The version that an earlier command on the study has made of the same trial."""
    sought = {"unlearn.study": study, "unlearn.weights_sha256": winner.user_attrs.get(DIGEST)}
    for version in tracking.client().search_model_versions(f"name = {quoted(name)}"):
        if all(version.tags.get(key) == value for key, value in sought.items()):
            return registered_before(version)
    return None
