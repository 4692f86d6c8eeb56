"""The ladder's settings: cheapest first, within the budget, and what a user names in their place."""

import pytest

from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.tuning.rungs import Rung, default_rungs, parse_rungs


def ladder(family="cnn", budget=0.5, epochs=25, **sizes):
    return default_rungs(family, epochs, **{"forget": 1000, "retain": 9000, **sizes}, budget=budget)


def test_the_cheapest_come_first_and_lotus_before_all():
    shares = [rung.share for rung in ladder(budget=10)]
    assert shares == sorted(shares) and [rung.method for rung in ladder()][:2] == ["lotus", "lotus"]


def test_no_rung_alone_goes_beyond_the_budget():
    assert {rung.method for rung in ladder(budget=0.1)} == {"lotus"}
    assert all(rung.share <= 0.45 for rung in ladder(budget=0.45)) and not ladder(budget=0.001)


def test_retraining_is_a_rung_where_the_budget_has_room_for_it():
    assert ladder(budget=1.1)[-1].method != "retrain"
    assert ladder(budget=1.2)[-1] == Rung("retrain", {}, 1.0)


def test_a_transformer_has_no_kernels_to_transpose():
    assert {rung.method for rung in ladder("vit", budget=1)} == {"lotus", "perturb"}


def test_lotus_gets_no_more_epochs_than_its_share():
    few = ladder(epochs=5, forget=3000)[0]
    assert few.params == {"epochs": 1}


def test_methods_and_settings_can_be_named():
    assert parse_rungs("lotus, scrub") == (Rung("lotus"), Rung("scrub"))
    named = parse_rungs('[{"method": "lotus", "params": {"alpha": 4}}, "retrain"]')
    assert named == (Rung("lotus", {"alpha": 4}), Rung("retrain"))


def test_a_file_of_settings(tmp_path):
    path = tmp_path / "rungs.yaml"
    path.write_text("- method: lotus\n  params: {alpha: 4}\n")
    assert parse_rungs(str(path)) == (Rung("lotus", {"alpha": 4}),)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("lotos", "unknown method 'lotos'"),
        ("[]", "names no setting"),
        ("[1]", "the rung 1 is not a setting"),
        ('[{"params": {}}]', "is not a setting"),
        ('[{"method": "lotus", "params": {"alfa": 4}}]', "did you mean 'alpha'"),
        ("[{", "rungs cannot be parsed"),
        ("missing.yaml", "cannot be read"),
        ('[{"method": "lotus", "epochs": 3}]', "is not a setting"),
    ],
)
def test_what_is_no_setting_is_refused(text, sentence):
    with pytest.raises(UnlearnError, match=sentence):
        parse_rungs(text)
