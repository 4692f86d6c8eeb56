"""Twins, of which a coin had one trained: exact tests without a retrained model."""

import math

import numpy as np
import pytest
from scipy import stats

from mlflow_unlearn.metrics.attacks.canaries import BETS, commitment, e_value, sign_test


def test_parity_with_scipy():
    rng = np.random.default_rng(0)
    twins, ghosts = rng.normal(0.3, size=60), rng.normal(size=60)
    found = sign_test(twins, ghosts)
    larger = int((twins > ghosts).sum())
    reference = stats.binomtest(larger, 60)
    ends = reference.proportion_ci(0.95)
    assert (found.pairs, found.larger) == (60, larger)
    assert found.p_value == pytest.approx(reference.pvalue, abs=1e-9)
    assert found.advantage == pytest.approx(2 * larger / 60 - 1, abs=1e-12)
    assert found.bound == pytest.approx(max(abs(2 * ends.low - 1), abs(2 * ends.high - 1)), abs=1e-9)


def test_fair_coins_are_uniform():
    """Twins and ghosts of different hardness; the p-value spread over its steps, since signs are whole numbers."""
    rng = np.random.default_rng(0)
    values = []
    for _ in range(200):
        pair = rng.normal(size=(2, 201)) * 5 + np.array([[0.0], [2.0]])
        coins = rng.integers(2, size=201)
        twins, ghosts = np.where(coins, pair[0], pair[1]), np.where(coins, pair[1], pair[0])
        found = sign_test(twins, ghosts)
        as_far = {k for k in range(202) if abs(k - 100.5) >= abs(found.larger - 100.5)}
        further = {k for k in as_far if abs(k - 100.5) > abs(found.larger - 100.5)}
        mass = [sum(stats.binom.pmf(list(ks), 201, 0.5)) for ks in (further, as_far)]
        assert found.p_value == pytest.approx(mass[1], abs=1e-9)
        values.append(rng.uniform(*mass))
    assert stats.kstest(values, "uniform").pvalue > 0.01


def test_swapped_twins_swap_the_sign():
    a, b = np.arange(30.0), np.arange(30.0) - 1
    one, other = sign_test(a, b), sign_test(b, a)
    assert one.advantage == -other.advantage == 1.0
    assert one.p_value == other.p_value


def test_ties_are_left_out():
    assert sign_test([1.0, 1.0], [1.0, 1.0]) is None
    assert sign_test([1.0, 2.0], [1.0, 1.0]).pairs == 1


def test_bets_multiply():
    signs = [1, 1, -1, 1]
    wealth = [math.prod(1 + bet * sign for sign in signs) for bet in BETS]
    assert e_value(signs) == pytest.approx(sum(wealth) / len(wealth), rel=1e-9)
    assert len(BETS) == 18 and 0 not in BETS


def test_looking_after_every_coin_raises_no_false_alarm():
    rng = np.random.default_rng(0)
    alarms = sum(
        any(e_value(signs[:n].tolist()) >= 20 for n in range(5, 101, 5))
        for signs in (rng.choice([-1, 1], size=100) for _ in range(400))
    )
    assert alarms <= 31  # 99.5 % of Binomial(400, 0.05)
    assert e_value([1] * 30) > 1000
    assert 1e300 < e_value([1] * 5000) < np.inf, "a number that JSON can hold"


def test_a_commitment_changes_with_every_coin():
    pairs = [{"twin": "a", "ghost": "b"}, {"twin": "c", "ghost": "d"}]
    turned = [{"twin": "b", "ghost": "a"}, pairs[1]]
    assert len({commitment(pairs, "s"), commitment(turned, "s"), commitment(pairs, "t")}) == 3


def test_bad_values():
    with pytest.raises(ValueError, match="as many ghosts as twins, 2, got 1"):
        sign_test([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="signs of 1 and -1"):
        e_value([0])
