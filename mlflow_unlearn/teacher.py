"""The frozen teacher: deterministic, so its logits are computed once where its inputs do not change."""

import zlib
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset, TensorDataset

from mlflow_unlearn.compute import autocast, evaluating
from mlflow_unlearn.forward import BATCH_SIZE, Hardware, checked_logits


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
    """The original model in eval mode with a cache of its logits by set and sample.

    A dataset not known to be deterministic is watched: the checksum of each input is kept in the first epoch and
    compared in the second; on a mismatch the cache goes off and the teacher runs in the same pass as the student.

    Attributes:
        passes: samples that went through the model, for reports and tests.
    """

    def __init__(
        self, model: nn.Module, datasets: Mapping[str, Dataset[Any]], hardware: Hardware, *, cache: bool | None = None
    ) -> None:
        """Keep ``model`` by reference: nobody trains it. ``cache`` True or False overrides the watching."""
        self.model, self.hardware = model, hardware
        self.passes = 0
        self._caching = cache is not False
        self._watched = {role for role, data in datasets.items() if cache is None and not is_deterministic(data)}
        self._sizes = {role: len(data) for role, data in datasets.items()}  # type: ignore[arg-type]
        self._logits: dict[str, Tensor] = {}
        self._known: dict[str, Tensor] = {}
        self._checksums: dict[tuple[str, int], int] = {}

    @property
    def caching(self) -> bool:
        """Whether logits are (still) served from the cache."""
        return self._caching

    def fill(self, datasets: Mapping[str, Dataset[Any]], roles: Iterable[str]) -> None:
        """Compute the logits of whole sets beforehand, where they may be cached without watching."""
        for role in roles:
            if self._caching and role not in self._watched:
                start = 0
                loader = DataLoader(
                    datasets[role],
                    BATCH_SIZE,
                    num_workers=self.hardware.num_workers,
                    generator=torch.Generator(),  # not the caller's global one
                )
                for images, _ in loader:
                    self.logits(role, torch.arange(start, start + len(images)), images)
                    start += len(images)

    def logits(self, role: str, indices: Tensor, images: Tensor) -> Tensor:
        """The teacher's logits ``[B, K]`` for samples ``indices [B]`` of a set, whose inputs are ``images``."""
        if self._caching and role in self._watched:
            self._watch(role, indices, images)
        if not self._caching:
            return self._forward(images)
        known = self._known.setdefault(role, torch.zeros(self._sizes[role], dtype=torch.bool))
        missing = ~known[indices]
        if missing.any():
            fresh = self._forward(images[missing])
            if role not in self._logits:
                # Pages of rows that are never asked for are never touched.
                self._logits[role] = torch.empty(self._sizes[role], fresh.shape[1])
            self._logits[role][indices[missing]] = fresh.cpu()
            known[indices[missing]] = True
        return self._logits[role][indices].to(self.hardware.device)

    def _forward(self, images: Tensor) -> Tensor:
        self.passes += len(images)
        images = images.to(self.hardware.device)
        with evaluating(self.model), autocast(self.hardware.precision, self.hardware.device):
            output: Tensor = self.model(images)
        # A clone made outside inference mode may be saved for backward.
        return checked_logits(output, torch.zeros(len(images), dtype=torch.long)).clone()

    def _watch(self, role: str, indices: Tensor, images: Tensor) -> None:
        for index, image in zip(indices.tolist(), images.cpu(), strict=True):
            checksum = zlib.crc32(image.contiguous().view(torch.uint8).numpy())
            if self._checksums.setdefault((role, index), checksum) != checksum:
                self._caching = False
                return
