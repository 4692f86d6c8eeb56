"""The rows of a comparison: the original, retraining, the retrain-vs-retrain baseline, and each method."""

from collections.abc import Mapping, Sequence

from mlflow_unlearn.comparison.golds import Golds
from mlflow_unlearn.comparison.runs import ComparisonRunner, Gold, Trial
from mlflow_unlearn.comparison.table import Row
from mlflow_unlearn.metrics.outputs import Outputs


def measured_rows(
    runner: ComparisonRunner,
    trials: Mapping[str, list[Trial]],
    golds: Golds,
    seeds: Sequence[int],
    remarks: Mapping[str, str],
) -> list[Row]:
    """The reference rows and one per method and setting; seconds are relative to the mean of the models retrained here.

    Args:
        runner: that measures.
        trials: of each row, those that did not fail.
        golds: what they are measured against.
        seeds: of the unlearning.
        remarks: by row, what a reader must know of it beside the warnings of its trials.
    """
    retrained = {id(g): g.seconds for pair in golds.floor for g in pair if g.seconds is not None}
    unit = sum(retrained.values()) / len(retrained)
    own = golds.of_seeds[:1] if golds.given else golds.of_seeds

    def reference(
        name: str,
        measured: Sequence[tuple[Outputs, Gold]],
        timed: Sequence[Gold],
        audited: Sequence[Mapping[str, float]] = (),
    ) -> Row:
        metrics = {seed: runner.measure(*pair, seed) for seed, pair in zip(seeds, measured, strict=False)}
        for found, more in zip(metrics.values(), audited, strict=False):
            found.update(more)
        seconds = [gold.seconds for gold in timed if gold.seconds is not None]
        return Row(name, metrics, seconds, [remarks[name]] if name in remarks else [], unit)

    audit = runner.audit
    original = [] if audit is None else [audit.of_original()] * len(own)
    retrain = [] if audit is None else [audit.of_gold(number) for number in range(len(own))]
    rows = [
        reference("original", [(runner.original, gold) for gold in own], [], original),
        reference("retrain", [(gold.outputs, gold) for gold in own], own, retrain),
        reference("floor", [(one.outputs, two) for one, two in golds.floor], [one for one, _ in golds.floor]),
    ]
    for name, done in trials.items():
        warnings = [remarks[name]] if name in remarks else []
        warnings += dict.fromkeys(sentence for trial in done for sentence in trial.warnings)
        if len(done) < len(seeds):
            warnings.append(f"failed with {len(seeds) - len(done)} of {len(seeds)} seeds")
        rows.append(Row(name, {t.seed: t.metrics for t in done}, [t.seconds for t in done], warnings, unit))
    return rows
