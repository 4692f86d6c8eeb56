"""The whole flow, command by command: read this file first.

`train`, `tune` and `compare` have files of their own, and so have the decisions about a version, in `governance`.
"""

import secrets
import sys
from typing import Any

import mlflow

from mlflow_unlearn import config, forget_requests, plan, tracking
from mlflow_unlearn.data.forget import resolve_forget
from mlflow_unlearn.data.manifest import Manifest
from mlflow_unlearn.data.sources import load_source
from mlflow_unlearn.errors import NothingToUnlearn, UnlearnError
from mlflow_unlearn.evaluation import compare, read_splits
from mlflow_unlearn.governance.signing import check_key
from mlflow_unlearn.job import (
    new_record,
    open_gold,
    open_job,
    open_measured,
    parse_params,
    read_measured,
    training_recipe,
)
from mlflow_unlearn.loop import RETRAIN_ALL
from mlflow_unlearn.methods import all_methods, get_method, plugin_failures
from mlflow_unlearn.models import weights_digest
from mlflow_unlearn.progress import note
from mlflow_unlearn.publishing import log_epoch, log_final, log_metrics, nothing_to_unlearn, publish, target_name
from mlflow_unlearn.registry import check_name, open_version
from mlflow_unlearn.report import table
from mlflow_unlearn.view import training_mask


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
        get_method(options.method)(params)  # a misspelt hyperparameter is told before anything is loaded
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
            learning = plan.Learning(options.method, params, options.seed, recipe)
            record = new_record(job, options, options.method, {**params, "seed": options.seed})
            plan.show(
                plan.estimate(job, [learning], prefix=options.prefix, models=3 if gold_module else 2, record=record)
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
                on_epoch=log_epoch,
            )
        mlflow.log_params({f"unlearn.params.{key}": value for key, value in result.params.items()})
        log_final(result)
        if weights_digest(result.model) == weights_digest(job.module):
            raise NothingToUnlearn(nothing_to_unlearn(options.method, result))

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


def request(options: config.Request) -> None:
    """File a forget request: its manifest in a run of its own, its state on the version."""
    with tracking.run("request", options) as run_id, tracking.scratch() as folder:
        client = tracking.client()
        version = open_version(client, options.model_uri, folder)
        if version.name is None:
            raise UnlearnError(
                f"{version.uri} is no registered version and cannot carry a request: "
                "register it, or give forget= to unlearn"
            )
        data = options.data or (version.record.data if version.record is not None else None)
        if data is None:
            raise UnlearnError(f"{version.uri} does not record its data source: give data=, e.g. folder:PATH")
        source = load_source(data)
        forget = resolve_forget(
            options.forget,
            source,
            training_mask(version, source),
            lambda request_id: forget_requests.read_manifest(client, request_id),
        )
        manifest = Manifest(tuple(source.train.ids[i] for i in forget))
        salt = secrets.token_hex(16) if options.hash_ids else None
        details = tracking.recorded_options(options, "forget", "reason", "requester", "hash_ids")
        filed, new = forget_requests.file_request(
            client, version, manifest, {**details, "data": source.spec}, folder=folder, salt=salt
        )
        if new:
            stored = manifest if salt is None else manifest.hashed(salt)
            tracking.log_manifests(source.spec, {"forget": stored.digest}, {"forget": len(forget)})
            print(
                f"Filed request {filed.id}: {len(forget)} samples of {version.uri} are to be forgotten (run {run_id})."
            )
        else:
            state = "is pending" if filed.pending else f"was carried out by {', '.join(filed.done_by)}"
            print(f"Request {filed.id} was filed before and {state}.")


def evaluate(options: config.Evaluate) -> None:
    """Measure a version, the version that it came from, and a gold standard, side by side."""
    progress = sys.stderr.isatty()
    with tracking.run("evaluate", options) as run_id, tracking.scratch() as folder:
        client = tracking.client()
        job, original_version = open_measured(client, options, folder, progress=progress)
        version = job.version
        tracking.log_source_model(client, run_id, version.model_id)
        job.log_manifests()
        if options.plan:
            models = 1 + (original_version is not version) + (options.gold_uri is not None)
            plan.show(plan.estimate(job, [], models=models, record=None))
            return
        readings, name = read_measured(job, original_version, options)
        columns = compare(readings, seed=options.seed)
        log_metrics(columns, model_ids={"original": original_version.model_id, name: version.model_id})
        table.show(columns)
        print(f"Measured {version.uri} (run {run_id}); nothing was registered.")


def data(options: config.Data) -> None:
    """Print counts by split and class, and digests."""
    source = load_source(options.data)
    if options.ids is not None:
        try:
            source.listing().to_csv(options.ids, index=False)
        except OSError as error:
            raise UnlearnError(f"the list of ids cannot be written to {options.ids!r} ({error.strerror})") from error
    table.show_source(source)
    if options.ids is not None:
        print(f"Wrote the ids of all splits to {options.ids}: a forget set takes rows with split train.")


def methods(options: config.Methods) -> None:
    """Print every method with its hyperparameters, and the plugins that could not be loaded."""
    table.show_methods(all_methods())
    for name, reason in plugin_failures().items():
        note(f"Warning: the method {name!r} cannot be used: {reason}")
