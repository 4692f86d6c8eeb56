"""RMIA by the double loop that its paper states."""

import numpy as np
import pytest

from mlflow_unlearn.metrics.attacks.rmia import log_ratios


def drawn(seed=0, n=40, k=3):
    rng = np.random.default_rng(seed)
    return rng.uniform(0.05, 1, n), rng.uniform(0.05, 1, (k, n))


def by_hand(p, references, a):
    ratios = []
    for i in range(len(p)):
        known = [row[i] for row in references if not np.isnan(row[i])]
        ratios.append(p[i] / (0.5 * ((1 + a) * sum(known) / len(known) + (1 - a))))
    return np.array(ratios)


@pytest.mark.parametrize("a", [0.0, 0.3, 1.0])
def test_ratios(a):
    p, references = drawn()
    np.testing.assert_allclose(
        np.exp(log_ratios(np.log(p), np.log(references), a)), by_hand(p, references, a), rtol=1e-9
    )


def test_a_reference_that_was_trained_on_a_sample_says_nothing_of_it():
    p, references = drawn()
    references[0, ::2] = np.nan
    found = np.exp(log_ratios(np.log(p), np.log(references)))
    np.testing.assert_allclose(found, by_hand(p, references, 0.3), rtol=1e-9)


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_the_score_of_the_paper_has_its_order(gamma):
    """By the double loop over samples and population."""
    p, references = drawn()
    z, of_z = drawn(1, 30)
    population = by_hand(z, of_z, 0.3)
    scores = [sum(r / other >= gamma for other in population) / len(population) for r in by_hand(p, references, 0.3)]
    in_order = np.array(scores)[np.argsort(log_ratios(np.log(p), np.log(references)))]
    assert (np.diff(in_order) >= 0).all() and in_order[0] < in_order[-1]


def test_what_every_reference_finds_impossible_is_still_a_number():
    found = log_ratios([-1.0], [[-1e5], [-1e5]], 1.0)
    assert np.isfinite(found).all() and found[0] > 700


def test_bad_values():
    with pytest.raises(ValueError, match="at most 0"):
        log_ratios([0.1], [[-1.0]])
    with pytest.raises(ValueError, match="at most 0"):
        log_ratios([-0.1], [[1.0]])
    with pytest.raises(ValueError, match=r"\[K, 2\]"):
        log_ratios([-0.1, -0.2], [[-1.0]])
    with pytest.raises(ValueError, match=r"a: expected a number in \[0, 1\], got 2"):
        log_ratios([-0.1], [[-1.0]], 2)
    with pytest.raises(ValueError, match="1 have none"):
        log_ratios([-0.1, -0.1], [[-1.0, np.nan]])
