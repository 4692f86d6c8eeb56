"""`unlearn`: the whole flow from a registered version to a new one. Read this file first."""

import sys
from contextlib import ExitStack
from functools import partial
from typing import Any

import mlflow

from mlflow_unlearn import config
from mlflow_unlearn.config import parse_params
from mlflow_unlearn.engine.architectures import weights_digest
from mlflow_unlearn.engine.checkpoint import Checkpoint
from mlflow_unlearn.engine.loop import RETRAIN_ALL, RunOptions
from mlflow_unlearn.engine.predictions import evaluate_splits
from mlflow_unlearn.errors import NothingToUnlearn, UnlearnError
from mlflow_unlearn.evidence.provenance import Provenance
from mlflow_unlearn.evidence.signing import check_key
from mlflow_unlearn.governance.publish import log_epoch, log_final, nothing_to_unlearn, publish, target_name
from mlflow_unlearn.methods import get_method
from mlflow_unlearn.registry import tracking
from mlflow_unlearn.registry.lock import model_lock
from mlflow_unlearn.registry.versions import check_name, find_version
from mlflow_unlearn.session import dry_run
from mlflow_unlearn.session.gold import open_gold
from mlflow_unlearn.session.new_version import new_record
from mlflow_unlearn.session.recipe import recorded_params, training_recipe
from mlflow_unlearn.session.session import open_session


def unlearn(options: config.Unlearn) -> None:
    """Fulfil the pending requests of a version: open, measure, unlearn, measure again, register, mark done.

    Raises:
        UnlearnError: bad input; NothingToUnlearn where the weights would stay as they are.
    """
    progress = sys.stderr.isatty()
    failure: UnlearnError | None = None
    params: dict[str, Any] = {}
    try:
        options, params = _with_params(options)  # the run records the method that runs
    except UnlearnError as error:
        failure = error
    with tracking.run("unlearn", options) as run_id, tracking.scratch() as folder, ExitStack() as stack:
        if failure is not None:
            raise failure
        client, lock = tracking.client(), None
        name = check_name(options.register_as) if options.register_as else None
        method = get_method(options.method)
        params = {**method.preset(options.preset), **params}
        method(params)  # a misspelt hyperparameter is refused before anything is loaded
        check_key(options.sign_key)
        if options.method == "retrain" and options.prefix != "none":
            raise UnlearnError(RETRAIN_ALL)
        with tracking.timed("open"):
            registered = find_version(client, options.model_uri)
            if registered is not None and not options.plan:
                # Whose requests are read after this: two commands must not fulfil the same ones.
                own = model_lock(client, registered.name, version=registered.version, wait=0)
                lock, _ = stack.enter_context(own)
                uri = f"models:/{registered.name}/{registered.version}"
                options = options.model_copy(update={"model_uri": uri})
            session = open_session(client, run_id, options, folder, progress=progress)
            name = target_name(session, name)
            gold_module = open_gold(session, options)
            session.log_manifests()
        refusal = method.unsuited(session.module)
        if refusal is not None:
            raise UnlearnError(refusal)

        recipe = training_recipe(session, options) if options.method == "retrain" else None
        if recipe is not None:
            params = {**recipe.params, **params}
        params = {**recorded_params(session, options, [options.method]).get(options.method, {}), **params}
        if options.plan:
            workload = dry_run.Workload(options.method, params, options.seed, recipe)
            record = new_record(session, options, Provenance(method=options.method, params=params, seed=options.seed))
            models = 3 if gold_module else 2
            dry_run.show(dry_run.estimate(session, [workload], prefix=options.prefix, models=models, record=record))
            return
        teacher = session.teacher(options.prefix) if recipe is None else None
        with tracking.timed("original"):
            original = session.evaluate_original(force=options.force, teacher=teacher)
        session = session.filed(options)
        trained_as = {} if recipe is None else {"augment": recipe.augment, "architecture": recipe.architecture}
        checkpoint = Checkpoint("unlearn", run_id, {**session.identity, **trained_as})
        with tracking.timed("method"):
            run_options = RunOptions(
                options.seed,
                teacher=teacher,
                model_factory=None if recipe is None else recipe.model_factory,
                on_epoch=partial(log_epoch, method),
                checkpoint=checkpoint,
            )
            splits = None if recipe is None else recipe.splits(session.splits)
            result = session.unlearn(options.method, params, run_options, splits=splits)
        mlflow.log_params({f"unlearn.params.{key}": value for key, value in result.params.items()})
        log_final(method, result)
        if weights_digest(result.model) == weights_digest(session.module):
            checkpoint.remove()
            raise NothingToUnlearn(nothing_to_unlearn(method, result))

        with tracking.timed("result"):
            outputs = {
                "original": original,
                "unlearned": evaluate_splits(result.model, session.splits, session.hardware, name="unlearned"),
            }
            if gold_module is not None:
                outputs["gold"] = evaluate_splits(
                    gold_module, session.splits, session.hardware, name="gold", cached=True
                )
        provenance = Provenance(
            method=options.method,
            params=dict(result.params),
            seed=options.seed,
            prefix=teacher.prefix if teacher is not None else None,
            augment=recipe.augment if recipe is not None else None,
        )
        publish(session, run_id, name, result, provenance, outputs, options, lock)
        checkpoint.remove()


def _with_params(options: config.Unlearn) -> tuple[config.Unlearn, dict[str, Any]]:
    """The hyperparameters; what `tune` found names its method and prefix beside them.

    A name that is a hyperparameter of the method is that; `tune` then writes the hyperparameters apart, as ``params``.

    Raises:
        UnlearnError: the options contradict them.
    """
    params = parse_params(options.params)
    defaults = config.Unlearn.model_fields
    apart = params.pop("params") if isinstance(params.get("params"), dict) else None
    for name in ("method", "prefix"):
        own = apart is None and name in get_method(options.method).Params.model_fields
        if name not in params or own:
            continue
        value, given = params.pop(name), getattr(options, name)
        if not isinstance(value, str):
            raise UnlearnError(f"params names {name} = {value!r}, which is not a text: write one such as {given!r}")
        if given not in (value, defaults[name].default):
            raise UnlearnError(
                f"params names {name} = {value!r}, and {name} = {given!r} is given: leave out one of them"
            )
        options = options.model_copy(update={name: value})
    return options, {**params, **(apart or {})}
