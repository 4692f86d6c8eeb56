"""The version that a training goes on from: what of the data it may read, and what is recorded."""

import numpy as np
import pytest
from stores import copied
from trainings import EARLY, LATER

from mlflow_unlearn import config
from mlflow_unlearn.data.loaders import load_source
from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.registry import tracking
from mlflow_unlearn.session.going_on import check_going_on, open_before


def options(**given):
    return config.Train.model_validate({"data": LATER, "name": "clf", "from": "models:/clf/1", **given})


@pytest.fixture(scope="module")
def before(template, tmp_path_factory):
    folder = tmp_path_factory.mktemp("before")
    with copied(template, folder / "store"):
        yield open_before(tracking.client(), options(), folder)


def test_what_it_knows_is_found_by_id(before):
    source = load_source(LATER)
    early = {*load_source(EARLY).train.ids}
    assert {i for i, known in zip(source.train.ids, before.known, strict=True) if known} == early
    assert not before.barred.any() and before.forgotten == () and before.architecture == "toy:trainable"
    kept = np.arange(len(source.train))
    assert len(before.late(kept)) == len(source.train) - len(early) and before.allowed(kept) is not None


def test_late_ones_may_be_left_out_and_early_ones_not(before):
    kept = np.arange(len(before.known))
    late = before.late(kept)
    assert len(before.allowed(np.delete(kept, late[:5]))) == len(kept) - 5
    early = np.flatnonzero(before.known)[:5]
    with pytest.raises(UnlearnError, match="exclude names 5 samples that models:/clf/1 was trained on"):
        before.allowed(np.delete(kept, early))


def test_what_is_recorded(before):
    kept = np.arange(len(before.known))
    origin = before.origin(kept, "00", "new")
    assert (origin.uri, origin.samples, origin.trained_on) == ("models:/clf/1", len(before.late(kept)), "new")
    fewer = before.origin(kept[:-1], "00", "new")
    assert (fewer.added_sha256 == origin.added_sha256) == bool(before.known[-1])


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"keep_checkpoints": 15}, "keep_checkpoints=15 of 15 epochs: give at most 14"),
        ({"from": None, "train_on": "new"}, "train_on=new needs from="),
        ({"canaries": 3}, "canaries=3 and from=models:/clf/1 do not go together"),
    ],
)
def test_options_that_do_not_go_together(given, sentence):
    with pytest.raises(UnlearnError, match=sentence):
        check_going_on(options(**given))
    check_going_on(options(keep_checkpoints=14))
