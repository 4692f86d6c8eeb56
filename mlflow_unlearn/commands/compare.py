"""`compare`: methods beside each other, beside the original and beside retraining, over several seeds."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import mlflow
from torch import nn

from mlflow_unlearn import config
from mlflow_unlearn.comparison import table
from mlflow_unlearn.comparison.runs import Bench, Gold, Trial
from mlflow_unlearn.comparison.table import Row
from mlflow_unlearn.config import GOLD_SEED, parse_params, parse_seeds
from mlflow_unlearn.console import track
from mlflow_unlearn.engine.architectures import model_family, weights_digest
from mlflow_unlearn.engine.predictions import read_splits
from mlflow_unlearn.errors import NothingToUnlearn, UnlearnError
from mlflow_unlearn.evidence.signing import check_key
from mlflow_unlearn.governance.publish import publish, target_name
from mlflow_unlearn.methods import chosen_methods, get_method
from mlflow_unlearn.metrics.suite import Metrics
from mlflow_unlearn.registry import tracking
from mlflow_unlearn.registry.lock import alone
from mlflow_unlearn.registry.versions import check_name
from mlflow_unlearn.session import dry_run
from mlflow_unlearn.session.gold import open_gold
from mlflow_unlearn.session.recipe import Recipe, training_recipe
from mlflow_unlearn.session.session import Session, new_record, open_session
from mlflow_unlearn.tuning.selection import CONSTRAINTS, constraints, on_validation

RULE = "avg_gap_excess_val"


def compare(options: config.Compare) -> None:
    """Run each method with each seed as a nested run, or find the run that did it before; write the table.

    Raises:
        NothingToUnlearn: the best was to be registered and no method meets the constraints.
    """
    progress = sys.stderr.isatty()
    with tracking.run("compare", options) as run_id, tracking.scratch() as folder, alone("compare", run_id):
        experiment = mlflow.get_run(run_id).info.experiment_id
        methods, seeds = chosen_methods(options.methods), parse_seeds(options.seeds)
        given = params_by_method(options.params, methods)
        name = check_name(options.register_as) if options.register_as else None
        check_key(options.sign_key)
        session = open_session(tracking.client(), run_id, options, folder, progress=progress)
        if options.register_ == "best":
            name = target_name(session, name)
        given_gold = open_gold(
            session.client, options.gold_uri, session.view, session.retain, session.splits.test, folder, options
        )
        session.log_manifests()
        recipe = training_recipe(session, options)
        recipe = replace(recipe, params={**recipe.params, **given.pop("retrain", {})})
        if options.plan:
            _plan(session, recipe, methods, seeds, given, options)
            return
        bench = Bench(session, recipe, experiment, force=options.force, prefix=options.prefix)
        golds = _golds(bench, given_gold, seeds, progress)
        bench.teacher_logits()

        family = model_family(session.module)
        complete = {m: get_method(m)(given.get(m, {}), family=family).params.model_dump(mode="json") for m in methods}
        tasks = [(method, seed, gold) for method in methods for seed, gold in zip(seeds, golds.of_seeds, strict=True)]
        trials: dict[str, list[Trial]] = {method: [] for method in methods}
        for method, seed, gold in track(tasks, "methods × seeds", enabled=progress):
            trial = bench.trial(method, complete[method], seed, gold)
            if trial is not None:
                trials[method].append(trial)

        rows = _rows(bench, trials, golds, seeds)
        correlation = table.correlation(rows, methods)
        mlflow.log_metrics({"pearson_rf_jsd_jsd": correlation.mean} if correlation is not None else {})
        table.log(rows, correlation)
        table.show(rows, correlation)
        if options.register_ == "best":
            _register_best(bench, trials, golds, run_id, str(name), options)
        else:
            print(f"Compared {len(methods)} methods over {len(seeds)} seeds (run {run_id}); nothing was registered.")


def _plan(
    session: Session,
    recipe: Recipe,
    methods: Sequence[str],
    seeds: Sequence[int],
    given: Mapping[str, dict[str, Any]],
    options: config.Compare,
) -> None:
    """As if nothing had been finished before."""
    golds = 1 if options.gold_uri is not None else max(2, len(seeds))
    learnings = [dry_run.Learning("retrain", recipe.params, seeds[0], recipe, times=golds)]
    for method in methods:
        times = len(seeds) if get_method(method).stochastic else 1
        learnings.append(dry_run.Learning(method, given.get(method, {}), seeds[0], times=times))
    record = new_record(session, options, methods[0], {"seed": seeds[0]}) if options.register_ == "best" else None
    models = 1 + golds + len(methods) * len(seeds)
    dry_run.show(dry_run.estimate(session, learnings, prefix=options.prefix, models=models, record=record))


def params_by_method(text: str | None, methods: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Hyperparameters by method, each validated.

    Raises:
        UnlearnError: a method that is not compared, or hyperparameters that it does not take.
    """
    given = parse_params(text)
    for method, params in given.items():
        if method not in (*methods, "retrain"):
            raise UnlearnError(
                f"params names {method!r}, which is not compared: its keys are methods, here {', '.join(methods)} "
                "and retrain"
            )
        if not isinstance(params, dict):
            raise UnlearnError(f'params of {method} are {params!r}: give names with values such as {{"lr": 0.001}}')
        get_method(method)(params)
    return given


@dataclass(frozen=True)
class _Golds:
    """The gold model that each seed is compared with, and the pairs (gold, its reference) that make the floor."""

    of_seeds: list[Gold]
    given: bool
    floor: list[tuple[Gold, Gold]]


def _golds(bench: Bench, given: nn.Module | None, seeds: Sequence[int], progress: bool) -> _Golds:
    """One gold a seed, each the second gold of another; with a given gold, one retrained model for the floor."""
    # With the seed of its own training a gold model would start from the original's initial weights.
    taken = bench.recipe.seed in [seed + GOLD_SEED for seed in (*seeds, seeds[0] + 1)]
    offset = 2 * GOLD_SEED if taken else GOLD_SEED
    if given is not None:
        readings = read_splits(given, bench.session.splits, bench.session.hardware, name="gold", kept=True)
        gold = Gold(given, readings, weights_digest(given), None)
        return _Golds([gold] * len(seeds), True, [(bench.gold(seeds[0] + offset), gold)])
    wanted = [*seeds, *([seeds[0] + 1] if len(seeds) == 1 else [])]
    golds = [bench.gold(seed + offset) for seed in track(wanted, "retraining", enabled=progress)]
    # Two models have but one distance.
    pairs = [(golds[(i + 1) % len(golds)], golds[i]) for i in range(len(golds) if len(golds) > 2 else 1)]
    return _Golds(golds[: len(seeds)], False, pairs)


def _rows(bench: Bench, trials: Mapping[str, list[Trial]], golds: _Golds, seeds: Sequence[int]) -> list[Row]:
    """The reference rows and one a method; seconds are relative to the mean of the models retrained here."""
    retrained = {id(g): g.seconds for pair in golds.floor for g in pair if g.seconds is not None}
    unit = sum(retrained.values()) / len(retrained)
    own = golds.of_seeds[:1] if golds.given else golds.of_seeds
    pairs = dict(zip(seeds, own, strict=False))
    floor = dict(zip(seeds, golds.floor, strict=False))
    rows = [
        Row("original", {seed: bench.measure(bench.original, gold, seed) for seed, gold in pairs.items()}, []),
        Row(
            "retrain",
            {seed: bench.measure(gold.readings, gold, seed) for seed, gold in pairs.items()},
            [gold.seconds for gold in own if gold.seconds is not None],
        ),
        Row(
            "floor",
            {seed: bench.measure(one.readings, two, seed) for seed, (one, two) in floor.items()},
            [one.seconds for one, _ in golds.floor if one.seconds is not None],
        ),
    ]
    for method, done in trials.items():
        warnings = list(dict.fromkeys(sentence for trial in done for sentence in trial.warnings))
        if len(done) < len(seeds):
            warnings.append(f"failed with {len(seeds) - len(done)} of {len(seeds)} seeds")
        rows.append(Row(method, {t.seed: t.metrics for t in done}, [t.seconds for t in done], warnings))
    return [row.relative_to(unit) for row in rows]


def best_method(trials: Mapping[str, Sequence[Trial]], before: Metrics, seeds: int) -> Trial | None:
    """The stated rule: the lowest mean ``avg_gap_excess_val`` of the methods that meet the constraints with every seed.

    Of that method the seed with the lowest one. Over-forgetting breaks a constraint, and a model whose weights did not
    move is no candidate. The test set takes no part.
    """
    eligible = [
        done
        for done in trials.values()
        if len(done) == seeds
        and all(trial.moved for trial in done)
        and all(RULE in trial.judged for trial in done)
        and all(value <= 0 for trial in done for value in constraints(trial.judged, before).values())
    ]
    if not eligible:
        return None
    best = min(eligible, key=lambda done: sum(trial.judged[RULE] for trial in done) / len(done))
    return min(best, key=lambda trial: trial.judged[RULE])


def _register_best(
    bench: Bench,
    trials: Mapping[str, list[Trial]],
    golds: _Golds,
    run_id: str,
    name: str,
    options: config.Compare,
) -> None:
    before = on_validation(bench.original, bench.original, seed=0)
    winner = best_method(trials, before, len(golds.of_seeds))
    if winner is None:
        raise NothingToUnlearn(
            f"no method moved the weights, met the constraints with every seed ({CONSTRAINTS}) and had its {RULE} "
            "measured: nothing was registered"
        )
    result = bench.unlearned(winner)
    gold = golds.of_seeds[next(i for i, trial in enumerate(trials[winner.method]) if trial is winner)]
    readings = {
        "original": bench.original,
        "unlearned": read_splits(result.model, bench.session.splits, bench.session.hardware, name=winner.method),
        "gold": gold.readings,
    }
    session = bench.session.filed(options)
    print(f"The best is {winner.method} with seed {winner.seed}, by {RULE} under the constraints {CONSTRAINTS}.")
    recipe = {**result.params, "seed": winner.seed, "chosen_by": f"compare, {RULE}"}
    if bench.teacher.prefix is not None:
        recipe["prefix"] = bench.teacher.prefix
    publish(session, run_id, name, result, winner.method, recipe, readings, options)
