"""Seeded inside, and outside as if nothing had happened."""

import random

import numpy as np
import pytest
import torch
from toy import global_state

from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.rng import checked_seed, isolated_rng


class TestIsolatedRng:
    @staticmethod
    def draw():
        return random.random(), np.random.random(), torch.rand(1).item()

    def test_the_seed_sets_all_three_generators(self):
        drawn = []
        for seed in (1, 1, 2, 2**64 - 1):
            with isolated_rng(seed):
                drawn.append(self.draw())
        assert drawn[0] == drawn[1]
        assert all(a != b for a, b in zip(drawn[0], drawn[2], strict=True))

    def test_all_three_go_on_as_if_nothing_had_happened(self):
        before = global_state()
        with isolated_rng(0):
            self.draw()
        with pytest.raises(KeyError), isolated_rng(0):
            self.draw()
            raise KeyError
        with pytest.raises((RuntimeError, ValueError)), isolated_rng(2**64):
            pass
        assert global_state() == before


def test_seeds_that_no_generator_takes():
    assert [checked_seed(seed) for seed in (0, np.int64(7), 2**64 - 1)] == [0, 7, 2**64 - 1]
    for seed in (-1, 2**64, 1.0, "1", None):
        with pytest.raises(UnlearnError, match="must be a whole number ≥ 0"):
            checked_seed(seed)
