"""Where an ensemble's samples lie."""

import hashlib

import numpy as np
import pytest

from mlflow_unlearn.data.manifest import Manifest
from mlflow_unlearn.data.placement import (
    Placement,
    check_placement,
    keys_of,
    placements,
    read_placement,
    write_placement,
)
from mlflow_unlearn.data.source import Split
from mlflow_unlearn.errors import UnlearnError

KEYS = [f"sample-{number}" for number in range(4000)]


def test_by_hand():
    placed = placements(["a", "b"], 5, 3)
    for number, key in enumerate("ab"):
        assert placed.shard[number] == int(hashlib.sha256(f"shard\n{key}".encode()).hexdigest(), 16) % 5
        assert placed.slice_[number] == int(hashlib.sha256(f"slice\n{key}".encode()).hexdigest(), 16) % 3
    assert placed.shard.dtype == placed.slice_.dtype == np.int64 and len(placed) == 2


def test_no_other_sample_has_a_say():
    placed, fewer = placements(KEYS, 5, 3), placements(KEYS[1::2], 5, 3)
    assert (fewer.shard == placed.shard[1::2]).all() and (fewer.slice_ == placed.slice_[1::2]).all()


def test_shard_and_slice_are_independent_and_even():
    placed = placements(KEYS, 4, 4)  # by one hash each sample would be in the slice of its shard's number
    counts = np.zeros((4, 4), int)
    np.add.at(counts, (placed.shard, placed.slice_), 1)
    assert (abs(counts - 250) < 5 * 250**0.5).all()


def test_nothing_is_placed_nowhere():
    placed = placements([], 4, 4)
    assert placed.shard.shape == placed.slice_.shape == (0,)


def test_rows_of_the_first_slices():
    placed = Placement(np.array([0, 1, 0, 0]), np.array([2, 0, 0, 1]))
    assert [placed.rows(0, stage).tolist() for stage in (0, 1, 2, 3)] == [[], [2], [2, 3], [0, 2, 3]]
    assert placed.subset(np.array([3, 1])).rows(0, 3).tolist() == [0]


def test_a_group_lies_together():
    split = Split(("a", "b", "c"), np.zeros(3, np.int64), [0] * 3, {"subject": ("x", "y", "x")})
    assert keys_of(split, "subject") == ("x", "y", "x") and keys_of(split, "id") == split.ids
    with pytest.raises(UnlearnError, match="no column 'subjct' to shard by: did you mean 'subject'"):
        keys_of(split, "subjct")


def test_a_shard_without_samples_or_without_a_class_is_named():
    labels, classes = np.array([0, 1, 0]), ("cat", "dog")
    check_placement(placements(["a"] * 3, 1, 1), labels, classes, 1, "go")
    with pytest.raises(UnlearnError, match="shard 1 of 2 would have no sample: go"):
        check_placement(Placement(np.zeros(3, int), np.zeros(3, int)), labels, classes, 2, "go")
    with pytest.raises(UnlearnError, match="shard 1 of 2 would have no sample of the class 'dog': go"):
        check_placement(Placement(np.array([0, 0, 1]), np.zeros(3, int)), labels, classes, 2, "go")
    # A class that is forgotten wholly is missed in none.
    check_placement(Placement(np.array([0, 1]), np.zeros(2, int)), np.zeros(2, int), classes, 2, "go")


def test_the_list_beside_a_version(tmp_path):
    ids, placed = ("b", "a", "c"), Placement(np.array([1, 0, 1]), np.array([2, 3, 0]))
    for manifest in (Manifest(("a", "b")), Manifest(("a", "b")).hashed("0f")):
        write_placement(tmp_path / "shards.csv", manifest, placed, ids)
        found = read_placement(tmp_path / "shards.csv", "it")
        assert found == {manifest.key("a"): (0, 3), manifest.key("b"): (1, 2)}
    assert "a" not in found
    for text in ("id,shard\na,1\n", "id,shard,slice\na,x,1\n"):
        (tmp_path / "shards.csv").write_text(text)
        with pytest.raises(
            UnlearnError, match=r"^shards.csv of clf/1, which .* \(it is not a table of id, shard and sl"
        ):
            read_placement(tmp_path / "shards.csv", "shards.csv of clf/1")
    for path, why in ((tmp_path / "none.csv", "it is missing"), (tmp_path, "Is a directory")):
        with pytest.raises(
            UnlearnError, match=rf"cannot be read \({why}\): restore the file, or use the method ret"
        ) as found:
            read_placement(path, "it")
        assert str(tmp_path) not in str(found.value)
