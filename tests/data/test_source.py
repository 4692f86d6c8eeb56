"""What a source consists of: images on demand, splits, and the one way to draw from them."""

import hashlib

import numpy as np
import pytest
from PIL import Image

from mlflow_unlearn.data.loaders import load_source
from mlflow_unlearn.data.source import ImageStore, check_classes, rest, stratified
from mlflow_unlearn.errors import UnlearnError


def test_stratified_rounds_by_the_largest_remainder():
    # n = 5 of 10: quotas 5·(7, 2, 1)/10 = 3.5, 1.0, 0.5 → floors 3, 1, 0 and one more for the first .5.
    labels = np.array([0] * 7 + [1] * 2 + [2])
    chosen = stratified(labels, 5, seed=0)
    assert np.bincount(labels[chosen]).tolist() == [4, 1]
    assert len(set(chosen)) == 5 and (np.sort(chosen) == chosen).all()


@pytest.mark.parametrize("n", range(8))
def test_stratified_sizes_are_exact_when_every_class_is_tiny(n):
    assert len(stratified(np.array([4, 4, 0, 7, 7, 9, 2]), n, seed=1)) == n


def test_stratified_counts_and_shares():
    labels = np.repeat([0, 1], 50)
    assert len(stratified(labels, 1, seed=0)) == 1  # an int is a number of samples, a float a fraction
    assert len(stratified(labels, np.int64(3), seed=0)) == 3
    assert (stratified(labels, 1.0, seed=0) == np.arange(100)).all()
    assert (stratified(labels, 0.5, seed=0) == stratified(labels, 50, seed=0)).all()
    assert (stratified(labels, 50, seed=0) != stratified(labels, 50, seed=1)).any()
    with pytest.raises(UnlearnError, match="can't draw 101 of 100"):
        stratified(labels, 101, seed=0)


def test_the_rest_of_a_draw():
    assert rest(5, np.array([3, 0])).tolist() == [1, 2, 4] and rest(2, np.arange(2)).tolist() == []


def test_digest_is_over_the_sorted_manifest(tree):
    source = load_source(f"folder:{tree('set', train=1, val=1, test=1)}")
    lines = [f"{part}\t{part}/{name}/0.png\t{name}" for part in ("test", "train", "val") for name in ("eight", "nine")]
    assert source.digest == hashlib.sha256("\n".join(lines).encode()).hexdigest()


def test_the_listing_has_a_row_a_sample(small):
    listing = small.listing()
    assert list(listing.columns) == ["id", "split", "class", "subject"] and len(listing) == 20
    assert listing.iloc[1].tolist() == ["train/1.png", "train", "dog", "ann"]
    assert listing["subject"].isna().sum() == 8  # of the splits without groups


def test_a_subset_takes_everything_along(small):
    chosen = small.train.subset([5, 0])
    assert chosen.ids == ("train/5.png", "train/0.png") and chosen.labels.tolist() == [1, 0]
    assert chosen.groups == {"subject": ("bob", "ann")} and len(chosen) == 2
    assert chosen.images[1].tobytes() == small.train.images[0].tobytes()
    assert chosen.subset([1]).images[0].tobytes() == small.train.images[0].tobytes()


def test_an_image_that_cannot_be_read_is_named_and_a_users_own_sentence_stays():
    def fails(key):
        raise (UnlearnError("my own sentence") if key == "own" else OSError("no such disk\nand more"))

    images = ImageStore(fails, ["cat.png", "own"])
    with pytest.raises(UnlearnError, match="^can't decode the image 'cat.png' .no such disk.: replace the file or"):
        images[0]
    with pytest.raises(UnlearnError, match="^my own sentence$"):
        images[1]
    ready = Image.new("L", (2, 3))
    assert ImageStore(lambda key: ready, ["any"]).pixels(0) is ready


def test_every_class_is_trained_and_tested(small):
    train, test = small.train, small.test
    check_classes(small.classes, {"train": train, "test": test})
    with pytest.raises(UnlearnError, match="no test sample of the classes 'dog': add some"):
        check_classes(small.classes, {"train": train, "val": test, "test": test.subset([0, 2])})
    with pytest.raises(UnlearnError, match="no training sample of the classes 'cat': take them out of the test set"):
        check_classes(small.classes, {"train": train.subset([1, 3]), "val": test})
