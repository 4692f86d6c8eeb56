"""U-LiRA and KLoM, against loops over models, samples and bins."""

import math

import numpy as np
import pytest
from scipy.stats import norm

from mlflow_unlearn.metrics.attacks.many import klom, relabelled, u_lira


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
        assert u_lira(unlearned, retrained)[i] == pytest.approx(np.mean(found), abs=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("shared", [0.0, 1.0])
def test_u_lira_of_equal_kinds_is_within_its_null(shared):
    """Also where the samples of one model have something in common; in 19 cases of 20."""
    random = np.random.default_rng(5)
    inside = []
    for _ in range(40):
        unlearned, retrained = random.normal(size=(2, 16, 20)) + shared * random.normal(size=(2, 16, 1))
        null = relabelled(lambda a, b: u_lira(a, b).mean(), unlearned, retrained, seed=0)
        low, high = np.quantile(null, [0.025, 0.975])
        inside.append(low <= u_lira(unlearned, retrained).mean() <= high)
    assert np.mean(inside) > 0.85


def test_u_lira_sees_spread_as_well():
    random = np.random.default_rng(2)
    unlearned, retrained = random.normal(0, 5, (16, 100)), random.normal(0, 1, (16, 100))
    null = relabelled(lambda a, b: u_lira(a, b).mean(), unlearned, retrained, seed=0)
    assert u_lira(unlearned, retrained).mean() > max(0.6, null.max())


def test_the_null_is_over_models():
    """Each value is of a split of all of them into as many of each kind; the same seed draws the same ones."""
    sizes = []
    models = np.arange(40.0)[:, None]

    def total(a, b):
        sizes.append((len(a), len(b)))
        return float(a.sum() - b.sum())

    found = relabelled(total, models[:16], models[16:], seed=4)
    assert set(sizes) == {(16, 24)} and len(set(found.tolist())) > 50
    assert found.tolist() == relabelled(total, models[:16], models[16:], seed=4).tolist()


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
