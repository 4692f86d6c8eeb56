"""U-LiRA and KLoM, against loops over models, samples and bins."""

import math

import numpy as np
import pytest
from scipy.stats import norm

from mlflow_unlearn.metrics.attacks.many import klom, u_lira


@pytest.fixture
def models():
    random = np.random.default_rng(0)
    return random.normal(0.5, 1.2, (16, 7)), random.normal(0.0, 1.0, (18, 7))


def test_u_lira_by_its_loops(models):
    unlearned, retrained = models
    for i in range(7):

        def score(value, of_unlearned, of_retrained):
            parts = [norm(np.mean(part), np.std(part, ddof=1)).logpdf(value) for part in (of_unlearned, of_retrained)]
            return parts[0] - parts[1]

        own, other, found = unlearned[:, i], retrained[:, i], []
        for scored, fitted in ((slice(0, None, 2), slice(1, None, 2)), (slice(1, None, 2), slice(0, None, 2))):
            ours, theirs = ([score(m, own[fitted], other[fitted]) for m in part[scored]] for part in (own, other))
            found.append(np.mean([(a > b) + 0.5 * (a == b) for a in ours for b in theirs]))
        assert u_lira(unlearned, retrained).by_sample[i] == pytest.approx(np.mean(found), abs=1e-9)


def test_u_lira_of_equal_kinds_is_at_chance():
    """Its interval holds 0.5 in nineteen cases of twenty."""
    random = np.random.default_rng(1)
    inside = [u.low <= 0.5 <= u.high for u in (u_lira(*random.normal(size=(2, 16, 60))) for _ in range(200))]
    assert 0.9 < np.mean(inside) < 0.99


def test_u_lira_sees_spread_as_well():
    random = np.random.default_rng(2)
    assert u_lira(random.normal(0, 5, (16, 100)), random.normal(0, 1, (16, 100))).low > 0.6


def test_klom_by_its_loops(models):
    unlearned, retrained = models
    expected = []
    for i in range(7):
        both = np.concatenate([unlearned[:, i], retrained[:, i]])
        edges = np.linspace(both.min(), both.max(), 21)
        p = np.histogram(unlearned[:, i], edges)[0] / len(unlearned)
        q = np.histogram(retrained[:, i], edges)[0] / len(retrained)
        terms = [(a + 1e-5) * math.log((a + 1e-5) / (b + 1e-5)) for a, b in zip(p, q, strict=True) if a + b > 0]
        expected.append(sum(terms))
    assert klom(unlearned, retrained) == pytest.approx(expected, abs=1e-9)


def test_klom_sees_what_a_constant_margin_hides():
    """Every model the same, whatever the sample: U-LiRA has nothing to fit but a point, and KLoM is large."""
    retrained = np.random.default_rng(3).normal(2.0, 1.0, (16, 20))
    assert klom(np.full((16, 20), 5.0), retrained).min() > 3.0
    assert klom(np.full((16, 2), 5.0), np.full((16, 2), 5.0)).tolist() == [0.0, 0.0]
    assert klom(np.full((16, 2), 200.0), np.full((16, 2), 300.0)).tolist() == [0.0, 0.0], "clipped at 100"


@pytest.mark.parametrize("attack", [u_lira, klom])
def test_bad_input(attack):
    with pytest.raises(ValueError, match="at least 16 models of each kind, got 15 and 16"):
        attack(np.zeros((15, 3)), np.zeros((16, 3)))
    with pytest.raises(ValueError, match="retrained"):
        attack(np.zeros((16, 3)), np.zeros((16, 4)))
    with pytest.raises(ValueError, match="finite"):
        attack(np.full((16, 3), np.nan), np.zeros((16, 3)))
