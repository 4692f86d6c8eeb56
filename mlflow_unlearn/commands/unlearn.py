"""`unlearn`: the whole flow from a registered version to a new one. Read this file first."""

import sys
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from pydantic import Field

from mlflow_unlearn import config
from mlflow_unlearn.answer import found_so_far
from mlflow_unlearn.config import parse_params
from mlflow_unlearn.console import note, say
from mlflow_unlearn.engine.architectures import model_family
from mlflow_unlearn.engine.loop import retrains_all
from mlflow_unlearn.engine.predictions import evaluate_splits
from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.evidence.policy import Policy, read_policy
from mlflow_unlearn.evidence.provenance import Attempt, Provenance
from mlflow_unlearn.evidence.registered import Registered, Registering
from mlflow_unlearn.evidence.signing import check_key
from mlflow_unlearn.governance.checkpoints import remove_of_dead
from mlflow_unlearn.governance.publish import log_result, publish, target_name
from mlflow_unlearn.governance.setting import Setting
from mlflow_unlearn.methods import get_method
from mlflow_unlearn.metrics.reading import tells_apart
from mlflow_unlearn.registry import tracking
from mlflow_unlearn.registry.lock import model_lock
from mlflow_unlearn.registry.versions import check_name, find_version
from mlflow_unlearn.session import dry_run
from mlflow_unlearn.session.gold import open_gold
from mlflow_unlearn.session.new_version import new_record
from mlflow_unlearn.session.past import CHECKPOINTS, check_prefix, trained_as, unmet
from mlflow_unlearn.session.recipe import Recipe, recorded_params, training_recipe
from mlflow_unlearn.session.session import Session, open_session
from mlflow_unlearn.spelling import command_line, spelled
from mlflow_unlearn.tuning.ladder import Ladder
from mlflow_unlearn.tuning.rungs import Rung, default_rungs, parse_rungs
from mlflow_unlearn.tuning.ways import Comparison, Kind, Way, show


class UnlearnResult(Registering):
    """What the command has registered, tried or planned."""

    attempts: list[Attempt] = Field([], description="Of until=pass, in their order; also where none has passed.")
    plan: dry_run.Estimate | None = Field(None, description="With plan=true.")
    ways: list[Way] = Field([], description="With plan=true: what each takes and may claim.")
    recommended: Kind | None = Field(
        None, description="Of the ways: the cheapest that meets claim; null where none does."
    )

    def next_step(self, options: Any) -> str | None:
        """To review it, or to unlearn further what a review would refuse."""
        made = self.registered
        if made is None or made.source_uri is None or options.until == "pass" or not tells_apart(str(made.reading)):
            return super().next_step(options)
        # Filed requests are found again; those that forget= filed have to be named.
        named = [part for id in made.request_ids if options.forget for part in ("--forget", f"request:{id}")]
        remark = "stronger settings, until one passes"
        return command_line("unlearn", "--model-uri", made.source_uri, *named, "--until", "pass", remark=remark)


def unlearn(options: config.Unlearn) -> UnlearnResult:
    """Fulfil the pending requests of a version: open, measure, unlearn, measure again, register, mark done.

    Raises:
        UnlearnError: bad input; NothingToUnlearn where the weights would stay as they are, or nothing passes;
            Refused where what passed on the validation set does not on the test set.
    """
    progress = sys.stderr.isatty()
    options, params = _with_params(options)  # the run records the method that runs
    with tracking.prepared("unlearn", options) as run, tracking.scratch() as folder, ExitStack() as stack:
        client, lock = tracking.client(), None
        name = check_name(options.register_as) if options.register_as else None
        method = get_method(options.method)
        params = {**method.preset(options.preset), **params}
        method(params)  # a misspelt hyperparameter is refused before anything is loaded
        policy, rungs = _check(options)
        with tracking.timed("open"):
            registered = find_version(client, options.model_uri)
            if registered is not None and not options.plan:
                # Whose requests are read after this: two commands must not fulfil the same ones.
                own = model_lock(client, registered.name, version=registered.version, wait=0)
                lock, _ = stack.enter_context(own)
                uri = f"models:/{registered.name}/{registered.version}"
                options = options.model_copy(update={"model_uri": uri})
            session = open_session(client, options, folder, progress=progress)
            name = target_name(session, name)
            gold_module = open_gold(session, options)
            refusal = method.unsuited(session.module) or unmet(options.method, session.version)
            if refusal is not None:
                raise UnlearnError(refusal)
            run_id = session.begin(run, plan=options.plan, prefix=options.prefix)

        recipe = None
        if options.method == "retrain" or policy is not None or options.plan:
            recipe = training_recipe(session, options)
            of_method = method.recorded(recipe.params, model_family(session.module))
            recorded = dict(recipe.params) if options.method == "retrain" else of_method
        else:
            recorded = recorded_params(session, options, [options.method]).get(options.method, {})
        params = {**recorded, **params}
        _check_seed(session, options, params)
        if options.plan and recipe is not None:
            models = 3 if gold_module else 2
            plan, ways = _plan(session, options, params, recipe, rungs, models=models)
            chosen = show(ways, options.claim)
            return UnlearnResult(run_id=run_id, plan=plan, ways=ways, recommended=chosen.kind if chosen else None)
        teacher = session.teacher(options.prefix) if options.method != "retrain" else None
        with tracking.timed("original"):
            outputs = {"original": session.evaluate_original(force=options.force, teacher=teacher)}
        if gold_module is not None:
            outputs["gold"] = evaluate_splits(gold_module, session.splits, session.hardware, name="gold", cached=True)
        session = session.filed(options)
        attempts: list[Attempt] = []
        stack.enter_context(found_so_far(lambda: UnlearnResult(run_id=run_id, attempts=attempts)))
        with tracking.timed("method"):
            if policy is not None and recipe is not None and teacher is not None:
                rungs = rungs or _rungs(session, recipe, options)
                gold = outputs.get("gold")
                original, budget, seed = outputs["original"], options.budget, options.seed
                ladder = Ladder(session, policy, rungs, recipe, budget, seed, teacher, original, gold, attempts)
                result, provenance, checkpoint = ladder.climb()
                log_result(get_method(provenance.method), result)
            else:
                setting = Setting(options.method, params, options.seed, teacher, recipe)
                result, checkpoint = setting.run(session, run_id)
                provenance = setting.provenance(result)
        remove_of_dead(client, result.kept)

        with tracking.timed("result"):
            unlearned = evaluate_splits(result.model, session.splits, session.hardware, name="unlearned")
            outputs = {"original": outputs["original"], "unlearned": unlearned, **outputs}
        evidence = publish(session, run_id, name, result, provenance, outputs, options, lock, policy=policy)
        checkpoint.remove()
        if policy is None and tells_apart(str(evidence.reading)):
            say("The forgotten samples still stand out: a review will hardly pass.")
        _say_that_it_is_a_trial(session, options)
        return UnlearnResult(run_id=run_id, registered=Registered.of(evidence), attempts=attempts)


def _check(options: config.Unlearn) -> tuple[Policy | None, tuple[Rung, ...]]:
    """Refuse options that do not go together; the policy of ``until=pass``, and the rungs that are named.

    Raises:
        UnlearnError: they contradict each other, or one cannot be read.
    """
    if options.method == "retrain" and options.prefix != "none":
        raise UnlearnError(retrains_all())
    check_prefix(options.method, options.prefix)
    if options.processes > 1 and get_method(options.method).needs == CHECKPOINTS:
        raise UnlearnError(f"{options.method} runs a training again in one process: leave {spelled('processes')} out")
    check_key(options.sign_key)
    defaults = config.Unlearn.model_fields
    if options.claim != defaults["claim"].default and not options.plan:
        raise UnlearnError(
            f"{spelled('claim', options.claim)} has no effect without {spelled('plan', True)}: add that, or leave it "
            "out"
        )
    if options.until == "once":
        for name in ("policy", "rungs", "budget"):
            if getattr(options, name) != defaults[name].default:
                raise UnlearnError(
                    f"{spelled(name, getattr(options, name))} has no effect without {spelled('until', 'pass')}: add "
                    "that, or leave it out"
                )
        return None, ()
    for name in ("method", "params", "preset", "prefix"):
        if getattr(options, name) != defaults[name].default:
            raise UnlearnError(
                f"{spelled(name, getattr(options, name))} and {spelled('until', 'pass')} contradict each other: name "
                f"the settings to try with {spelled('rungs')}"
            )
    return read_policy(options.policy), parse_rungs(options.rungs) if options.rungs is not None else ()


def _check_seed(session: Session, options: config.Unlearn, params: dict[str, Any]) -> None:
    """Say that a seed was given in vain, where the method runs the recorded training again."""
    given = Provenance(method=options.method, params=params, seed=options.seed)
    trained = trained_as(session, given)
    default = config.Unlearn.model_fields["seed"].default
    if options.seed not in (trained.seed, default) and not params.get("sigma"):  # noise is drawn by the one given
        note(
            f"Note: {spelled('seed', options.seed)} has no effect: {options.method} takes the seed of the training, "
            f"{trained.seed}, which is what is recorded."
        )


def _rungs(session: Session, recipe: Recipe, options: config.Unlearn) -> tuple[Rung, ...]:
    epochs = get_method("retrain")(recipe.params).params.model_dump()["epochs"]
    forget, retain = len(session.forget), len(session.retain)
    return default_rungs(session.module, epochs, forget=forget, retain=retain, budget=options.budget)


def _plan(
    session: Session,
    options: config.Unlearn,
    params: dict[str, Any],
    recipe: Recipe,
    rungs: tuple[Rung, ...],
    *,
    models: int,
) -> tuple[dry_run.Estimate, list[Way]]:
    """What the command will take, which is printed, and what each of the ways would."""
    own = recipe if options.method == "retrain" else None
    record = new_record(session, options, Provenance(method=options.method, params=params, seed=options.seed))
    workloads = [dry_run.Workload(options.method, params, options.seed, own)]
    estimate = dry_run.show(dry_run.estimate(session, workloads, prefix=options.prefix, models=models, record=record))
    published = not options.params and options.prefix == "none"
    known = {method: s for method, s in estimate.seconds.items() if method == options.method and published}
    rungs = rungs or _rungs(session, recipe, options)
    session = replace(session, hardware=replace(session.hardware, progress=False))
    return estimate, Comparison(session, options, recipe, known).ways(rungs)


def _say_that_it_is_a_trial(session: Session, options: config.Unlearn) -> None:
    trials = [request for request in session.requests if request.ad_hoc]
    if trials and session.version.name is not None and options.forget is not None:
        file = command_line("request", "--model-uri", session.version.uri, "--forget", f"request:{trials[0].id}")
        note(
            f"Note: this is a trial: request {trials[0].id} was given with {spelled('forget')} and not filed, so that "
            f"it has no case and no day by which it is due. To file it: {file}"
        )


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
            raise UnlearnError(
                f"{spelled('params')} names {name} = {value!r}, which is not a text: write one such as {given!r}"
            )
        if given not in (value, defaults[name].default):
            raise UnlearnError(
                f"{spelled('params')} names {name} = {value!r}, and {spelled(name, given)} is given: leave out "
                "one of them"
            )
        options = options.model_copy(update={name: value})
    return options, {**params, **(apart or {})}
