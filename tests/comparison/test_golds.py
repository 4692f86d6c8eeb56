"""Which golds a comparison retrains, and what each is compared with."""

from dataclasses import replace

import pytest

from mlflow_unlearn.comparison.golds import golds_for


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
