"""`tune`: an Optuna search over a method's hyperparameters, judged on the validation set alone."""

import math
import sys
from dataclasses import dataclass, replace
from typing import Any

import mlflow
import numpy as np
import optuna
import torch
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mlflow_unlearn import config, plan, tracking
from mlflow_unlearn.data.splits import wholly_forgotten
from mlflow_unlearn.errors import NothingToUnlearn, UnlearnError
from mlflow_unlearn.evaluation import Metrics, Readings, read_splits
from mlflow_unlearn.job import Job, new_record, open_job
from mlflow_unlearn.judging import CONSTRAINTS, JUDGED, constraints, on_validation
from mlflow_unlearn.methods import Params, get_method
from mlflow_unlearn.methods.lotus import has_forgotten, unseen_accuracy
from mlflow_unlearn.models import model_family, weights_digest
from mlflow_unlearn.progress import note, track
from mlflow_unlearn.publishing import known_no_better, log_epoch, log_final, publish, target_name
from mlflow_unlearn.registry import check_name
from mlflow_unlearn.teacher import Teacher
from mlflow_unlearn.unlearning import Result

METHOD = "lotus"
OBJECTIVE = "rf_jsd_val"
SALT_OF_TASKS = "00"
"""Of the forget set's digest in the study, which only has to be comparable."""


@dataclass
class _Best:
    """The best feasible trial of this process, kept so that its very weights are registered."""

    value: float = math.inf
    number: int = -1
    result: Result | None = None


def tune(options: config.Tune) -> None:
    """Run the trials as nested runs of this command's run and register the winner.

    Raises:
        NothingToUnlearn: before any trial, or no trial met the constraints.
    """
    progress = sys.stderr.isatty()
    with tracking.run("tune", options) as run_id, tracking.scratch() as folder:
        name = check_name(options.register_as) if options.register_as else None
        job = open_job(tracking.client(), run_id, options, folder, progress=progress)
        if options.register_ == "best":
            name = target_name(job, name)
        job.log_manifests()
        if options.plan:
            learning = plan.Learning(METHOD, {}, options.seed, times=options.n_trials)
            record = new_record(job, options, METHOD, {"seed": options.seed}) if options.register_ == "best" else None
            models = options.n_trials + 2
            plan.show(plan.estimate(job, [learning], prefix=options.prefix, models=models, record=record))
            return
        teacher = job.teacher(options.prefix)
        original = job.read_original(force=options.force, teacher=teacher)
        # From here on the bar is that of the whole study.
        job = replace(job.filed(options), hardware=replace(job.hardware, progress=False))
        _check_worthwhile(job, original)
        before = on_validation(original, original, seed=options.seed)
        if OBJECTIVE in before.missing:
            raise UnlearnError(
                f"tune judges by {OBJECTIVE}, which is not computed here ({before.missing[OBJECTIVE]}): use unlearn"
            )

        published = get_method(METHOD)(family=model_family(job.module)).params
        space = search_space(published)
        study = _open_study(options, f"{job.version.name or 'model'}-{job.version.version or ''}-{run_id[:8]}")
        mlflow.set_tags({"unlearn.study": study.study_name, "unlearn.objective": OBJECTIVE})
        _check_same_task(study, job, teacher, options)
        if not study.trials:
            study.enqueue_trial({key: getattr(published, key) for key in space})
        best = _Best()
        for _ in track(range(options.n_trials), "trials", enabled=progress):
            _run_trial(study, space, job, original, before, teacher, options, best)

        winner = _winner(study)
        _show(study, winner)
        mlflow.log_text(study.trials_dataframe().to_csv(index=False), "trials.csv")
        mlflow.log_metric("best_trial", winner.number)
        if options.register_ == "none":
            print(f"The best trial is {winner.number} ({winner.params}); nothing was registered, as asked.")
            return
        result = best.result if best.result is not None and best.number == winner.number else None
        if result is None:
            result = _run_again(winner, job, teacher, options)
        mlflow.log_params({f"unlearn.params.{key}": value for key, value in result.params.items()})
        for epoch in result.history:
            log_epoch(epoch)
        log_final(result)
        readings = {
            "original": original,
            "unlearned": read_splits(result.model, job.splits, job.hardware, name="winner"),
        }
        recipe = {**result.params, "seed": options.seed, "study": study.study_name, "trial": winner.number}
        if teacher.prefix is not None:
            recipe["prefix"] = teacher.prefix
        publish(job, run_id, str(name), result, METHOD, recipe, readings, options)


def search_space(published: Params) -> dict[str, BaseDistribution]:
    """The distributions that the ``search`` entries of a method's `Params` declare, around its published setting."""
    space: dict[str, BaseDistribution] = {}
    for name, field in type(published).model_fields.items():
        extra = field.json_schema_extra
        search = extra.get("search") if isinstance(extra, dict) else None
        if not isinstance(search, dict):
            continue
        value: Any = getattr(published, name)
        factor: Any = search.get("factor")
        log = bool(search.get("log", False))
        bounds: Any = (value / factor, value * factor) if factor else (search["low"], search["high"])
        low, high = bounds
        if isinstance(value, int):
            space[name] = IntDistribution(max(1, int(low)), int(high), log=log)
        else:
            space[name] = FloatDistribution(float(low), float(high), log=log)
    return space


def _check_worthwhile(job: Job, original: Readings) -> None:
    labels, predictions = (
        {role: torch.from_numpy(np.asarray(getattr(original[role], field))) for role in JUDGED}
        for field in ("labels", "predictions")
    )
    forgotten = wholly_forgotten(labels["forget"], labels["retain"])
    a_u = unseen_accuracy(labels["forget"], labels["val"], predictions["val"], forgotten)
    acc_forget = (predictions["forget"] == labels["forget"]).double().mean().item()
    if has_forgotten(acc_forget, a_u):
        raise NothingToUnlearn(known_no_better({"acc_forget": acc_forget, "acc_val": a_u}))


def _open_study(options: config.Tune, default_name: str) -> optuna.Study:
    storage = tracking.absolute_uri(options.storage)
    if storage == tracking.absolute_uri(mlflow.get_tracking_uri()):
        raise UnlearnError(
            f"storage = {options.storage!r} is MLflow's own database: Optuna needs another one, e.g. sqlite:///optuna.db"
        )
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        study = optuna.create_study(
            storage=storage, study_name=options.study or default_name, direction="minimize", load_if_exists=True
        )
        # A study that goes on with the seed that it began with would draw its first trials again.
        study.sampler = optuna.samplers.TPESampler(seed=(options.seed + len(study.trials)) % 2**32)
        return study
    except Exception as error:  # SQLAlchemy's and the drivers' own.
        raise UnlearnError(
            f"the study cannot be opened in storage {options.storage!r} ({str(error).splitlines()[0]}): "
            "give a database URL such as sqlite:///optuna.db"
        ) from error


def _check_same_task(study: optuna.Study, job: Job, teacher: Teacher, options: config.Tune) -> None:
    """Trials of one study are compared: they must all be about the same weights, forget set, prefix and seed.

    Raises:
        UnlearnError: the study that is to be continued was about something else.
    """
    task = {
        "weights_sha256": weights_digest(job.module),
        "forget_sha256": job.manifest(job.forget).hashed(SALT_OF_TASKS).digest,
        "seed": options.seed,
        "prefix": teacher.prefix,
    }
    known = {key: study.user_attrs[key] for key in task if key in study.user_attrs}
    different = [key for key, value in known.items() if value != task[key]]
    if different:
        raise UnlearnError(
            f"study {study.study_name!r} was started with another {', '.join(different)}: "
            "continue it with the same model, forget set, prefix and seed, or give another study="
        )
    for key, value in task.items():
        study.set_user_attr(key, value)


def _run_trial(
    study: optuna.Study,
    space: dict[str, BaseDistribution],
    job: Job,
    original: Readings,
    before: Metrics,
    teacher: Teacher,
    options: config.Tune,
    best: _Best,
) -> None:
    trial = study.ask(space)
    try:
        with tracking.nested_run(f"trial {trial.number}") as nested_id:
            trial.set_user_attr("run_id", nested_id)
            mlflow.log_params({f"unlearn.params.{key}": value for key, value in trial.params.items()})
            result = job.unlearn(METHOD, trial.params, options.seed, teacher=teacher, on_epoch=log_epoch)
            readings = read_splits(result.model, job.splits, job.hardware, roles=JUDGED)
            metrics = on_validation(readings, original, seed=options.seed)
            violations = constraints(metrics, before)
            for name, value in violations.items():
                trial.set_constraint(name, value)
            digest = weights_digest(result.model)
            trial.set_user_attr("weights_sha256", digest)
            feasible = all(value <= 0 for value in violations.values())
            mlflow.log_metrics({**metrics, "feasible": float(feasible), "unlearn_seconds": result.seconds})
            mlflow.set_tags({"unlearn.weights_sha256": digest, "unlearn.study": study.study_name})
            study.tell(trial, metrics[OBJECTIVE])
    except UnlearnError as error:
        # A setting that diverges is a result of the search, not its end.
        study.tell(trial, state=TrialState.FAIL)
        note(f"Note: trial {trial.number} failed: {error}")
        return
    except BaseException:
        if not study.trials[trial.number].state.is_finished():
            study.tell(trial, state=TrialState.FAIL)
        raise
    if feasible and metrics[OBJECTIVE] < best.value:
        best.value, best.number, best.result = metrics[OBJECTIVE], trial.number, result


def _winner(study: optuna.Study) -> optuna.trial.FrozenTrial:
    try:
        return study.best_trial
    except ValueError as error:
        finished = sum(trial.state == TrialState.COMPLETE for trial in study.trials)
        raise NothingToUnlearn(
            f"none of {len(study.trials)} trials ({finished} finished) met the constraints: {CONSTRAINTS}; "
            "nothing was registered, give more trials"
        ) from error


def _run_again(winner: optuna.trial.FrozenTrial, job: Job, teacher: Teacher, options: config.Tune) -> Result:
    """The winner of an earlier command's trials, made again: same seed, same machine, same weights."""
    result = job.unlearn(METHOD, winner.params, options.seed, teacher=teacher)
    if weights_digest(result.model) != winner.user_attrs.get("weights_sha256"):
        raise UnlearnError(
            f"trial {winner.number} ran elsewhere, with another seed or other versions, and its weights do not come "
            "out the same here: continue the study where it ran, or start a new one"
        )
    return result


def _show(study: optuna.Study, winner: optuna.trial.FrozenTrial) -> None:
    table = Table(title=escape(f"study {study.study_name}, by {OBJECTIVE}"), title_justify="left")
    names = list(winner.params)
    for column in ("trial", *names, OBJECTIVE, "constraints"):
        table.add_column(column, justify="right")
    for trial in study.trials:
        broken = [name for name, value in trial.constraints.items() if value > 0]
        value = f"{trial.value:.4f}" if trial.value is not None else "–"
        verdict = trial.state.name.lower() if trial.value is None else ", ".join(broken) or "met"
        mark = f"{trial.number}{' (best)' if trial.number == winner.number else ''}"
        table.add_row(mark, *(f"{trial.params.get(name, float('nan')):.4g}" for name in names), value, verdict)
    Console(width=None if sys.stdout.isatty() else 130).print(table)
