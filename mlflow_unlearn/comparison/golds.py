"""The retrained models that a comparison measures against: one per seed, or the one that is given."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from mlflow_unlearn.comparison.runs import ComparisonRunner, Gold
from mlflow_unlearn.config import GOLD_SEED
from mlflow_unlearn.console import track
from mlflow_unlearn.engine.architectures import weights_digest
from mlflow_unlearn.engine.predictions import evaluate_splits
from mlflow_unlearn.metrics.accuracy import accuracy


@dataclass(frozen=True)
class Golds:
    """The gold model that each seed is compared with, and pairs of golds.

    Attributes:
        of_seeds: one per seed, in order; the given one for all.
        given: whether the command names it, so that nothing of it is retrained here.
        floor: the retrain-vs-retrain baseline: (gold, its reference), which differ by their seeds alone.
    """

    of_seeds: list[Gold]
    given: bool
    floor: list[tuple[Gold, Gold]]

    @property
    def different(self) -> list[Gold]:
        """Each of them once, those of the seeds first."""
        every = [*self.of_seeds, *(gold for pair in self.floor for gold in pair)]
        return list({gold.digest: gold for gold in every}.values())


SHORTFALL = 0.05
"""Of acc_retain: a gold that is farther below the original was not trained as that was."""


def shortfall(runner: ComparisonRunner, golds: Golds) -> str | None:
    """How far the golds, on average, are from knowing the retain set as the original does; None where they do."""
    retained = [one["retain"] for one in (runner.original, *(gold.outputs for gold in golds.of_seeds))]
    original, *others = (accuracy(one.predictions, one.labels) for one in retained)
    gold = sum(others) / len(others)
    if original - gold <= SHORTFALL:
        return None
    return (
        f"the gold standard's acc_retain is {gold:.4f}, more than {SHORTFALL} below the original's {original:.4f}, so "
        "that a method's distance to it says nothing of forgetting"
    )


def golds_for(runner: ComparisonRunner, given: nn.Module | None, seeds: Sequence[int], progress: bool) -> Golds:
    """One gold per seed, each the second gold of another; with a given gold, one retrained model beside it.

    Args:
        runner: that retrains.
        given: the gold that the command names.
        seeds: of the unlearning.
        progress: whether a bar is shown.
    """
    # With the seed of its own training a gold model would start from the original's initial weights.
    taken = runner.recipe.seed in [seed + GOLD_SEED for seed in (*seeds, seeds[0] + 1)]
    offset = 2 * GOLD_SEED if taken else GOLD_SEED
    if given is not None:
        outputs = evaluate_splits(given, runner.session.splits, runner.session.hardware, name="gold", cached=True)
        gold = Gold(given, outputs, weights_digest(given), None)
        return Golds([gold] * len(seeds), True, [(runner.gold(seeds[0] + offset), gold)])
    wanted = [*seeds, *([seeds[0] + 1] if len(seeds) == 1 else [])]
    golds = [runner.gold(seed + offset) for seed in track(wanted, "retraining", enabled=progress)]
    # Two models have but one distance.
    pairs = [(golds[(i + 1) % len(golds)], golds[i]) for i in range(len(golds) if len(golds) > 2 else 1)]
    return Golds(golds[: len(seeds)], False, pairs)
