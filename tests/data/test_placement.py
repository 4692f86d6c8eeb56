"""Where an ensemble's samples lie."""

import hashlib

import numpy as np

from mlflow_unlearn.data.placement import placements

KEYS = [f"sample-{number}" for number in range(4000)]


def test_by_hand():
    shard, piece = placements(["a", "b"], 5, 3)
    for number, key in enumerate("ab"):
        assert shard[number] == int(hashlib.sha256(f"shard\n{key}".encode()).hexdigest(), 16) % 5
        assert piece[number] == int(hashlib.sha256(f"slice\n{key}".encode()).hexdigest(), 16) % 3
    assert shard.dtype == piece.dtype == np.int64


def test_no_other_sample_has_a_say():
    shard, piece = placements(KEYS, 5, 3)
    fewer, pieces = placements(KEYS[1::2], 5, 3)
    assert (fewer == shard[1::2]).all() and (pieces == piece[1::2]).all()


def test_shard_and_slice_are_independent_and_even():
    shard, piece = placements(KEYS, 4, 4)  # by one hash each sample would be in the slice of its shard's number
    counts = np.zeros((4, 4), int)
    np.add.at(counts, (shard, piece), 1)
    assert (abs(counts - 250) < 5 * 250**0.5).all()


def test_nothing_is_placed_nowhere():
    shard, piece = placements([], 4, 4)
    assert shard.shape == piece.shape == (0,)
