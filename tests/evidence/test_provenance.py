"""The record of how weights came about, and the untyped mapping that it replaces."""

import json

import pytest
from pydantic import ValidationError

from mlflow_unlearn.evidence.provenance import Provenance, Selection

TUNED = Selection(by="tune", rule="least of all", study="clf-1", trial=7, trials=20)
COMPARED = Selection(by="compare", rule="avg_gap_excess_val")


@pytest.mark.parametrize(
    ("recipe", "tags", "expected"),
    [
        ({"lr": 0.1, "seed": 3}, None, {}),
        ({"lr": 0.1, "seed": 3, "augment": "none"}, None, {"augment": "none"}),
        ({"lr": 0.1, "seed": 3, "prefix": "layer4"}, None, {"prefix": "layer4"}),
        ({"lr": 0.1, "seed": 3, "chosen_by": "compare, avg_gap_excess_val"}, None, {"selection": COMPARED}),
        ({"lr": 0.1, "seed": 3, "study": "clf-1", "trial": 7}, TUNED.tags(), {"selection": TUNED}),
    ],
    ids=["unlearn", "retrain", "frozen", "compare", "tune"],
)
def test_what_earlier_releases_wrote_is_read_and_written_again(recipe, tags, expected):
    found = Provenance.from_recipe("scrub", recipe, tags)
    assert found == Provenance(method="scrub", params={"lr": 0.1}, seed=3, **expected)
    assert found.recipe() == recipe
    assert list(found.rows()) == [(name, str(value)) for name, value in found.recipe().items()]


def test_what_a_training_left_out_is_not_one_of_its_hyperparameters():
    assert Provenance.from_recipe("train", {"epochs": 15, "seed": 0, "exclude": "ids.csv"}).params == {"epochs": 15}


def test_a_hyperparameter_may_have_any_name():
    params = {"seed": 9, "prefix": "x", "method": "y", "augment": 1, "selection": 2, "study": "z"}
    made = Provenance(method="odd", params=params, seed=3)
    assert (made.params, made.seed, made.prefix, made.augment, made.selection) == (params, 3, None, None, None)
    assert Provenance.model_validate_json(made.model_dump_json()) == made


def test_it_reads_back_as_it_was_even_with_tuples():
    """SCRUB's decay epochs are a tuple, and JSON has lists alone."""
    made = Provenance(method="scrub", params={"lr_decay_epochs": (5, 8)}, seed=0)
    assert dict(made.rows())["lr_decay_epochs"] == "[5, 8]"
    assert Provenance.model_validate(json.loads(made.model_dump_json())) == made


def test_it_cannot_be_changed_or_extended():
    made = Provenance(method="ssd", params={}, seed=0)
    with pytest.raises(ValidationError, match="frozen"):
        made.seed = 1
    with pytest.raises(ValidationError, match="learning_rate"):
        Provenance(method="ssd", params={}, seed=0, learning_rate=1)


def test_a_study_leaves_tags_and_a_comparison_none():
    assert TUNED.tags() == {
        "unlearn.study": "clf-1",
        "unlearn.trial": "7",
        "unlearn.selection": "least of all",
        "unlearn.n_trials": "20",
    }
    assert COMPARED.tags() == {}
    assert list(TUNED.rows()) == [("selection", "least of all"), ("n_trials", "20")] and not list(COMPARED.rows())
