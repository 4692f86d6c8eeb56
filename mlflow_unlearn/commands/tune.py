"""`tune`: search hyperparameters with Optuna and register the winner."""

import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import mlflow
import numpy as np
from optuna.trial import TrialState
from pydantic import Field

from mlflow_unlearn import config
from mlflow_unlearn.answer import found_so_far
from mlflow_unlearn.console import note, say, track
from mlflow_unlearn.distributed import ranks
from mlflow_unlearn.engine.architectures import model_family
from mlflow_unlearn.engine.frozen_prefix import resolve, split_at
from mlflow_unlearn.engine.predictions import evaluate_splits
from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.evidence.provenance import Provenance
from mlflow_unlearn.evidence.registered import Registering
from mlflow_unlearn.evidence.signing import check_key
from mlflow_unlearn.governance.publish import target_name
from mlflow_unlearn.methods import chosen_methods, get_method
from mlflow_unlearn.registry import tracking
from mlflow_unlearn.registry.versions import check_name
from mlflow_unlearn.session import dry_run
from mlflow_unlearn.session.gold import open_gold
from mlflow_unlearn.session.new_version import new_record
from mlflow_unlearn.session.past import SHARDS, usable
from mlflow_unlearn.session.recipe import recorded_params
from mlflow_unlearn.session.session import Session, open_session
from mlflow_unlearn.spelling import spelled
from mlflow_unlearn.tuning.rungs import disturbing
from mlflow_unlearn.tuning.runner import (
    BestTrial,
    StudyRunner,
    close_dead,
    finish,
    first_interrupt_waits,
    open_study,
    stop_early,
    task_of,
    worthwhile,
)
from mlflow_unlearn.tuning.selection import needs_gold, noise_floor
from mlflow_unlearn.tuning.space import search_space
from mlflow_unlearn.tuning.storage import LeaderLock, count, open_storage, storage_errors
from mlflow_unlearn.tuning.trials import Aborted, Objective
from mlflow_unlearn.tuning.workers import local_workers, sharing_cores

AUTOMATIC = "auto"
"""The value of ``methods`` that leaves the choice to the command."""


class TuneResult(Registering):
    """What a study has found, as far as this command had a part in it."""

    study: str | None = Field(None, description="Its name; null with plan=true.")
    study_run_id: str | None = Field(None, description="Of the run of the command that leads: the trials are below it.")
    trials: int = Field(0, description="Complete or pruned.")
    best: BestTrial | None = Field(None, description="Null where another command leads, or no trial is feasible.")
    plan: dry_run.Estimate | None = Field(None, description="With plan=true.")


def tune(options: config.Tune) -> TuneResult:
    """Run the trials of a study as nested runs; register the winner, if this command leads.

    Raises:
        NothingToUnlearn: before any trial, or no trial met the constraints.
    """
    progress = sys.stderr.isatty()
    with (
        sharing_cores(options.workers),
        tracking.prepared("tune", options) as run,
        tracking.scratch() as folder,
        storage_errors(options.storage),
        ExitStack() as stack,
    ):
        _check(options)
        automatic = options.methods == AUTOMATIC
        methods = [] if automatic else chosen_methods(options.methods)
        given = config.parse_params(options.space, where="space")
        name = check_name(options.register_as) if options.register_as else None
        storage = open_storage(options.storage, lambda study, trial: close_dead(run.begin())(study, trial))
        session = open_session(tracking.client(), options, folder, progress=progress)
        if options.register_ == "best":
            name = target_name(session, name)
        gold_module = open_gold(session, options)
        methods = _automatic(session, options, given) if automatic else methods
        methods = _suited(usable(methods, session.version, named=options.methods.strip() != "all"), session)
        recorded = recorded_params(session, options, methods)
        family, prefixes = model_family(session.module), _prefixes(session, options)
        space = search_space(methods, family, prefixes, given, recorded)
        for prefix in space.prefixes():
            split_at(session.module, prefix)  # a misspelt module fails the command, not a trial
        run_id = session.begin(run, plan=options.plan)
        if options.plan:
            return TuneResult(run_id=run_id, plan=_dry_run(session, recorded, methods, options))
        teacher = session.teacher()
        original = session.evaluate_original(force=options.force, teacher=teacher)
        # From here on the progress bar is that of the whole study.
        session = replace(session, hardware=replace(session.hardware, progress=False))
        # LoTUS's rule is about the samples: where it finds that they are not known, no other method is tried unasked.
        left = worthwhile(methods[:1] if automatic else methods, original)
        space = space.of(methods if automatic else left)
        gold = None
        if gold_module is not None:
            gold = evaluate_splits(gold_module, session.splits, session.hardware, name="gold", cached=True)

        default_name = f"{session.version.name or 'model'}-{session.version.version or ''}"
        study = open_study(storage, options, space, default_name, run_id)
        mlflow.set_tags({"unlearn.study": study.study_name, "unlearn.objective": options.objective})
        objective = Objective(session, study, space, teacher, original, gold, options, run_id)
        if floor := noise_floor(objective.before):
            note(f"Note: {floor}.")

        def found() -> TuneResult:
            trials = count(study, TrialState.COMPLETE, TrialState.PRUNED)
            return TuneResult(
                run_id=run_id, study=study.study_name, study_run_id=objective.parent or None, trials=trials
            )

        stack.enter_context(found_so_far(found))
        task = task_of(session, space, gold_module, options)
        runner = StudyRunner(objective, LeaderLock(options.storage, study), task)
        try:
            with local_workers(options, study.study_name) as workers, first_interrupt_waits(runner.stop, workers):
                for _ in track(runner.work(), "trials", enabled=progress, total=options.n_trials):
                    pass
            if runner.stop.is_set():
                stop_early(runner)
            if runner.finishes():
                best, registered = finish(runner, name)
                return found().model_copy(update={"best": best, "registered": registered})
            say(f"Study {study.study_name}: nothing is left to do here; its run is {objective.parent}.")
            return found()
        except Aborted as stop:
            raise (stop.__cause__ or stop) from None
        finally:
            runner.leader_lock.release()


def _check(options: config.Tune) -> None:
    """Refuse options that do not go together, before anything is opened."""
    check_key(options.sign_key)
    if options.mode == "pareto" and options.pruner != "none":
        raise UnlearnError(
            f"{spelled('pruner', options.pruner)} compares one value, and {spelled('mode', 'pareto')} has two: use "
            f"{spelled('pruner', 'none')}, or {spelled('mode', 'constrained')}"
        )
    if options.mode == "pareto" and options.sampler == "gp":
        raise UnlearnError(
            f"{spelled('sampler', 'gp')} cannot search for two objectives under constraints: use tpe or nsga2, or "
            f"{spelled('mode', 'constrained')}"
        )
    if needs_gold(options.objective) and options.gold_uri is None:
        raise UnlearnError(
            f"{spelled('objective', options.objective)} needs a gold standard: give {spelled('gold_uri')}"
        )
    for name in ("pruner", "workers"):
        if max(options.processes, ranks.world()) > 1 and getattr(options, name) not in ("none", 1):
            raise UnlearnError(
                f"{spelled(name, getattr(options, name))} cannot be combined with several processes: use one"
            )


def _automatic(session: Session, options: config.Tune, space: Mapping[str, Any]) -> list[str]:
    """LoTUS and the strongest method for the model; LoTUS alone where the other options are about one method."""
    both = ["lotus", disturbing(session.module)]
    of_methods = all(name in both and isinstance(part, dict) for name, part in space.items())
    return both if of_methods and options.sampler != "grid" else both[:1]


def _suited(methods: Sequence[str], session: Session) -> list[str]:
    """The methods that do not refuse the model; the others are left out with a note.

    Raises:
        UnlearnError: all of them refuse it.
    """
    found = {method: get_method(method).unsuited(session.module) for method in methods}
    found |= {name: f"{name} has nothing to tune: use unlearn" for name in methods if get_method(name).needs == SHARDS}
    refusals = {method: reason for method, reason in found.items() if reason is not None}
    if len(refusals) == len(methods):
        raise UnlearnError("; ".join(refusals.values()))
    for method, reason in refusals.items():
        note(f"Note: {method} is left out of the study: {reason}")
    return [method for method in methods if method not in refusals]


def _prefixes(session: Session, options: config.Tune) -> list[str]:
    """What to try for the frozen prefix: with "search" none, and the split point of "auto" where there is one."""
    splits = vars(session.splits)
    if options.prefix != "search":
        return [resolve(session.module, options.prefix, splits) or "none"]
    try:
        return list(dict.fromkeys(["none", resolve(session.module, "auto", splits) or "none"]))
    except UnlearnError as error:
        note(f"Note: no frozen prefix is tried: {error}")
        return ["none"]


def _dry_run(
    session: Session, recorded: Mapping[str, Mapping[str, Any]], methods: Sequence[str], options: config.Tune
) -> dry_run.Estimate:
    times = map(len, np.array_split(range(options.n_trials), len(methods)))
    counts = [(method, count) for method, count in zip(methods, times, strict=True) if count]
    workloads = [dry_run.Workload(m, recorded.get(m, {}), options.seed, times=n) for m, n in counts]
    record = None
    if options.register_ == "best":
        record = new_record(session, options, Provenance(method=methods[0], params={}, seed=options.seed))
    prefix = "none" if options.prefix == "search" else options.prefix
    models = options.n_trials + (3 if options.gold_uri else 2)
    return dry_run.show(dry_run.estimate(session, workloads, prefix=prefix, models=models, record=record))
