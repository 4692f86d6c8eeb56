"""How a version reads its data: what is given goes before what is recorded."""

from dataclasses import replace

import numpy as np
import pytest

from mlflow_unlearn import config
from mlflow_unlearn.data.loaders import load_source
from mlflow_unlearn.data.manifest import Manifest
from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.session.view import data_spec, make_splits, open_input_spec, training_mask

REVERSED = tuple("9876543210")


def said(capsys) -> str:
    return " ".join(capsys.readouterr().err.split())


def given(**options: str) -> config.Unlearn:
    return config.Unlearn(model_uri="models:/clf/1", **options)


def test_by_its_record(opened):
    view = open_input_spec(opened.version, given())
    assert (view.source.spec, view.transform, view.shape) == ("digits,train=15%", "none", (1, 8, 8))
    assert view.classes == view.source.classes


def test_classes_in_another_order_renumber_the_labels(opened, tmp_path):
    (tmp_path / "classes.txt").write_text("\ufeff" + "\n".join(REVERSED) + "\n", encoding="utf-8")
    for classes in (",".join(REVERSED), str(tmp_path / "classes.txt")):
        view = open_input_spec(opened.version, given(classes=classes))
        assert view.classes == REVERSED
        split = view.source.train.subset(np.arange(20))
        labels = [int(label) for _, label in view.dataset(split, opened.module, "", False)]
        assert labels == [9 - int(view.source.classes[label]) for label in split.labels]


def test_nothing_recorded(opened, capsys):
    foreign = replace(opened.version, record=None)
    with pytest.raises(UnlearnError, match="does not record its data source: give data="):
        data_spec(foreign, None)
    assert data_spec(opened.version, None, "drawn") == "digits,train=15%,split=drawn"
    with pytest.raises(
        UnlearnError, match=r"its signature takes images \[1, 8, 8\]\): give architecture=.*, transform=none"
    ):
        open_input_spec(foreign, given(data="digits"))
    assert open_input_spec(foreign, given(data="digits", transform="none"), trains=False).shape == (1, 8, 8)
    assert "the source's order is assumed: 0, 1, 2" in capsys.readouterr().err


class Trained:
    """A version with a training manifest, or none and no record either."""

    uri, record = "models:/clf/1", None

    def __init__(self, *ids: str) -> None:
        self.training_manifest = Manifest(ids) if ids else None


def test_nothing_is_assumed_of_a_split_that_this_tool_has_drawn(opened, capsys):
    source = opened.view.source
    with pytest.raises(
        UnlearnError, match="has no list of what it was trained on, and 'digits,train=15%' .*write ,split=FILE"
    ):
        training_mask(Trained(), source)
    assert training_mask(replace(opened.version, path=opened.folder), source).all(), "our own record names the draw"
    assert training_mask(Trained(), load_source("digits,train=15%,split=drawn")).all()
    assert "models:/clf/1 has no list of what it was trained on: assumed: all of the" in said(capsys)


def test_training_samples_among_the_unseen_ones(opened, capsys):
    source = opened.view.source
    mask = training_mask(Trained(*source.train.ids[:5], source.val.ids[0], source.test.ids[3], "gone"), source)
    assert mask.sum() == 5
    assert "3 of 8 recorded training samples are no longer in the training split of the source, and 2" in said(capsys)


def test_what_it_was_trained_on(opened, capsys):
    source = opened.view.source
    mask = training_mask(Trained(source.train.ids[3], "gone"), source)
    assert np.flatnonzero(mask).tolist() == [3]
    assert "1 of 2 recorded training samples are no longer in the source" in capsys.readouterr().err
    with pytest.raises(UnlearnError, match="none of the 1 samples that models:/clf/1 was trained on"):
        training_mask(Trained("gone"), source)


def test_the_four_sets(opened):
    splits = make_splits(opened.view, opened.module, np.array([4]), np.array([1, 2]), False)
    source = opened.view.source
    assert [len(data) for data in vars(splits).values()] == [1, 2, len(source.val), len(source.test)]
    assert splits.forget[0][0].shape == (1, 8, 8) and int(splits.forget[0][1]) == source.train.labels[4]
