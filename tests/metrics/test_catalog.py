"""Each record of the catalog: complete, true, and what every other list of metrics is made from."""

import re
import typing
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from mlflow_unlearn.comparison.table import COLUMNS
from mlflow_unlearn.config import Tune
from mlflow_unlearn.metrics.catalog import KEYS, METRICS, OBJECTIVES, ON_VALIDATION, Need, overview, ranked
from mlflow_unlearn.metrics.outputs import MetricInputs, SplitOutputs
from mlflow_unlearn.metrics.suite import compute_metrics

PAGE = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
SIZES = {"forget": 60, "retain": 150, "val": 120, "test": 130}
EVERYTHING = frozenset(typing.get_args(Need))


def outputs(seed, classes=4):
    """Of a model on four splits; class 0 is wholly forgotten."""
    rng = np.random.default_rng(seed)
    made = {}
    for split, size in SIZES.items():
        labels = rng.integers(1 if split == "retain" else 0, classes, size=size)
        scores = rng.normal(size=(size, classes)) + 2 * rng.random((size, 1)) * np.eye(classes)[labels]
        p = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
        sums = np.eye(classes)[labels].T @ p
        own = np.eye(classes, dtype=bool)[labels]
        margins = scores[own] - np.where(own, -np.inf, scores).max(1)
        made[split] = SplitOutputs(labels, p.argmax(1), -(p * np.log(p)).sum(1), p.max(1), margins, margins, sums, p)
    return made


@pytest.mark.parametrize("metric", METRICS.values(), ids=KEYS)
def test_its_words_and_its_fields_say_the_same(metric):
    """Which way it should go, and that tables show it multiplied."""
    found = re.search(r"should (fall|rise)\b", metric.meaning)
    assert metric.should == (found[1] if found else None)
    assert metric.shown_times == (1e4 if "× 10⁴" in metric.meaning else 1.0)


@cache
def inputs(needs=EVERYTHING):
    """Of all that a metric may need, these parts."""
    model, original, gold = map(outputs, range(3))
    return MetricInputs(
        {split: model[split] for split in SIZES if split in needs},
        {"test": original["test"]} if "original" in needs else {},
        gold if "gold" in needs else {},
        seed=3,
    )


@cache
def measured():
    """Every metric, from everything."""
    given = inputs()
    return compute_metrics(given.model, original_test=given.original["test"], gold=given.gold, seed=3)


def compute(metric, needs):
    return inputs(frozenset(needs)).once(metric.function())[metric.key]


@pytest.mark.parametrize("metric", METRICS.values(), ids=KEYS)
class TestRecord:
    def test_is_consistent(self, metric):
        low, high = metric.range
        assert low < high
        assert metric.ideal is not None or metric.good
        assert metric.ideal is None or (low <= metric.ideal <= high and metric.distance(metric.ideal) == 0)
        if metric.objective is not None:
            assert metric.val_name is not None and metric.ideal is not None
        if metric.interval_end:
            assert metric.key.rpartition("_")[0] in METRICS
        headings = re.findall(r"^##+ (.+)$", PAGE, re.MULTILINE)
        assert metric.section in [re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings]

    def test_needs_what_it_says_and_nothing_else(self, metric):
        value = measured()[metric.key]
        assert metric.range[0] <= value <= metric.range[1]
        assert compute(metric, metric.needs) == value
        for need in metric.needs:
            with pytest.raises(KeyError):
                compute(metric, {*metric.needs} - {need})

    def test_is_not_computed_without_its_references(self, metric):
        bare = compute_metrics({split: inputs().model[split] for split in ("forget", "retain", "test")})
        reasons = {
            "val": "the val set was not read",
            "original": "no original model was given",
            "gold": "no gold model was given",
        }
        assert bare.missing.get(metric.key) == next((reasons[need] for need in metric.needs if need in reasons), None)
        assert (metric.key in bare) is (metric.key not in bare.missing)


def test_what_is_computed_comes_in_the_order_of_the_catalog():
    assert tuple(measured()) == KEYS


def test_a_metric_without_an_ideal_has_no_distance_from_it():
    with pytest.raises(ValueError, match="mia has no ideal value"):
        METRICS["mia"].distance(0.5)


def test_the_table_in_the_docs_is_the_catalogs():
    assert f"## Overview\n\n{overview()}\n" in PAGE


def test_the_objectives_of_tune_are_the_catalogs():
    assert typing.get_args(Tune.model_fields["objective"].annotation) == tuple(OBJECTIVES)
    assert all(part in ON_VALIDATION for parts in OBJECTIVES.values() for part in parts)
    assert len(ON_VALIDATION) == sum(metric.val_name is not None for metric in METRICS.values())


OBJECTIVES_BEFORE = "rf_jsd_mia_val rf_jsd_val mia_excess_val mia_auc_val entropy_ks_val avg_gap_excess_val"
COLUMNS_BEFORE = (
    "avg_gap_excess avg_gap acc_forget acc_retain acc_val acc_test acc_test_forgotten mia mia_excess mia_auc jsd "
    "rf_jsd seconds seconds_relative"
)
CARD_BEFORE = "acc_forget acc_test mia_auc mia_auc_low mia_auc_high mia_excess"


@pytest.mark.parametrize(
    ("names", "before"),
    [
        (tuple(OBJECTIVES), OBJECTIVES_BEFORE),
        (COLUMNS, COLUMNS_BEFORE),
        (tuple(metric.key for metric in ranked("card")), CARD_BEFORE),
    ],
)
def test_what_users_have_seen_stays_in_its_order(names, before):
    """A new metric may come between."""
    places = [names.index(name) for name in before.split()]
    assert all(first < second for first, second in pairwise(places))
