"""IAM by the loops over samples and lines that its paper states."""

import math

import numpy as np
import pytest

from mlflow_unlearn.metrics.attacks.iam import phi, remembered


def by_hand(p, references, fit):
    """SciPy-free, sample by sample; with the signals rescaled to [0, 1] first, as its authors' code does."""

    def signal(value):
        return -math.log(1e-2 - math.log(1e-5 + value))

    everything = [signal(v) for v in [*p, *fit, *np.ravel(references)]]
    low, high = min(everything), max(everything)

    def scaled(value):
        return (signal(value) - low) / (high - low)

    n, k = len(p), len(references)
    grid = [step / 99 for step in range(100)]
    scores = [0.0] * n
    for alpha, weight in zip(grid[:-1], grid[1:], strict=True):
        lines = [[(1 - alpha) * scaled(references[j][i]) + alpha * scaled(fit[i]) for j in range(k)] for i in range(n)]
        flat = [value for line in lines for value in line]
        mean = sum(flat) / len(flat)
        sigma = math.sqrt(sum((value - mean) ** 2 for value in flat) / len(flat))
        beta = sigma * math.sqrt(6) / math.pi
        for i in range(n):
            mu = sum(lines[i]) / k - 0.5772156649015329 * beta
            scores[i] += weight * math.exp(-math.exp(-(scaled(p[i]) - mu) / beta))
    return [score / sum(grid[1:]) for score in scores]


@pytest.mark.parametrize("k", [1, 4])
def test_gumbel_lines(k):
    rng = np.random.default_rng(k)
    p, references, fit = rng.uniform(0.1, 1, 12), rng.uniform(0.1, 0.9, (k, 12)), rng.uniform(0.9, 1, 12)
    found = remembered(np.log(p), np.log(references), np.log(fit))
    np.testing.assert_allclose(found, by_hand(p, references, fit), rtol=1e-9, atol=1e-9)


def test_one_number_in_the_place_of_the_original():
    rng = np.random.default_rng(0)
    p, references = rng.uniform(0.1, 1, 12), rng.uniform(0.1, 0.9, (2, 12))
    found = remembered(np.log(p), np.log(references), math.log(0.97))
    np.testing.assert_allclose(found, by_hand(p, references, [0.97] * 12), rtol=1e-9, atol=1e-9)


def test_from_never_seen_to_trained_on():
    references, fit = np.log(np.full((3, 50), 0.3)), np.log(np.full(50, 0.999))
    references += np.random.default_rng(0).normal(0, 0.05, references.shape)
    means = [float(remembered(np.log(np.full(50, p)), references, fit).mean()) for p in (0.1, 0.3, 0.6, 0.9, 0.999)]
    assert means == sorted(means)
    assert means[0] < 0.01 and means[-1] > 0.9


def test_a_reference_that_was_trained_on_a_sample_says_nothing_of_it():
    rng = np.random.default_rng(0)
    p, fit = np.log(rng.uniform(0.1, 1, 12)), np.log(rng.uniform(0.9, 1, 12))
    references = np.log(rng.uniform(0.1, 0.9, (2, 12)))
    extended = np.vstack([references, np.full((1, 12), np.nan)])
    np.testing.assert_allclose(remembered(p, extended, fit), remembered(p, references, fit), rtol=1e-12)


def test_references_that_all_agree_give_no_nan():
    assert np.isfinite(remembered([-1.0, -0.5], [[-1.0, -1.0]], -1.0)).all()


def test_bad_values():
    with pytest.raises(ValueError, match="log_p_fit"):
        remembered([-1.0, -1.0], [[-1.0, -1.0]], [-1.0])
    with pytest.raises(ValueError, match="at most 0"):
        phi([0.5])
    with pytest.raises(ValueError, match=r"\[K, 1\]"):
        remembered([-1.0], [[-1.0, -1.0]], -0.1)
