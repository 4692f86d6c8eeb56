"""What one forward pass of a model over one split leaves, and what a metric is computed from."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class SplitOutputs:
    """What one forward pass of a model over one split leaves: no more than the metrics need.

    Attributes:
        labels: ``[N]``.
        predictions: ``[N]``.
        entropies: of the softmax outputs, ``[N]``, nats.
        confidences: largest softmax output, ``[N]``.
        margins: logit of the label less the largest of the other classes', ``[N]``.
        log_odds: ``log p − log(1 − p)`` of the softmax output of the label, ``[N]``, nats.
        class_sums: row c is the sum of the softmax outputs of the samples with label c, ``[K, K]``.
        probabilities: the softmax outputs ``[N, K]``, kept for the forget set alone.
    """

    labels: npt.NDArray[np.int64]
    predictions: npt.NDArray[np.int64]
    entropies: npt.NDArray[np.float64]
    confidences: npt.NDArray[np.float64]
    margins: npt.NDArray[np.float64]
    log_odds: npt.NDArray[np.float64]
    class_sums: npt.NDArray[np.float64]
    probabilities: npt.NDArray[np.float64] | None = field(default=None, repr=False)


Outputs = Mapping[str, SplitOutputs]

UNSEEN = ("val", "test")

Computed = Mapping[str, float | str]
"""Metric key → value, or the reason why it was not computed."""
Compute = Callable[["MetricInputs"], Computed]


@dataclass(frozen=True, eq=False)
class MetricInputs:
    """What the metrics of one model are computed from.

    Attributes:
        model: outputs of the measured model on forget, retain and test, and on val where that was evaluated.
        original: of the original on test; empty where there is none.
        gold: of the gold standard, as ``model``; empty where there is none.
        seed: of whatever draws at random.
    """

    model: Outputs
    original: Outputs = field(default_factory=dict)
    gold: Outputs = field(default_factory=dict)
    seed: int = 0
    _computed: dict[Compute, Computed] = field(default_factory=dict, init=False, repr=False)

    @cached_property
    def forgotten(self) -> npt.NDArray[np.int64]:
        """The wholly forgotten classes ``[C]``: those in the forget set and not in the retain set, ascending."""
        return np.setdiff1d(self.model["forget"].labels, self.model["retain"].labels)

    @cached_property
    def removed(self) -> npt.NDArray[np.int64]:
        """The classes ``[C]`` of val and test that are neither retained nor forgotten: earlier requests removed them.

        The model should not know them, and they are not what is forgotten now: they count nowhere.
        """
        known = np.union1d(self.model["forget"].labels, self.model["retain"].labels)
        unseen = [self.model[split].labels for split in UNSEEN if split in self.model]
        return np.setdiff1d(np.concatenate([known[:0], *unseen]), known)

    def without_removed_classes(self) -> "MetricInputs":
        """The same without the validation and test samples of `removed` classes."""
        if not {"forget", "retain"} <= self.model.keys() or not len(self.removed):
            return self
        model, original, gold = (without_classes(one, self.removed) for one in (self.model, self.original, self.gold))
        return MetricInputs(model, original, gold, self.seed)

    def once(self, compute: Compute) -> Computed:
        """What ``compute`` makes of these inputs; it is called the first time only."""
        if compute not in self._computed:
            self._computed[compute] = compute(self)
        return self._computed[compute]


def without_classes(outputs: Outputs, classes: npt.NDArray[np.int64]) -> Outputs:
    """The outputs with those of val and test without the samples of some classes ``[C]``."""

    def left(part: SplitOutputs) -> SplitOutputs:
        keep = ~np.isin(part.labels, classes)
        by_sample = {
            name: value[keep] for name, value in vars(part).items() if name != "class_sums" and value is not None
        }
        sums = part.class_sums.copy()
        sums[classes] = 0.0
        return replace(part, class_sums=sums, **by_sample)

    return {split: left(part) if split in UNSEEN else part for split, part in outputs.items()}


def select_samples(outputs: SplitOutputs, samples: npt.NDArray[Any]) -> SplitOutputs:
    """The outputs of some samples, indices or a mask ``[N]``, of a split; raises as `concatenate_outputs`."""
    return concatenate_outputs([outputs], samples)


def concatenate_outputs(parts: Sequence[SplitOutputs], samples: npt.NDArray[Any] | None = None) -> SplitOutputs:
    """The outputs of several splits as of one, or of some ``samples`` of them, indices or a mask ``[N]``.

    Raises:
        ValueError: the probabilities of one were not kept.
    """
    if any(part.probabilities is None for part in parts):
        raise ValueError("class sums of a part need the probabilities: evaluate with keep_probabilities=True")

    def joined(name: str) -> npt.NDArray[Any]:
        whole: npt.NDArray[Any] = np.concatenate([getattr(part, name) for part in parts])
        return whole if samples is None else whole[samples]

    labels, probabilities = joined("labels"), joined("probabilities")
    sums = np.zeros_like(parts[0].class_sums)
    np.add.at(sums, labels, probabilities)
    by_sample = {name: joined(name) for name in ("predictions", "entropies", "confidences", "margins", "log_odds")}
    return SplitOutputs(labels, class_sums=sums, probabilities=probabilities, **by_sample)
