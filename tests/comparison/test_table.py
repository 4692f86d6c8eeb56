"""The table of a comparison, from rows made by hand."""

from pathlib import Path

import pytest

from mlflow_unlearn.comparison.audits import AUDIT_COLUMNS
from mlflow_unlearn.comparison.table import (
    COLUMNS,
    Row,
    Spread,
    as_csv,
    as_json,
    by_audit,
    correlation,
    markdown,
    without_ranks,
)
from mlflow_unlearn.metrics.suite import Metrics


def test_correlation_by_hand():
    """Three methods on a line rf_jsd = 2 · jsd: Pearson 1; with one seed there is no spread."""

    def row(method: str, jsd: float) -> Row:
        metrics = Metrics()
        metrics.update(jsd=jsd, rf_jsd=2 * jsd)
        return Row(method, {0: metrics}, [1.0])

    rows = [row(name, jsd) for name, jsd in (("a", 0.1), ("b", 0.2), ("c", 0.4), ("original", 9.0))]
    found = correlation(rows, ["a", "b", "c"])
    assert found is not None
    assert (found.mean, found.sd) == (pytest.approx(1.0), None)
    assert correlation(rows[:2], ["a", "b"]) is None


def test_correlation_where_a_method_failed_with_a_seed():
    """Seed 0: jsd 1, 2, 3 with rf_jsd 1, 2, 3, so 1. Seed 1, which d has alone beside them: 3, 2, 1 and 1, 2, 3, so −1.

    By position d's only figure would stand beside those of seed 0. A method that failed with all seeds is left out.
    """

    def row(method: str, **seeds: tuple[float, float]) -> Row:
        metrics = {}
        for seed, (jsd, rf_jsd) in seeds.items():
            metrics[int(seed[1:])] = Metrics()
            metrics[int(seed[1:])].update(jsd=jsd, rf_jsd=rf_jsd)
        return Row(method, metrics, [1.0])

    rows = [row("a", s0=(1, 1), s1=(3, 1)), row("b", s0=(2, 2), s1=(2, 2)), row("c", s0=(3, 3)), row("d", s1=(1, 3))]
    found = correlation([*rows, row("e")], ["a", "b", "c", "d", "e"])
    assert found is not None
    assert (found.mean, found.sd) == (pytest.approx(0.0), pytest.approx(2**0.5))


def test_every_column_is_in_the_docs():
    text = (Path(__file__).parents[2] / "docs" / "compare.md").read_text()
    assert all(f"`{column}`" in text for column in (*AUDIT_COLUMNS, *COLUMNS))


def test_audits_rank():
    """The nearest method first, one that was not audited last, reference rows before all."""

    def row(method: str, gap: float | None) -> Row:
        metrics = Metrics()
        metrics.update({"acc_test": 0.5} if gap is None else {"audit_gap": gap, "acc_test": 0.5})
        return Row(method, {0: metrics}, [1.0])

    gaps = {"original": 0.3, "retrain": 0.02, "floor": None, "a": 0.2, "failed": None, "b": 0.01}
    rows = by_audit([row(*each) for each in gaps.items()])
    assert [one.method for one in rows] == ["original", "retrain", "floor", "b", "a", "failed"]
    assert markdown(rows, None).startswith("| method | audit_gap | acc_test |") and "`audit_gap` decides" in markdown(
        rows, None
    )
    ruined = row("b", 0.01)
    ruined.metrics[0]["acc_test"] = 0.2
    assert "- b: has lost 0.30 of acc_test, which no audit sees." in markdown([*rows[:3], ruined], None)
    without = [row("a", None)]
    assert "audit_gap" not in as_json(without)[0] and "`avg_gap_advantage` decides" in markdown(without, None)


def test_a_row_by_hand():
    """Seeds 0 and 1 with acc_test 0.5 and 0.7: mean 0.6, sample deviation √0.02; 3 s of retraining's 6 are a half."""
    metrics = {0: Metrics(), 1: Metrics()}
    metrics[0].update(acc_test=0.5, jsd=0.25)
    metrics[1].update(acc_test=0.7)
    row = Row("lotus", metrics, [2.0, 4.0], ["a warning"], unit=6.0)
    assert (row["acc_test"].mean, row["acc_test"].sd) == (pytest.approx(0.6), pytest.approx(0.02**0.5))
    assert row["jsd"] == Spread(0.25, None) and row["mia_auc"] is None
    assert row["seconds_relative"].mean == pytest.approx(0.5)
    [cells] = as_json([row])
    assert (cells["seeds"], cells["jsd"], cells["jsd_sd"], cells["mia_auc"]) == (2, 0.25, None, None)
    assert as_csv([row]).splitlines()[1].endswith("a warning")
    lines = markdown([row], None).splitlines()
    assert "mia_auc" not in lines[0] and "0.6000 ± 0.1414" in lines[2] and lines[-1] == "- lotus: a warning."


def test_a_collapsed_row_is_marked():
    good, ruined = Metrics(), Metrics()
    good.update(acc_retain=0.9, jsd=0.1)
    ruined.update(acc_retain=0.1)
    ruined.missing["jsd"] = "collapsed: so"
    rows = [Row("original", {0: good}, []), Row("ssd", {0: good, 1: ruined}, [1.0, 1.0])]
    text = markdown(rows, None)
    assert "| ssd (collapsed) | 0.5000 ± 0.5657 | 0.1000 |" in text and "| original | 0.9000 | 0.1000 |" in text
    assert "- ssd: metrics of 1 of 2 seeds are void, collapsed: so." in text.splitlines()
    assert [(row["method"], row["collapsed"]) for row in as_json(rows)] == [("original", 0), ("ssd", 1)]


def test_without_ranks():
    """What is measured against the golds is gone, with the sentence that says why; accuracies and the cost stay."""
    metrics = Metrics()
    metrics.update(acc_test=0.9, rf_jsd=0.2, avg_gap=0.3, avg_gap_advantage=0.1, avg_gap_excess=0.2, jsd=0.1)
    metrics.update(audit_gap=0.1, share_remembered=0.5, told_apart=1.0)
    row = Row("lotus", {0: metrics}, [2.0], ["a warning"], unit=4.0)
    [left] = without_ranks([row], "No method is ranked, since so")
    assert dict(left.metrics[0]) == {"acc_test": 0.9, "rf_jsd": 0.2}
    assert left.metrics[0].missing["jsd"] == "No method is ranked, since so"
    assert (left.method, left.seconds, left.warnings, left.unit) == ("lotus", [2.0], ["a warning"], 4.0)
    header, _, cells, _, *notes = markdown([left], None, "No method is ranked, since so").splitlines()
    assert header == "| method | acc_test | rf_jsd | seconds | seconds_relative |" and cells.startswith("| lotus |")
    assert notes[0] == "- No method is ranked, since so."
    assert not any("decides" in line for line in notes)
    assert len(row.metrics[0]) == 9, "the row itself stays as it was"
