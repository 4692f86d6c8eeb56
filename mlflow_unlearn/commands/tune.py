"""`tune`: search hyperparameters with Optuna and register the winner."""

import sys
from collections.abc import Sequence
from dataclasses import replace

import mlflow
import numpy as np

from mlflow_unlearn import config
from mlflow_unlearn.console import note, track
from mlflow_unlearn.distributed import ranks
from mlflow_unlearn.engine.architectures import model_family
from mlflow_unlearn.engine.frozen_prefix import cut, resolve
from mlflow_unlearn.engine.predictions import read_splits
from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.evidence.signing import check_key
from mlflow_unlearn.governance.publish import target_name
from mlflow_unlearn.methods import chosen_methods
from mlflow_unlearn.registry import tracking
from mlflow_unlearn.registry.versions import check_name
from mlflow_unlearn.session import dry_run
from mlflow_unlearn.session.gold import open_gold
from mlflow_unlearn.session.session import Job, new_record, open_job
from mlflow_unlearn.tuning.runner import (
    StudyRunner,
    check_worthwhile,
    close_dead,
    finish,
    first_interrupt_waits,
    open_study,
    stop_early,
    task_of,
)
from mlflow_unlearn.tuning.selection import needs_gold
from mlflow_unlearn.tuning.space import search_space
from mlflow_unlearn.tuning.storage import (
    Leadership,
    open_storage,
    refusing,
)
from mlflow_unlearn.tuning.trials import Aborted, Trials
from mlflow_unlearn.tuning.workers import helping, sharing_cores


def tune(options: config.Tune) -> None:
    """Carry out the trials of a study as nested runs; register the winner, if this command leads.

    Raises:
        NothingToUnlearn: before any trial, or no trial met the constraints.
    """
    progress = sys.stderr.isatty()
    with (
        sharing_cores(options.workers),
        tracking.run("tune", options) as run_id,
        tracking.scratch() as folder,
        refusing(options.storage),
    ):
        _check(options)
        methods = chosen_methods(options.methods)
        name = check_name(options.register_as) if options.register_as else None
        storage = open_storage(options.storage, close_dead(run_id))
        job = open_job(tracking.client(), run_id, options, folder, progress=progress)
        if options.register_ == "best":
            name = target_name(job, name)
        gold_module = open_gold(job.client, options.gold_uri, job.view, job.retain, job.splits.test, folder, options)
        job.log_manifests()
        space = search_space(methods, model_family(job.module), _prefixes(job, options), options.space)
        for prefix in space.prefixes():
            cut(job.module, prefix)  # a misspelt module is no setting that diverges
        if options.plan:
            _plan(job, methods, options)
            return
        teacher = job.teacher()
        original = job.read_original(force=options.force, teacher=teacher)
        # From here on the bar is that of the whole study.
        job = replace(job, hardware=replace(job.hardware, progress=False))
        check_worthwhile(job, original)
        gold = None
        if gold_module is not None:
            gold = read_splits(gold_module, job.splits, job.hardware, name="gold", kept=True)

        default_name = f"{job.version.name or 'model'}-{job.version.version or ''}"
        study = open_study(storage, options, space, default_name, run_id)
        mlflow.set_tags({"unlearn.study": study.study_name, "unlearn.objective": options.objective})
        trials = Trials(
            job, study, space, teacher, original, gold, objective=options.objective, seed=options.seed, run_id=run_id
        )
        sweep = StudyRunner(
            study, Leadership(options.storage, study), trials, task_of(job, space, gold_module, options), options
        )
        try:
            with helping(options, study.study_name) as workers, first_interrupt_waits(sweep.stop, workers):
                turns = sweep.work()
                for _ in track(turns, "trials", enabled=progress, total=options.n_trials):
                    pass
            if sweep.stop.is_set():
                stop_early(sweep)
            if sweep.finishes():
                finish(sweep, name, run_id, original, gold)
            else:
                print(f"Study {study.study_name}: nothing is left to do here; its run is {trials.parent}.")
        except Aborted as stop:
            raise (stop.__cause__ or stop) from None
        finally:
            sweep.leadership.release()


def _check(options: config.Tune) -> None:
    """What does not go together, before anything is opened."""
    check_key(options.sign_key)
    if options.mode == "pareto" and options.pruner != "none":
        raise UnlearnError(
            f"pruner = {options.pruner!r} compares one value, and mode = 'pareto' has two: use pruner=none, or "
            "mode=constrained"
        )
    if options.mode == "pareto" and options.sampler == "gp":
        raise UnlearnError(
            "sampler = 'gp' cannot search for two objectives under constraints: use tpe or nsga2, or mode=constrained"
        )
    if needs_gold(options.objective) and options.gold_uri is None:
        raise UnlearnError(f"objective = {options.objective!r} needs a gold standard: give gold_uri=")
    for name in ("pruner", "workers"):
        if max(options.processes, ranks.world()) > 1 and getattr(options, name) not in ("none", 1):
            raise UnlearnError(f"{name} = {getattr(options, name)} and several ranks do not go together: use one")


def _prefixes(job: Job, options: config.Tune) -> list[str]:
    """What to try for the frozen prefix: with "search" none, and the cut of "auto" where there is one."""
    sets = vars(job.splits)
    if options.prefix != "search":
        return [resolve(job.module, options.prefix, sets) or "none"]
    try:
        return list(dict.fromkeys(["none", resolve(job.module, "auto", sets) or "none"]))
    except UnlearnError as error:
        note(f"Note: no frozen prefix is tried: {error}")
        return ["none"]


def _plan(job: Job, methods: Sequence[str], options: config.Tune) -> None:
    shares = [len(part) for part in np.array_split(range(options.n_trials), len(methods))]
    learnings = [dry_run.Learning(m, {}, options.seed, times=n) for m, n in zip(methods, shares, strict=True) if n]
    record = new_record(job, options, methods[0], {"seed": options.seed}) if options.register_ == "best" else None
    prefix = "none" if options.prefix == "search" else options.prefix
    models = options.n_trials + (3 if options.gold_uri else 2)
    dry_run.show(dry_run.estimate(job, learnings, prefix=prefix, models=models, record=record))
