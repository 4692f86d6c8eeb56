"""What retrained models differ by among themselves."""

import numpy as np
import pytest
from scipy import stats

from mlflow_unlearn.metrics.attacks.held_back import margin_gap, spread_of_golds


def test_one_more_lies_within_it_as_often_as_it_says():
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(1000):
        values = rng.normal(3, 2, size=6)
        low, high = spread_of_golds(values[:5])
        inside += low <= values[5] <= high
    assert 930 <= inside <= 970


def test_it_is_the_prediction_interval():
    values = [1.0, 2.0, 4.0, 8.0]
    low, high = spread_of_golds(values)
    s, t = np.std(values, ddof=1), stats.t.ppf(0.975, 3)
    assert (low, high) == pytest.approx((3.75 - t * s * 1.25**0.5, 3.75 + t * s * 1.25**0.5), abs=1e-9)


def test_the_gap_of_one_more_gold_standard():
    rng = np.random.default_rng(0)
    hard = rng.normal(size=20_000)
    golds = hard + 0.5 * rng.normal(size=(5, 20_000))
    assert margin_gap(golds[4], golds[:4]) == pytest.approx(np.sqrt(2 * 1.25 / np.pi), rel=0.02)
    assert margin_gap(golds[4] + 2, golds[:4]) > 3


def test_bad_values():
    with pytest.raises(ValueError, match="at least 4 gold standards, got 3"):
        spread_of_golds([1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="at least two gold standards, got one"):
        margin_gap([1.0], [[1.0]])
    with pytest.raises(ValueError, match="all alike"):
        margin_gap([1.0, 2.0], [[1.0, 2.0], [1.0, 2.0]])
