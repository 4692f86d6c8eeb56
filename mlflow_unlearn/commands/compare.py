"""`compare`: methods beside each other, beside the original and beside retraining, over several seeds."""

import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import mlflow
from pydantic import Field

from mlflow_unlearn import config
from mlflow_unlearn.answer import found_so_far
from mlflow_unlearn.comparison import table
from mlflow_unlearn.comparison.golds import Golds, golds_for, shortfall
from mlflow_unlearn.comparison.rows import measured_rows
from mlflow_unlearn.comparison.runs import ComparisonRunner, Trial
from mlflow_unlearn.comparison.table import TUNED, RowRecord, Spread
from mlflow_unlearn.comparison.tuned import OBJECTIVE, check_tunable, tune_method
from mlflow_unlearn.comparison.winner import RULE, best_method
from mlflow_unlearn.config import parse_params, parse_seeds
from mlflow_unlearn.console import counted, note, say, track
from mlflow_unlearn.engine.architectures import model_family
from mlflow_unlearn.engine.predictions import evaluate_splits
from mlflow_unlearn.errors import NothingToUnlearn, Refused, UnlearnError
from mlflow_unlearn.evidence.provenance import Provenance, Selection
from mlflow_unlearn.evidence.registered import Registered, Registering
from mlflow_unlearn.evidence.signing import check_key
from mlflow_unlearn.governance.publish import publish, target_name
from mlflow_unlearn.methods import chosen_methods, get_method
from mlflow_unlearn.registry import tracking
from mlflow_unlearn.registry.lock import experiment_lock
from mlflow_unlearn.registry.versions import check_name
from mlflow_unlearn.session import dry_run
from mlflow_unlearn.session.gold import open_gold
from mlflow_unlearn.session.new_version import new_record
from mlflow_unlearn.session.past import usable
from mlflow_unlearn.session.recipe import Recipe, training_recipe
from mlflow_unlearn.session.session import Session, open_session
from mlflow_unlearn.spelling import spelled
from mlflow_unlearn.tuning.selection import CONSTRAINTS

Setting = tuple[str, Mapping[str, Any]]
"""A method and all its hyperparameters."""


class CompareResult(Registering):
    """The methods beside each other; with register=best the best one's version."""

    rows: list[RowRecord] = Field([], description="As in the table; empty with plan=true.")
    correlation: Spread | None = Field(None, description="Of RF-JSD with JSD over the methods; null below three.")
    best: str | None = Field(
        None,
        description=f"The method with the lowest mean {RULE} of those that meet the constraints, on the validation "
        "set; null where none does, with by=audit, and where the golds are too weak.",
    )
    best_params: dict[str, Any] = Field({}, description="Its hyperparameters, but for those that it takes by itself.")
    unranked: str | None = Field(
        None, description="Why no method is ranked: the golds are too weak to be measured against. Null where they are."
    )
    plan: dry_run.Estimate | None = Field(None, description="With plan=true.")

    def next_step(self, options: Any) -> str | None:
        """To unlearn with the best method, where it was not to be registered."""
        if self.registered is not None or self.best is None:
            return super().next_step(options)
        shared = config.Unlearn.model_fields.keys() & type(options).model_fields.keys() - {"params", "plan"}
        given = {name: getattr(options, name) for name in shared}
        params = json.dumps(self.best_params) if self.best_params else None
        return config.command_of(config.Unlearn(**given, method=self.best.removesuffix(TUNED), params=params))


def compare(options: config.Compare) -> CompareResult:
    """Run each method with each seed as a nested run, or reuse the run that did it before; write the table.

    Raises:
        NothingToUnlearn: the best was to be registered and no method meets the constraints.
        Refused: no method can be ranked by these golds; the table has what does not depend on them.
    """
    progress = sys.stderr.isatty()
    with (
        tracking.prepared("compare", options) as run,
        tracking.scratch() as folder,
        ExitStack() as stack,
    ):
        if options.by == "audit" and options.register_ == "best":
            raise UnlearnError(
                f"{spelled('by', 'audit')} ranks by attacks on the test set, which must not choose a version: give "
                f"{spelled('register', 'none')}, and `unlearn` with the method that you take"
            )
        methods, seeds = chosen_methods(options.methods), parse_seeds(options.seeds)
        given = params_by_method(options.params, methods)
        name = check_name(options.register_as) if options.register_as else None
        check_key(options.sign_key)
        session = open_session(tracking.client(), options, folder, progress=progress)
        if options.register_ == "best":
            name = target_name(session, name)
        methods = usable(methods, session.version, named=options.methods.strip() != "all")
        given = {method: params for method, params in given.items() if method in (*methods, "retrain")}
        given_gold = open_gold(session, options)
        run_id = session.begin(run, plan=options.plan, prefix=options.prefix)
        stack.enter_context(experiment_lock("compare", run_id))
        experiment = mlflow.get_run(run_id).info.experiment_id
        recipe = training_recipe(session, options, given=given.pop("retrain", {}))
        family = model_family(session.module)
        recorded = {method: get_method(method).recorded(recipe.params, family) for method in methods}
        given = {method: {**recorded[method], **given.get(method, {})} for method in methods}
        if options.plan:
            return CompareResult(run_id=run_id, plan=_dry_run(session, recipe, given, seeds, options))
        runner = ComparisonRunner(session, recipe, experiment, force=options.force, prefix=options.prefix)
        if options.tuned:
            check_tunable(runner, options.tuned)
        golds = golds_for(runner, given_gold, seeds, progress)
        remarks, unranked, weak = _judged(runner, golds)
        if options.by == "audit" and unranked is None:
            runner.audit_by(golds.different)
        runner.teacher_logits()

        complete = {m: get_method(m)(given[m], family=family).params.model_dump(mode="json") for m in methods}
        settings: dict[str, Setting] = {method: (method, complete[method]) for method in methods}
        if options.tuned:
            settings, more = _tuned(runner, settings, options.tuned, seeds[0], progress)
            remarks |= more
        tasks = [(row, *pair) for row in settings for pair in zip(seeds, golds.of_seeds, strict=True)]
        trials: dict[str, list[Trial]] = {row: [] for row in settings}
        for row, seed, gold in track(tasks, "methods × seeds", enabled=progress):
            trial = runner.trial(*settings[row], seed, gold, row)
            if trial is not None:
                trials[row].append(trial)

        rows = measured_rows(runner, trials, golds, seeds, remarks)
        if unranked is not None:
            rows = table.without_ranks(rows, unranked)
        elif options.by == "audit":
            rows = table.by_audit(rows)
        correlation = table.correlation(rows, methods)
        mlflow.log_metrics({"pearson_rf_jsd_jsd": correlation.mean} if correlation is not None else {})
        table.log(rows, correlation, unranked)
        table.show(rows, correlation, unranked)
        result = CompareResult(run_id=run_id, rows=table.records(rows), correlation=correlation, unranked=unranked)
        winner = best_method(trials, runner.before, len(seeds))
        recommends = not weak and options.by == "gap"
        if winner is not None and recommends:
            own = get_method(winner.method)(recorded[winner.method], family=family).params.model_dump(mode="json")
            differ = {name: value for name, value in winner.params.items() if own.get(name) != value}
            best = next(row for row, done in trials.items() if any(one is winner for one in done))
            result = result.model_copy(update={"best": best, "best_params": differ})
        if unranked is not None:
            raise Refused(f"{unranked}; the table is in run {run_id}", result)
        stack.enter_context(found_so_far(lambda: result))
        if options.register_ == "best":
            registered = _register_best(runner, winner, trials, golds, run_id, str(name), options)
            return result.model_copy(update={"registered": registered})
        over = f"{counted(len(methods), 'method')} over {counted(len(seeds), 'seed')}"
        say(f"Compared {over} (run {run_id}); nothing was registered.")
        if result.best is not None:
            say(f"The best on the validation set is {result.best}, by {RULE} under the constraints {CONSTRAINTS}.")
        elif recommends:
            say(f"None is recommended: with every seed none met the constraints ({CONSTRAINTS}) and had its {RULE}.")
        return result


def _judged(runner: ComparisonRunner, golds: Golds) -> tuple[dict[str, str], str | None, bool]:
    """Remarks by row on how golds came about, why no method can be ranked by them, or None, and whether they are weak.

    Those of a recorded recipe, or of a change to it that somebody asked for, are what they are.
    """
    assumed, weak = runner.recipe.assumed, shortfall(runner, golds)
    remarks = {"floor" if golds.given else "retrain": assumed} if assumed is not None else {}
    if weak is None or assumed is None:
        return remarks | ({} if weak is None else {"retrain": weak}), None, weak is not None
    epochs = get_method("retrain")(runner.recipe.params).params.model_dump()["epochs"]
    longer = spelled("params", json.dumps({"retrain": {"epochs": min(3 * epochs, 10000)}}))
    ways = f"retrain as it was trained, such as with {longer}, or give a model that was, with {spelled('gold_uri')}"
    if golds.given:
        ways = f"give another model with {spelled('gold_uri')}, or leave it out and say how to retrain: {longer}"
    unranked = f"No method is ranked, since {weak}: {ways}"
    note(f"Warning: {unranked}.")  # before the methods run, which takes longest
    return remarks, unranked, True


def _tuned(
    runner: ComparisonRunner, settings: Mapping[str, Setting], n_trials: int, seed: int, progress: bool
) -> tuple[dict[str, Setting], dict[str, str]]:
    """Tune each method: its setting by row, the tuned one behind its own, and remarks by row."""
    rows: dict[str, Setting] = {}
    remarks: dict[str, str] = {}
    chosen = {}
    for method, own in track(list(settings.values()), f"tuning, {n_trials} trials each", enabled=progress):
        tuned = tune_method(runner, method, own, n_trials, seed)
        rows[method] = (method, own)
        if tuned.params is None:
            remarks[method] = tuned.remark
        else:
            rows[method + TUNED], remarks[method + TUNED] = (method, tuned.params), tuned.remark
            chosen[method] = dict(tuned.params)
    mlflow.log_dict(chosen, "compare/tuned.json")  # as `params` takes it
    return rows, remarks


def _dry_run(
    session: Session, recipe: Recipe, params: Mapping[str, Mapping[str, Any]], seeds: list[int], options: config.Compare
) -> dry_run.Estimate:
    """As if nothing had been finished before."""
    methods = list(params)
    golds = 1 if options.gold_uri is not None else max(2, len(seeds))
    workloads = [dry_run.Workload("retrain", recipe.params, seeds[0], recipe, times=golds)]
    for method in methods:
        times = len(seeds) if get_method(method).stochastic else 1
        times = 2 * times + options.tuned if options.tuned else times
        workloads.append(dry_run.Workload(method, params[method], seeds[0], times=times))
    record = None
    if options.register_ == "best":
        record = new_record(session, options, Provenance(method=methods[0], params={}, seed=seeds[0]))
    models = 1 + golds + len(methods) * (len(seeds) if not options.tuned else 2 * len(seeds) + options.tuned)
    return dry_run.show(dry_run.estimate(session, workloads, prefix=options.prefix, models=models, record=record))


def params_by_method(text: str | None, methods: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Hyperparameters by method, each validated.

    Raises:
        UnlearnError: a method that is not compared, or hyperparameters that it does not take.
    """
    given = parse_params(text, example="scrub.alpha=0.5")
    for method, params in given.items():
        if method not in (*methods, "retrain"):
            raise UnlearnError(
                f"{spelled('params')} names {method!r}, which is not compared: its keys are methods, here "
                f"{', '.join(methods)} and retrain"
            )
        if not isinstance(params, dict):
            raise UnlearnError(f'params of {method} are {params!r}: give names with values such as {{"lr": 0.001}}')
        get_method(method)(params)
    return given


def _register_best(
    runner: ComparisonRunner,
    winner: Trial | None,
    trials: Mapping[str, list[Trial]],
    golds: Golds,
    run_id: str,
    name: str,
    options: config.Compare,
) -> Registered:
    if winner is None:
        raise NothingToUnlearn(
            f"no method moved the weights, met the constraints with every seed ({CONSTRAINTS}) and had its {RULE} "
            "measured: nothing was registered"
        )
    result = runner.unlearned(winner)
    row, number = next(
        (row, number) for row, done in trials.items() for number, trial in enumerate(done) if trial is winner
    )
    outputs = {
        "original": runner.original,
        "unlearned": evaluate_splits(result.model, runner.session.splits, runner.session.hardware, name=winner.method),
        "gold": golds.of_seeds[number].outputs,
    }
    session = runner.session.filed(options)
    say(f"The best is {row} with seed {winner.seed}, by {RULE} under the constraints {CONSTRAINTS}.")
    rule = RULE
    if row.endswith(TUNED):
        rule += f", with the hyperparameters of the best of {options.tuned} trials by {OBJECTIVE}"
    provenance = Provenance(
        method=winner.method,
        params=dict(result.params),
        seed=winner.seed,
        prefix=runner.teacher.prefix,
        selection=Selection(by="compare", rule=rule),
    )
    return Registered.of(publish(session, run_id, name, result, provenance, outputs, options))
