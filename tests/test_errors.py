"""One clear sentence for each error."""

import pickle

import pytest

from mlflow_unlearn.console import first_line
from mlflow_unlearn.errors import NothingToUnlearn, Refused, UnlearnError, did_you_mean, shortlist


def test_exit_codes():
    assert [kind("x").exit_code for kind in (UnlearnError, NothingToUnlearn, Refused)] == [2, 3, 3]


def test_the_sentence_of_a_data_loading_worker_stands_alone():
    """PyTorch raises a worker's error again with the whole traceback as its message."""
    wrapped = (
        "Caught UnlearnError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n"
        "  File \"x.py\", line 1, in f\nmlflow_unlearn.errors.UnlearnError: can't decode 'a.png': replace it\n"
    )
    assert str(UnlearnError(wrapped)) == "can't decode 'a.png': replace it"
    assert str(pickle.loads(pickle.dumps(Refused("as it is\n")))) == "as it is\n"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("one\ntwo"), "one"),
        (KeyError(), "KeyError"),
        (OSError(" \n"), "OSError"),
        (OSError("x" * 300), "x" * 200),
    ],
)
def test_the_first_line(error, line):
    assert first_line(error) == line


def test_ten_items_are_shown_and_more_are_counted():
    assert shortlist(iter(range(10))) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9"
    assert shortlist(range(11)) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9, … (11 in all)"


def test_the_nearest_name_comes_first():
    assert did_you_mean("lotsu", iter(["scrub", "lotus"])) == "did you mean 'lotus'? Valid values: 'scrub', 'lotus'"
    assert did_you_mean("qqq", ["scrub", "lotus"]) == "valid values: 'scrub', 'lotus'"
