"""The rows of a comparison, from golds that were retrained."""

import pytest

from mlflow_unlearn.comparison.golds import golds_for
from mlflow_unlearn.comparison.rows import measured_rows
from mlflow_unlearn.comparison.runs import Trial
from mlflow_unlearn.metrics.suite import Metrics


@pytest.mark.slow
def test_rows(runner):
    golds = golds_for(runner, None, [0, 1], False)
    done = Trial("lotus", {}, 1, Metrics(), Metrics(), 3.0, "", True, ("a warning",), 0.1)
    trials, remarks = {"lotus": [done], "ssd": []}, {"lotus": "a remark"}
    rows = {row.method: row for row in measured_rows(runner, trials, golds, [0, 1], remarks)}
    assert list(rows) == ["original", "retrain", "floor", "lotus", "ssd"]
    assert rows["retrain"].values("jsd") == [0, 0] and rows["original"].values("jsd") > [0, 0]
    assert rows["floor"].values("jsd")[0] > 0 and len(rows["floor"].metrics) == 1
    # Two models were retrained: on average each costs 1.
    assert sum(rows["retrain"].values("seconds_relative")) == pytest.approx(2)
    mean = sum(gold.seconds for gold in golds.of_seeds) / 2
    assert rows["lotus"].values("seconds_relative") == [pytest.approx(3 / mean)]
    assert rows["lotus"].warnings == ["a remark", "a warning", "failed with 1 of 2 seeds"]
    assert rows["ssd"].warnings == ["failed with 2 of 2 seeds"]
