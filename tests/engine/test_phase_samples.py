"""The order of a pass."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mlflow_unlearn.engine.phase_samples import paired_batches, shuffled_batches


class TestBatches:
    @settings(max_examples=60, deadline=None, derandomize=True)
    @given(st.integers(1, 200), st.integers(2, 40), st.integers(0, 2**32), st.booleans())
    def test_an_even_partition_without_a_single_sample(self, count, size, seed, shuffled):
        generator = torch.Generator().manual_seed(seed) if shuffled else None
        batches = shuffled_batches(count, size, generator)
        flat = sum(batches, [])
        assert sorted(flat) == list(range(count)) and (shuffled or flat == sorted(flat))
        sizes = [len(batch) for batch in batches]
        assert max(sizes) - min(sizes) <= 1
        assert max(sizes) <= max(size, 3) and (min(sizes) >= 2 or count == 1)
        # As many as the batch size asks for; an odd rest of pairs takes one less.
        assert len(batches) == -(-count // size) or (size == 2 and count % 2 and len(batches) == max(1, count // 2))

    def test_shuffled_by_the_generator(self):
        a, b, c = (shuffled_batches(50, 7, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
        assert a == b != c


class TestPairedBatches:
    @settings(max_examples=80, deadline=None, derandomize=True)
    @given(st.integers(1, 60), st.integers(1, 60), st.integers(2, 20), st.integers(0, 2**32))
    def test_each_step_has_both_sets_and_the_shorter_one_cycles(self, first, second, size, seed):
        """Of the longer set each sample comes once; of the other, as often as any, give or take one."""
        steps = paired_batches((first, second), size, torch.Generator().manual_seed(seed))
        sides = [
            [[p for p in step if p < first] for step in steps],
            [[p for p in step if p >= first] for step in steps],
        ]
        alone = [shuffled_batches(count, size) for count in (first, second)]
        assert len(steps) == max(map(len, alone))
        for side, count, own, start in zip(sides, (first, second), alone, (0, first), strict=True):
            assert {len(batch) for batch in side} <= {len(batch) for batch in own}
            times = [sum(side, []).count(start + position) for position in range(count)]
            assert max(times) - min(times) <= 1 and (min(times) == max(times) == 1 or len(own) < len(steps))

    @pytest.mark.parametrize(("counts", "lone"), [((1, 9), 0), ((9, 1), 9)])
    def test_one_sample_is_in_every_step(self, counts, lone):
        steps = paired_batches(counts, 3, torch.Generator().manual_seed(0))
        assert len(steps) == 3 and all(lone in step and len(step) == 4 for step in steps)

    def test_the_shorter_set_is_shuffled_anew_in_each_cycle(self):
        steps = paired_batches((8, 64), 8, torch.Generator().manual_seed(0))
        assert len({tuple(step[:8]) for step in steps}) == len(steps) == 8

    def test_the_generator(self):
        a, b, c = (paired_batches((5, 20), 4, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
        assert a == b != c
