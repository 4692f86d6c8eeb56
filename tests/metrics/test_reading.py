"""The words, at their borders and in their order."""

import pytest

from mlflow_unlearn.metrics.advantage import advantage
from mlflow_unlearn.metrics.catalog import READING, READING_OF_AUC
from mlflow_unlearn.metrics.reading import (
    read_advantage,
    read_after,
    read_membership,
    samples_needed,
    tells_apart,
)

APART = {"mia_advantage": 0.2, "mia_advantage_null": 0.1, "mia_margin_auc": 0.6}
CHANCE = {"mia_margin_auc_low": 0.45, "mia_margin_auc_high": 0.55}
AUC = {"mia_auc_low": 0.4, "mia_auc_high": 0.49}


class TestReadAdvantage:
    @pytest.mark.parametrize(
        ("value", "null", "auc", "word"),
        [
            (0.21, 0.2, 0.56, "residual"),
            (0.21, 0.2, 0.44, "over-forgotten"),
            (0.21, 0.2, 0.55, "spread"),
            (0.21, 0.2, 0.45, "spread"),
            (0.2, 0.2, 0.9, "undecided"),
            (0.2 + 1e-12, 0.2, 0.9, "undecided"),
            (0.0, 0.15, 0.5, "indistinguishable"),
            (0.15, 0.15, 0.9, "indistinguishable"),
            (0.0, 0.1501, 0.5, "undecided"),
        ],
    )
    def test_precedence_and_borders(self, value, null, auc, word):
        assert read_advantage(value, null, auc, 0.45, 0.55) == word
        assert word in READING and word in READING_OF_AUC

    @pytest.mark.parametrize(
        "values", [(1.1, 0.1, 0.5, 0.4, 0.6), (0.1, -0.1, 0.5, 0.4, 0.6), (0.1, 0.1, 0.5, 0.6, 0.4)]
    )
    def test_misuse(self, values):
        with pytest.raises(ValueError, match="^expected numbers in"):
            read_advantage(*values)


class TestReadMembership:
    def test_by_the_advantage_where_it_was_measured(self):
        assert read_membership({**APART, **CHANCE, **AUC}, {}) == "residual"
        assert read_membership({**APART, **CHANCE, **AUC}, {}, "mia_auc") == "over-forgotten"

    def test_by_the_auc_where_a_record_does_not_know_the_advantage(self):
        assert read_membership(AUC, {}) == "over-forgotten"
        assert read_membership(AUC, {}, "mia_advantage") == "not measured"
        assert read_membership({}, {"mia_auc": "too few"}) == "not measured"

    def test_not_measured_is_not_read_by_another_attack(self):
        assert read_membership(AUC, {"mia_advantage": "no class in common"}) == "not measured"

    def test_a_collapse_comes_first(self):
        assert read_membership({**APART, **CHANCE}, {"jsd": "collapsed: acc_retain 0.1"}) == "collapsed"

    def test_on_validation(self):
        values = {**APART, **CHANCE}
        renamed = {f"{key}_val": value for key, value in values.items() if not key.endswith(("low", "high"))}
        renamed |= {"mia_margin_auc_val_low": 0.45, "mia_margin_auc_val_high": 0.55}
        assert read_membership(renamed, {}, suffix="_val") == "residual"


def test_in_the_light_of_the_original():
    assert read_after("residual", "indistinguishable") == "residual"
    assert read_after("undecided", "undecided") == "undecided"
    for before in READING:
        expected = "indistinguishable" if tells_apart(before) else "uninformative"
        assert read_after("indistinguishable", before) == expected
    assert [word for word in READING if tells_apart(word)] == ["residual", "over-forgotten", "spread"]


def test_how_many_samples_are_needed():
    """The limit of the null, 1.358 · sqrt(1/n + 1/m), is 0.15 for n = 82 where m is large."""
    null = 1.358 * (1 / 20 + 1 / 1e6) ** 0.5
    assert samples_needed(null, 20, 1_000_000) == 82
    needed = samples_needed(advantage(range(20), range(400), [0] * 20, [0] * 400, 1, seed=0).null.q95, 20, 400)
    reached = advantage(range(needed), range(400), [0] * needed, [0] * 400, 1, seed=0).null.q95
    assert 60 < needed < 160 and reached == pytest.approx(0.15, rel=0.1)
    assert samples_needed(1.358 * (1 / 500 + 1 / 50) ** 0.5, 500, 50) is None
