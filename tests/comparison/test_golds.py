"""Which golds a comparison retrains, and what each is compared with."""

from dataclasses import replace

import numpy as np
import pytest

from mlflow_unlearn.comparison.golds import SHORTFALL, Golds, golds_for, shortfall


@pytest.mark.slow
def test_two_seeds_have_two_golds_and_one_distance(runner):
    golds = golds_for(runner, None, [0, 1], False)
    first, second = golds.of_seeds
    assert not golds.given and first.digest != second.digest
    assert [(a.digest, b.digest) for a, b in golds.floor] == [(second.digest, first.digest)]


def test_one_seed_has_a_second_gold_to_compare_with(runner):
    golds = golds_for(runner, None, [0], False)
    [gold] = golds.of_seeds
    [(other, reference)] = golds.floor
    assert reference is gold and other.digest != gold.digest


def test_three_seeds_go_round(runner):
    golds = golds_for(runner, None, [0, 1, 2], False)
    digests = [gold.digest for gold in golds.of_seeds]
    assert [(a.digest, b.digest) for a, b in golds.floor] == list(zip(digests[1:] + digests[:1], digests, strict=True))


def test_a_given_gold_is_that_of_every_seed(runner):
    module = runner.gold(1000).module
    golds = golds_for(runner, module, [0, 1], False)
    assert golds.given and golds.of_seeds[0] is golds.of_seeds[1] and golds.of_seeds[0].module is module
    assert golds.of_seeds[0].seconds is None
    [(retrained, given)] = golds.floor
    assert given is golds.of_seeds[0] and retrained.seconds > 0


@pytest.mark.parametrize(("seed", "expected"), [(0, 1000), (1000, 2000)])
def test_no_gold_has_the_seed_of_the_original(runner, monkeypatch, seed, expected):
    """It would start from the same initial weights."""
    monkeypatch.setattr(runner, "recipe", replace(runner.recipe, seed=seed))
    assert golds_for(runner, None, [0], False).of_seeds[0].digest == runner.gold(expected).digest


def with_wrong(gold, outputs, count):
    """The gold with the original's answers on the retain set, but for so many more that are wrong."""
    retain = outputs["retain"]
    right = np.flatnonzero(retain.predictions == retain.labels)[:count]
    predictions = retain.predictions.copy()
    predictions[right] = (retain.labels[right] + 1) % 10
    return replace(gold, outputs={**outputs, "retain": replace(retain, predictions=predictions)})


def test_golds_that_know_less_than_the_original(runner):
    """By hand: of n retain samples n/20 more may be wrong, on average over the golds; one more is too many."""
    gold, size = runner.gold(1000), len(runner.original["retain"].labels)
    most = int(SHORTFALL * size)

    def of(*wrong):
        return Golds([with_wrong(gold, runner.original, count) for count in wrong], False, [])

    assert shortfall(runner, of(0)) is None and shortfall(runner, of(most)) is None
    assert shortfall(runner, of(0, 2 * most)) is None
    found = shortfall(runner, of(most + 1, most + 1))
    right = (runner.original["retain"].predictions == runner.original["retain"].labels).mean()
    assert f"acc_retain is {right - (most + 1) / size:.4f}, more than 0.05 below the original's {right:.4f}" in found
