"""The frozen teacher: deterministic, so its logits are computed once where its inputs do not change."""

import zlib
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset

from mlflow_unlearn.data.buffers import RowStore
from mlflow_unlearn.data.functions import users_code
from mlflow_unlearn.data.splits import labels_of
from mlflow_unlearn.distributed import ranks
from mlflow_unlearn.engine.forward import forward, true_class_margins
from mlflow_unlearn.engine.frozen_prefix import Activations, split_at
from mlflow_unlearn.engine.hardware import Hardware
from mlflow_unlearn.engine.method import Datasets
from mlflow_unlearn.engine.modes import evaluating
from mlflow_unlearn.errors import UnlearnError


def is_deterministic(dataset: Dataset[Any]) -> bool:
    """Whether a sample is known to be the same each time: tensors in memory, and datasets that declare it.

    Exact types: subclasses are often there to add a random transform.
    """
    if type(dataset) is TensorDataset:
        return True
    if type(dataset) is Subset:
        return is_deterministic(dataset.dataset)
    if type(dataset) is ConcatDataset:
        return all(map(is_deterministic, dataset.datasets))
    return getattr(dataset, "deterministic", False) is True


def same_samples(one: Any, other: Any) -> bool:
    """Whether two datasets are one and the same, or hold equal tensors in memory in the same order."""
    if one is other:
        return True
    if type(one) is not type(other):
        return False
    if type(one) is TensorDataset:
        return len(one.tensors) == len(other.tensors) and all(map(_equal, one.tensors, other.tensors))
    if type(one) is Subset:
        return list(one.indices) == list(other.indices) and same_samples(one.dataset, other.dataset)
    if type(one) is ConcatDataset:
        return len(one.datasets) == len(other.datasets) and all(map(same_samples, one.datasets, other.datasets))
    return False


class Teacher:
    """The original model in eval mode: its logits by set and sample, and the outputs of its frozen layers.

    A dataset not known to be deterministic is watched: the checksum of each input is stored in the first epoch and
    compared in the second; on a mismatch the cache goes off and the teacher runs in the same pass as the student.

    Attributes:
        stays_on_ranks: each rank has its own, and they change alike.
        model: the original.
        reader: the model, or its trainable head where layers are frozen; it reads the batches of the loop.
        datasets: the splits, or their activations where layers are frozen; the loop iterates them.
        prefix: name of the first module that is trained; None for all of them.
        passes: samples that went through the model, for reports and tests.
    """

    stays_on_ranks = True

    def __init__(
        self,
        model: nn.Module,
        datasets: Datasets,
        hardware: Hardware,
        *,
        cache: bool | None = None,
        prefix: str | None = None,
    ) -> None:
        """Keep ``model`` by reference: it is never trained.

        Args:
            model: the original, images ``[N, C, H, W]`` to logits ``[N, K]``.
            datasets: by split.
            hardware: where and in which precision.
            cache: whether logits are cached; None decides by watching the inputs.
            prefix: the first module that is trained.

        Raises:
            UnlearnError: the model cannot be split before ``prefix``.
        """
        self.model, self.hardware, self.prefix = model, hardware, prefix
        self.passes = 0
        self._caching = cache is not False
        self._watched = {split for split, data in datasets.items() if cache is None and not is_deterministic(data)}
        self._logits = {split: RowStore(len(data)) for split, data in datasets.items()}  # type: ignore[arg-type]
        self._checksums: dict[tuple[str, int], int] = {}
        self.reader, self.datasets = model, dict(datasets)
        self._given, self._changes = dict(datasets), _changes(model)
        if prefix is not None:
            parts = split_at(model, prefix)
            self.reader = parts.trainable_head
            # Activations are computed in this process, and need no data-loading ones.
            self.hardware = replace(hardware, num_workers=None)
            self.datasets = {
                split: Activations(data, parts.frozen_layers, hardware, keep=self._cached_unwatched(split))
                for split, data in datasets.items()
            }

    @property
    def caching(self) -> bool:
        """Whether logits are (still) served from the cache."""
        return self._caching

    def check(self, model: nn.Module, datasets: Datasets) -> None:
        """Refuse to answer for another model or for other samples: what is cached is served by their positions.

        Raises:
            UnlearnError: the model's weights or one of the splits are not those that the teacher was made for.
        """
        if _changes(self.model) != self._changes:
            raise UnlearnError("the teacher's model has changed since it was made: make a new Teacher")
        theirs, ours = model.state_dict(), self.model.state_dict()
        if model is not self.model and not (
            theirs.keys() == ours.keys()
            and all(_equal(theirs[name].cpu(), value.cpu()) for name, value in ours.items())
        ):
            raise UnlearnError(
                "the teacher was made for another model than the one to unlearn: make a Teacher of this one"
            )
        others = [name for name, data in datasets.items() if not same_samples(data, self._given.get(name))]
        if others:
            split = others[0]
            had, has = (len(found[split]) if split in found else 0 for found in (self._given, datasets))  # type: ignore[arg-type]
            raise UnlearnError(
                f"the teacher was made for another {split} set ({had} samples; this one has {has}): it answers by the "
                "position of a sample, so make a Teacher for these splits, or pass the very same datasets"
            )

    def fill(self, splits: Iterable[str]) -> None:
        """Compute the logits of whole splits beforehand, where they may be cached without watching."""
        for split in splits:
            if self._cached_unwatched(split) and not self._complete(split):
                self.predictions(split)

    def keep(self, split: str, start: int, logits: Tensor) -> None:
        """Take over ``logits [B, K]`` of the samples from ``start`` on, computed by another pass of the model."""
        if self._cached_unwatched(split):
            self._caching = self._logits[split].put(slice(start, start + len(logits)), logits.cpu())

    @users_code("the model or its data")
    def predictions(self, split: str) -> Tensor:
        """Predicted classes ``[N]`` of a split, on the CPU."""
        return torch.cat([logits.argmax(dim=1).cpu() for logits in self._all_logits(split)])

    @users_code("the model or its data")
    def entropies(self, split: str) -> Tensor:
        """Entropies ``[N]`` of the softmax outputs on a split, nats, float64, on the CPU."""
        outputs = (torch.log_softmax(logits.double(), dim=1) for logits in self._all_logits(split))
        return torch.cat([-(log_p.exp() * log_p).sum(dim=1).cpu() for log_p in outputs]).clamp_min(0)

    @users_code("the model or its data")
    def margins(self, split: str) -> Tensor:
        """Margins ``[N]`` of the true class on a split, float64, on the CPU: see `true_class_margins`."""
        outputs = torch.cat([logits.cpu() for logits in self._all_logits(split)])
        return true_class_margins(outputs, labels_of(self._given[split]))

    def logits(self, split: str, indices: Tensor, images: Tensor) -> Tensor:
        """The teacher's logits ``[B, K]`` for samples ``indices [B]`` of a split, whose inputs are ``images``."""
        if self._caching and split in self._watched:
            self._watch(split, indices, images)
        if not self._caching:
            return self._forward(images)
        cached = self._logits[split]
        missing = ~cached.has(indices)
        if missing.any():
            computed = self._forward(images[missing.to(images.device)])
            self._caching = cached.put(indices[missing], computed.cpu())
        return cached.get(indices).to(self.hardware.device) if self._caching else self._forward(images)

    def complete_splits(self) -> set[str]:
        """Splits whose logits are all known."""
        return {split for split in self._logits if self._complete(split)}

    def saved(self, without: Iterable[str]) -> dict[str, Any]:
        """What has been computed, to be put back by `load`: logits ``[M, K]`` by split and sample, and checksums.

        Computed again with other samples in the batch, they might differ in the last bit.

        Args:
            without: splits that are left out, whose logits will be there anyway.
        """
        index = {split: rows.has(slice(None)).nonzero().flatten() for split, rows in self._logits.items()}
        return {
            "caching": self._caching,
            "rows": {
                split: [known, self._logits[split].get(known)]
                for split, known in index.items()
                if self._caching and len(known) and split not in without
            },
            "checksums": [[*key, value] for key, value in self._checksums.items()],
        }

    def load(self, saved: dict[str, Any]) -> None:
        """Put back what `saved` gave."""
        self._caching = saved["caching"]
        self._checksums = {(split, index): value for split, index, value in saved["checksums"]}
        for split, (known, rows) in saved["rows"].items():
            self._logits[split].put(known, rows)

    def _cached_unwatched(self, split: str) -> bool:
        return self._caching and split not in self._watched

    def _complete(self, split: str) -> bool:
        return ranks.all_agree(self._caching and self._logits[split].complete)

    def _all_logits(self, split: str) -> Iterator[Tensor]:
        """Logits ``[B, K]`` of a whole split in order: from the cache, or by a pass that fills it."""
        if self._complete(split):
            yield self._logits[split].get(slice(None))
            return
        start = 0
        for logits, _ in forward(self.reader, self.datasets[split], replace(self.hardware, progress=False)):
            self.passes += len(logits)
            self.keep(split, start, logits)
            start += len(logits)
            yield logits

    def _forward(self, images: Tensor) -> Tensor:
        self.passes += len(images)
        with evaluating(self.reader):
            logits = self.hardware.logits(self.reader, images, torch.zeros(len(images), dtype=torch.long))
        # A clone made outside inference mode may be saved for backward.
        return logits.clone()

    def _watch(self, split: str, indices: Tensor, images: Tensor) -> None:
        for index, image in zip(indices.tolist(), images.cpu(), strict=True):
            checksum = zlib.crc32(image.contiguous().view(torch.uint8).numpy())
            if self._checksums.setdefault((split, index), checksum) != checksum:
                self._caching = False
                return


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one, other)


def _changes(model: nn.Module) -> list[int]:
    """How often each tensor of the state dict has been changed in place."""
    return [0 if value.is_inference() else value._version for value in model.state_dict().values()]
