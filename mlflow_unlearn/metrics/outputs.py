"""What one forward pass of a model over one split leaves: no more than the metrics need."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Reading:
    """What one forward pass of a model over one split leaves: no more than the metrics need.

    Attributes:
        labels: ``[N]``.
        predictions: ``[N]``.
        entropies: of the softmax outputs, ``[N]``, nats.
        confidences: largest softmax output, ``[N]``.
        class_sums: row c is the sum of the softmax outputs of the samples with label c, ``[K, K]``.
        probabilities: the softmax outputs ``[N, K]``, kept for the forget set alone.
    """

    labels: npt.NDArray[np.int64]
    predictions: npt.NDArray[np.int64]
    entropies: npt.NDArray[np.float64]
    confidences: npt.NDArray[np.float64]
    class_sums: npt.NDArray[np.float64]
    probabilities: npt.NDArray[np.float64] | None = field(default=None, repr=False)


Readings = Mapping[str, Reading]


def part_of(reading: Reading, samples: npt.NDArray[Any]) -> Reading:
    """The reading of some samples, indices or a mask ``[N]``, of one whose probabilities were kept."""
    return pooled([reading], samples)


def pooled(readings: Sequence[Reading], samples: npt.NDArray[Any] | None = None) -> Reading:
    """One reading of several sets, or of some ``samples`` of them, whose probabilities were kept.

    Raises:
        ValueError: they were not.
    """
    if any(reading.probabilities is None for reading in readings):
        raise ValueError("a part is read from the probabilities: read the set with keep_probabilities=True")
    chosen = slice(None) if samples is None else samples

    def joined(name: str) -> npt.NDArray[Any]:
        whole: npt.NDArray[Any] = np.concatenate([getattr(reading, name) for reading in readings])[chosen]
        return whole

    labels, probabilities = joined("labels"), joined("probabilities")
    sums = np.zeros_like(readings[0].class_sums)
    np.add.at(sums, labels, probabilities)
    return Reading(labels, joined("predictions"), joined("entropies"), joined("confidences"), sums, probabilities)
