"""The frozen teacher: deterministic, so its logits are computed once where its inputs do not change."""

import zlib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset

from mlflow_unlearn.data.buffers import RowStore
from mlflow_unlearn.distributed import ranks
from mlflow_unlearn.engine.forward import forward
from mlflow_unlearn.engine.frozen_prefix import Activations, split_at
from mlflow_unlearn.engine.hardware import Hardware
from mlflow_unlearn.engine.modes import evaluating


def is_deterministic(dataset: Dataset[Any]) -> bool:
    """Whether a sample is known to be the same at every reading: tensors in memory, and what says so of itself.

    Exact types: subclasses are often there to add a random transform.
    """
    if type(dataset) is TensorDataset:
        return True
    if type(dataset) is Subset:
        return is_deterministic(dataset.dataset)
    if type(dataset) is ConcatDataset:
        return all(map(is_deterministic, dataset.datasets))
    return getattr(dataset, "deterministic", False) is True


class Teacher:
    """The original model in eval mode: its logits by set and sample, and the outputs of its frozen layers.

    A dataset not known to be deterministic is watched: the checksum of each input is kept in the first epoch and
    compared in the second; on a mismatch the cache goes off and the teacher runs in the same pass as the student.

    Attributes:
        stays_on_ranks: each rank has its own, and they change alike.
        model: the original.
        reader: what reads the batches of the loop: the model, or its part behind the split point.
        datasets: what the loop iterates: the sets themselves, or as they leave the frozen layers.
        prefix: name of the first module that is trained; None for all of them.
        passes: samples that went through the model, for reports and tests.
    """

    stays_on_ranks = True

    def __init__(
        self,
        model: nn.Module,
        datasets: Mapping[str, Dataset[Any]],
        hardware: Hardware,
        *,
        cache: bool | None = None,
        prefix: str | None = None,
    ) -> None:
        """Keep ``model`` by reference: nobody trains it. ``cache`` True or False overrides the watching.

        Raises:
            UnlearnError: the model cannot be split before ``prefix``.
        """
        self.model, self.hardware, self.prefix = model, hardware, prefix
        self.passes = 0
        self._caching = cache is not False
        self._watched = {role for role, data in datasets.items() if cache is None and not is_deterministic(data)}
        self._logits = {role: RowStore(len(data)) for role, data in datasets.items()}  # type: ignore[arg-type]
        self._checksums: dict[tuple[str, int], int] = {}
        self.reader, self.datasets = model, dict(datasets)
        if prefix is not None:
            parts = split_at(model, prefix)
            self.reader = parts.trainable_head
            # What the loop reads is made in this process, and needs no others.
            self.hardware = replace(hardware, num_workers=None)
            self.datasets = {
                role: Activations(data, parts.frozen_layers, hardware, keep=self._caching and role not in self._watched)
                for role, data in datasets.items()
            }

    @property
    def caching(self) -> bool:
        """Whether logits are (still) served from the cache."""
        return self._caching

    def fill(self, roles: Iterable[str]) -> None:
        """Compute the logits of whole sets beforehand, where they may be cached without watching."""
        for role in roles:
            if self._caching and role not in self._watched and not self._complete(role):
                self._read(role)

    def keep(self, role: str, start: int, logits: Tensor) -> None:
        """Take over ``logits [B, K]`` of the samples from ``start`` on, which another pass of the model has given."""
        if self._caching and role not in self._watched:
            self._caching = self._logits[role].put(slice(start, start + len(logits)), logits.cpu())

    def predictions(self, role: str) -> Tensor:
        """Predicted classes ``[N]`` of a set, on the CPU."""
        return self._logits[role].get(slice(None)).argmax(dim=1) if self._complete(role) else self._read(role)

    def logits(self, role: str, indices: Tensor, images: Tensor) -> Tensor:
        """The teacher's logits ``[B, K]`` for samples ``indices [B]`` of a set, whose inputs are ``images``."""
        if self._caching and role in self._watched:
            self._watch(role, indices, images)
        if not self._caching:
            return self._forward(images)
        kept = self._logits[role]
        missing = ~kept.has(indices)
        if missing.any():
            fresh = self._forward(images[missing.to(images.device)])
            self._caching = kept.put(indices[missing], fresh.cpu())
        return kept.get(indices).to(self.hardware.device) if self._caching else self._forward(images)

    def _complete(self, role: str) -> bool:
        return ranks.all_agree(self._caching and self._logits[role].complete)

    def _read(self, role: str) -> Tensor:
        """One pass over a set, whose logits are kept."""
        start, predicted = 0, []
        for logits, _ in forward(self.reader, self.datasets[role], replace(self.hardware, progress=False)):
            self.passes += len(logits)
            self.keep(role, start, logits)
            predicted.append(logits.argmax(dim=1).cpu())
            start += len(logits)
        return torch.cat(predicted)

    def _forward(self, images: Tensor) -> Tensor:
        self.passes += len(images)
        with evaluating(self.reader):
            logits = self.hardware.logits(self.reader, images, torch.zeros(len(images), dtype=torch.long))
        # A clone made outside inference mode may be saved for backward.
        return logits.clone()

    def _watch(self, role: str, indices: Tensor, images: Tensor) -> None:
        for index, image in zip(indices.tolist(), images.cpu(), strict=True):
            checksum = zlib.crc32(image.contiguous().view(torch.uint8).numpy())
            if self._checksums.setdefault((role, index), checksum) != checksum:
                self._caching = False
                return
