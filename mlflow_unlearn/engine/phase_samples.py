"""The samples of a phase, and their order: what one pass of the training loop reads."""

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from mlflow_unlearn.data.batching import gather, in_memory
from mlflow_unlearn.engine.method import Datasets, Phase


def shuffled_batches(count: int, batch_size: int, generator: torch.Generator | None = None) -> list[list[int]]:
    """Batches of positions, shuffled where a generator is given, as many as ``batch_size`` asks for and of equal size.

    A small batch at the end of each epoch would leave its noise in the running statistics of BatchNorm, which cannot
    normalise a single sample at all; so the rest is spread (and a batch of two may become one of three).
    """
    order = torch.arange(count) if generator is None else torch.randperm(count, generator=generator)
    batches = max(1, min(-(-count // batch_size), count // 2))
    return [part.tolist() for part in order.tensor_split(batches)]


def paired_batches(
    counts: tuple[int, int], batch_size: int, generator: torch.Generator | None = None
) -> list[list[int]]:
    """Each step a batch of both sets, positions of the second behind those of the first; the shorter set cycles."""
    sides = [shuffled_batches(count, batch_size, generator) for count in counts]
    steps = max(map(len, sides))
    for side, count in zip(sides, counts, strict=True):
        while len(side) < steps:
            side += shuffled_batches(count, batch_size, generator)
    first, second = (side[:steps] for side in sides)
    return [a + [position + counts[0] for position in b] for a, b in zip(first, second, strict=True)]


class PhaseSamples(Dataset[Any]):
    """The samples of a phase by position: image, label, whether from the forget set, and index in its set."""

    def __init__(self, datasets: Datasets, phase: Phase) -> None:
        """Read nothing yet.

        Args:
            datasets: by split.
            phase: with the indices of what it trains on.
        """
        none = torch.empty(0, dtype=torch.long)
        synthetic: Any = phase.synthetic
        parts: list[tuple[Any, Tensor]] = [
            (datasets.get("forget"), none if phase.forget is None else phase.forget),
            (datasets.get("retain"), none if phase.retain is None else phase.retain),
            (synthetic, none if synthetic is None else torch.arange(len(synthetic))),
        ]
        self._parts = [(data, index) for data, index in parts if len(index)]
        self._counts = [len(index) for _, index in parts]
        self._ends = torch.tensor([len(index) for _, index in self._parts]).cumsum(0)

    def __len__(self) -> int:
        """N."""
        return sum(self._counts)

    @property
    def datasets(self) -> list[Any]:
        """Those that are read at all."""
        return [data for data, _ in self._parts]

    def holds(self, _: Any) -> bool:
        """Whether all of it is in memory."""
        return all(in_memory(data, index) for data, index in self._parts)

    def is_like(self, other: Any) -> bool:
        """Whether another phase has the same samples."""
        return (
            isinstance(other, PhaseSamples)
            and self._counts == other._counts
            and all(
                mine is theirs and torch.equal(index, their_index)
                for (mine, index), (theirs, their_index) in zip(self._parts, other._parts, strict=True)
            )
        )

    def gather(self, positions: list[int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Images ``[B, …]``, labels, from the forget set?, and index, each ``[B]``, in the order of ``positions``."""
        position = torch.tensor(positions)
        part_of = torch.searchsorted(self._ends, position, right=True)
        index, labels = torch.empty_like(position), torch.empty_like(position)
        images: Any = None
        for number, (data, chosen) in enumerate(self._parts):
            rows = (part_of == number).nonzero().flatten()
            if len(rows):
                index[rows] = chosen[position[rows] - (self._ends[number] - len(chosen))]
                some, labels[rows] = gather(data, index[rows].tolist())
                images = some.new_empty(len(position), *some.shape[1:]) if images is None else images
                images[rows] = some
        return images, labels, position < self._counts[0], index

    def epoch(self, phase: Phase, generator: torch.Generator | None) -> list[list[int]]:
        """The batches of one pass."""
        if phase.paired:
            return paired_batches((self._counts[0], self._counts[1]), phase.batch_size, generator)
        return shuffled_batches(len(self), phase.batch_size, generator)
