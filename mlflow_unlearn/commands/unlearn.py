"""The whole flow, command by command: read this file first.

`train`, `tune` and `compare` have files of their own, and so have the decisions about a version, in `governance`.
"""

import sys
from functools import partial
from typing import Any

import mlflow

from mlflow_unlearn import config
from mlflow_unlearn.config import parse_params
from mlflow_unlearn.engine.architectures import weights_digest
from mlflow_unlearn.engine.loop import RETRAIN_ALL
from mlflow_unlearn.engine.predictions import read_splits
from mlflow_unlearn.errors import NothingToUnlearn, UnlearnError
from mlflow_unlearn.evidence.signing import check_key
from mlflow_unlearn.governance.publish import (
    log_epoch,
    log_final,
    nothing_to_unlearn,
    publish,
    target_name,
)
from mlflow_unlearn.methods import get_method
from mlflow_unlearn.registry import tracking
from mlflow_unlearn.registry.versions import check_name
from mlflow_unlearn.session import dry_run
from mlflow_unlearn.session.gold import open_gold
from mlflow_unlearn.session.recipe import training_recipe
from mlflow_unlearn.session.session import new_record, open_job


def unlearn(options: config.Unlearn) -> None:
    """Carry out the pending requests of a version: open, measure, unlearn, measure again, register, mark done."""
    progress = sys.stderr.isatty()
    failure: UnlearnError | None = None
    params: dict[str, Any] = {}
    try:
        options, params = _with_params(options)  # the run records the method that is carried out
    except UnlearnError as error:
        failure = error
    with tracking.run("unlearn", options) as run_id, tracking.scratch() as folder:
        if failure is not None:
            raise failure
        client = tracking.client()
        name = check_name(options.register_as) if options.register_as else None
        method = get_method(options.method)
        method(params)  # a misspelt hyperparameter is told before anything is loaded
        check_key(options.sign_key)
        if options.method == "retrain" and options.prefix != "none":
            raise UnlearnError(RETRAIN_ALL)
        with tracking.timed("open"):
            job = open_job(client, run_id, options, folder, progress=progress)
            name = target_name(job, name)
            gold_module = open_gold(client, options.gold_uri, job.view, job.retain, job.splits.test, folder, options)
            job.log_manifests()

        recipe = training_recipe(job, options) if options.method == "retrain" else None
        if recipe is not None:
            params = {**recipe.params, **params}
        if options.plan:
            learning = dry_run.Learning(options.method, params, options.seed, recipe)
            record = new_record(job, options, options.method, {**params, "seed": options.seed})
            dry_run.show(
                dry_run.estimate(job, [learning], prefix=options.prefix, models=3 if gold_module else 2, record=record)
            )
            return
        teacher = job.teacher(options.prefix) if recipe is None else None
        with tracking.timed("original"):
            original = job.read_original(force=options.force, teacher=teacher)
        job = job.filed(options)
        with tracking.timed("method"):
            result = job.unlearn(
                options.method,
                params,
                options.seed,
                splits=None if recipe is None else recipe.splits(job.splits),
                teacher=teacher,
                fresh=None if recipe is None else recipe.fresh,
                on_epoch=partial(log_epoch, method),
            )
        mlflow.log_params({f"unlearn.params.{key}": value for key, value in result.params.items()})
        log_final(method, result)
        if weights_digest(result.model) == weights_digest(job.module):
            raise NothingToUnlearn(nothing_to_unlearn(method, result))

        with tracking.timed("result"):
            readings = {
                "original": original,
                "unlearned": read_splits(result.model, job.splits, job.hardware, name="unlearned"),
            }
            if gold_module is not None:
                readings["gold"] = read_splits(gold_module, job.splits, job.hardware, name="gold", kept=True)
        used = {**result.params, "seed": options.seed}
        if recipe is not None:
            used["augment"] = recipe.augment
        if teacher is not None and teacher.prefix is not None:
            used["prefix"] = teacher.prefix
        publish(job, run_id, name, result, options.method, used, readings, options)


def _with_params(options: config.Unlearn) -> tuple[config.Unlearn, dict[str, Any]]:
    """The hyperparameters; what `tune` found names its method and prefix beside them.

    Raises:
        UnlearnError: the options name others.
    """
    params = parse_params(options.params)
    defaults = config.Unlearn.model_fields
    for name in ("method", "prefix"):
        if name not in params:
            continue
        value, given = params.pop(name), getattr(options, name)
        if given not in (value, defaults[name].default):
            raise UnlearnError(
                f"params names {name} = {value!r}, and {name} = {given!r} is given: leave out one of them"
            )
        options = options.model_copy(update={name: value})
    return options, params
