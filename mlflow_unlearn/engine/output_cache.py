"""Outputs of a model over a split, cached between commands: the same weights see the same samples once.

The cache key covers all that the outputs depend on, and what the model answers to a few of the samples. Where one part
is unknown, nothing is cached: a transform or a dataset of the user's own that reads from elsewhere, a class whose
source is not to be found, an attribute whose state cannot be seen, a model that answers differently each time.
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset

from mlflow_unlearn import cache
from mlflow_unlearn.data.batching import LARGEST_BATCH, forward_batch, gather, in_memory, in_order
from mlflow_unlearn.data.datasets import ImageDataset, KeptDataset
from mlflow_unlearn.data.fingerprints import module_digest
from mlflow_unlearn.data.source import ImageStore
from mlflow_unlearn.data.transforms import PixelTransform
from mlflow_unlearn.distributed import ranks
from mlflow_unlearn.engine.architectures import weights_digest
from mlflow_unlearn.engine.forward import forward
from mlflow_unlearn.engine.hardware import Hardware, processor
from mlflow_unlearn.rng import isolated_rng

LARGEST = 1 << 28
"""Bytes of logits of one set that are worth a file."""

SAMPLES = 16
"""Whose outputs are a model's fingerprint on a split."""

CacheKey = Mapping[str, Any]


def cached_forward(
    model: nn.Module, dataset: Dataset[Any], hardware: Hardware, cache_key: CacheKey | None, *, description: str
) -> Iterator[tuple[Tensor, Tensor]]:
    """`forward`, from the cache where these outputs have been computed before.

    Args:
        model: images ``[N, C, H, W]`` to logits ``[N, K]``.
        dataset: images and labels, by sample.
        hardware: where and in which precision.
        cache_key: by `model_cache_key`; None: no cache.
        description: on the progress bar.

    Returns:
        Logits ``[B, K]`` and labels ``[B]`` of each batch, in order.
    """
    data = None if cache_key is None or _size(model, dataset) > LARGEST else data_digest(dataset)
    answers = None if data is None else fingerprint(model, dataset, hardware)
    if cache_key is None or answers is None:
        yield from forward(model, dataset, hardware, description=description)
        return

    def make() -> cache.Arrays:
        computed = [(a.cpu(), b.cpu()) for a, b in forward(model, dataset, hardware, description=description)]
        logits, labels = (torch.cat(parts) for parts in zip(*computed, strict=True))
        return {"logits": logits.numpy(), "labels": labels.numpy()}

    size = forward_batch(dataset, hardware.device)
    cached = cache.arrays("outputs", {**cache_key, "data": data, "batch": size, "answers": answers}, make)
    logits, labels = torch.from_numpy(cached["logits"]), torch.from_numpy(cached["labels"])
    for batch in in_order(dataset, size):
        part = slice(batch.start, batch.stop)
        yield logits[part].to(hardware.device), labels[part].to(hardware.device)


def model_cache_key(model: nn.Module, hardware: Hardware) -> CacheKey | None:
    """What outputs depend on beside the samples; None where nothing is cached, or the model's code is unknown."""
    code = None if cache.off() or ranks.size() > 1 else module_digest(model)
    if code is None:
        return None
    return {
        "weights": weights_digest(model),
        "code": code,
        "numerics": [hardware.precision, hardware.channels_last, torch.get_num_threads()],
        "processor": processor(hardware.device),
    }


def fingerprint(model: nn.Module, dataset: Dataset[Any], hardware: Hardware) -> str | None:
    """SHA-256 of the logits of a few samples, evenly spread; None where a second pass gives others.

    It shows what no other part of a key does: a global variable that the model reads, a class changed at run time.

    Args:
        model: images ``[N, C, H, W]`` to logits ``[N, K]``.
        dataset: images and labels, by sample.
        hardware: where and in which precision.
    """
    count = len(dataset)  # type: ignore[arg-type]
    if not count:
        return None
    some = Subset(dataset, np.unique(np.linspace(0, count - 1, SAMPLES).astype(int)).tolist())
    found = []
    for seed in range(2):
        with isolated_rng(seed):
            passes = forward(model, some, replace(hardware, progress=False, num_workers=0))
            logits = torch.cat([logits.cpu() for logits, _ in passes])
        found.append(hashlib.sha256(logits.contiguous().numpy().tobytes()).hexdigest())
    return found[0] if found[0] == found[1] else None


def data_digest(dataset: Dataset[Any]) -> str | None:
    """SHA-256 over samples in memory, or over the ids, sizes and times of their files; None where unknown."""
    digest = hashlib.sha256()
    if isinstance(dataset, KeptDataset):
        return data_digest(dataset.images)
    if isinstance(dataset, ImageDataset):
        stamped = _stamp(dataset.split.images, digest.update)
        transform = dataset.transform
        if not stamped or not isinstance(transform, PixelTransform):
            return None
        digest.update(f"{transform.channels} {transform.crop} {transform.normalise}".encode())
        digest.update(dataset.labels.numpy().tobytes())
        return digest.hexdigest()
    if isinstance(dataset, Subset) and not in_memory(dataset):
        whole = data_digest(dataset.dataset)
        return whole and hashlib.sha256(f"{whole} {list(dataset.indices)}".encode()).hexdigest()
    if not in_memory(dataset):
        return None
    for batch in in_order(dataset, LARGEST_BATCH):
        images, labels = gather(dataset, batch)
        digest.update(f"{images.dtype} {list(images.shape)} {labels.dtype}".encode())
        digest.update(images.contiguous().view(torch.uint8).numpy().tobytes())
        digest.update(labels.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _stamp(images: Dataset[Any], update: Callable[[bytes], None]) -> bool:
    """Pass ``update`` what the samples' content depends on; False where that is unknown."""
    if not isinstance(images, ImageStore):
        return False
    stamps: dict[Path, bytes] = {}
    for row in images.rows.tolist():
        key = images.keys[row]
        if isinstance(key, np.ndarray):
            update(f"{key.dtype} {key.shape}".encode() + key.tobytes())
        elif images.file is None:
            return False
        else:
            file = images.file(key)
            if file not in stamps:
                found = os.stat(file)
                stamps[file] = f"{file} {found.st_size} {found.st_mtime_ns} {found.st_ctime_ns}".encode()
            update(f"{key} ".encode() + stamps[file])
    return True


def _size(model: nn.Module, dataset: Dataset[Any]) -> int:
    """Bytes of the logits, by the outputs of the last layer that has any."""
    widths = [p.shape[0] for p in model.parameters() if p.ndim == 2]
    return 4 * len(dataset) * (widths[-1] if widths else 1)  # type: ignore[arg-type]
