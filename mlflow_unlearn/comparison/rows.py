"""The rows of a comparison: the original, retraining, the floor, and each method."""

from collections.abc import Mapping, Sequence

from mlflow_unlearn.comparison.golds import Golds
from mlflow_unlearn.comparison.runs import ComparisonRunner, Trial
from mlflow_unlearn.comparison.table import Row


def measured_rows(
    runner: ComparisonRunner, trials: Mapping[str, list[Trial]], golds: Golds, seeds: Sequence[int]
) -> list[Row]:
    """The reference rows and one a method; seconds are relative to the mean of the models retrained here.

    Args:
        runner: that measures.
        trials: of each method, those that did not fail.
        golds: what they are measured against.
        seeds: of the unlearning.
    """
    retrained = {id(g): g.seconds for pair in golds.floor for g in pair if g.seconds is not None}
    unit = sum(retrained.values()) / len(retrained)
    own = golds.of_seeds[:1] if golds.given else golds.of_seeds
    pairs = dict(zip(seeds, own, strict=False))
    floor = dict(zip(seeds, golds.floor, strict=False))
    rows = [
        Row("original", {seed: runner.measure(runner.original, gold, seed) for seed, gold in pairs.items()}, []),
        Row(
            "retrain",
            {seed: runner.measure(gold.outputs, gold, seed) for seed, gold in pairs.items()},
            [gold.seconds for gold in own if gold.seconds is not None],
        ),
        Row(
            "floor",
            {seed: runner.measure(one.outputs, two, seed) for seed, (one, two) in floor.items()},
            [one.seconds for one, _ in golds.floor if one.seconds is not None],
        ),
    ]
    for method, done in trials.items():
        warnings = list(dict.fromkeys(sentence for trial in done for sentence in trial.warnings))
        if len(done) < len(seeds):
            warnings.append(f"failed with {len(seeds) - len(done)} of {len(seeds)} seeds")
        rows.append(Row(method, {t.seed: t.metrics for t in done}, [t.seconds for t in done], warnings))
    return [row.relative_to(unit) for row in rows]
