"""Pairs of one class, and their coins."""

from collections import Counter

import numpy as np
import pytest

from mlflow_unlearn.data.canaries import Canaries, draw_canaries
from mlflow_unlearn.errors import UnlearnError

IDS = [f"s{i}" for i in range(200)]
LABELS = np.arange(200) % 4
POOL = np.arange(20, 200)


def test_pairs_are_of_one_class_and_of_the_pool():
    found = draw_canaries(IDS, LABELS, POOL, 40)
    names = [name for pair in found.pairs for name in (pair.twin, pair.ghost)]
    assert len(found.pairs) == 40 and len(set(names)) == 80
    places = {name: index for index, name in enumerate(IDS)}
    for pair in found.pairs:
        assert LABELS[places[pair.twin]] == LABELS[places[pair.ghost]]
        assert {places[pair.twin], places[pair.ghost]} <= set(POOL.tolist())


def test_no_seed_repeats_the_coins():
    np.random.seed(0)
    first = draw_canaries(IDS, LABELS, POOL, 40)
    np.random.seed(0)
    assert draw_canaries(IDS, LABELS, POOL, 40).digest != first.digest


def test_coins_are_fair():
    pool = np.arange(8)
    trained = Counter(draw_canaries(IDS, np.zeros(200, int), pool, 2).pairs[0].twin for _ in range(800))
    assert set(trained) == {f"s{i}" for i in pool}
    assert all(60 <= count <= 145 for count in trained.values())  # beyond 4 standard deviations of Binomial(800, 1/8)


def test_the_digest_is_of_all_that_was_committed_to():
    found = draw_canaries(IDS, LABELS, POOL, 3)
    turned = found.pairs[0].model_copy(update={"twin": found.pairs[0].ghost, "ghost": found.pairs[0].twin})
    changed = Canaries(salt=found.salt, pairs=(turned, *found.pairs[1:]))
    assert changed.digest != found.digest
    assert Canaries.model_validate_json(found.model_dump_json()).digest == found.digest


@pytest.mark.parametrize("pairs", [46, 1000])
def test_too_many(pairs):
    with pytest.raises(UnlearnError, match=f"canaries={pairs} is too many for 180 training samples.* give 45 at most"):
        draw_canaries(IDS, LABELS, POOL, pairs)
