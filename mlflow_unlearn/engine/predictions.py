"""One forward pass over a split, and what it leaves for the metrics."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset

from mlflow_unlearn.data.functions import users_code
from mlflow_unlearn.data.splits import Splits
from mlflow_unlearn.distributed.ranks import on_all_ranks
from mlflow_unlearn.engine.features import last_features
from mlflow_unlearn.engine.forward import true_class_log_odds, true_class_margins
from mlflow_unlearn.engine.hardware import Hardware
from mlflow_unlearn.engine.output_cache import CacheKey, cached_forward, model_cache_key
from mlflow_unlearn.engine.teacher import Teacher
from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.metrics.attacks.suite import Target
from mlflow_unlearn.metrics.outputs import Outputs, SplitOutputs

SPLIT_NAMES = ("forget", "retain", "val", "test")
TEACHER_SPLITS = ("forget", "retain", "val")
"""The splits on which methods ask the original."""


@users_code("the model or its data")
def evaluate_split(
    model: nn.Module,
    dataset: Dataset[Any],
    hardware: Hardware,
    *,
    keep_probabilities: bool = False,
    keep_logits: Callable[[int, torch.Tensor], None] | None = None,
    cache_key: CacheKey | None = None,
    description: str = "evaluating",
) -> SplitOutputs:
    """One pass over ``dataset`` in eval mode; the model is left as it was found.

    Args:
        model: images ``[N, C, H, W]`` to logits ``[N, K]``.
        dataset: images and labels, by sample.
        hardware: where and in which precision.
        keep_probabilities: whether the outputs include the probabilities ``[N, K]``.
        keep_logits: called for each batch with the index of its first sample and its logits ``[B, K]``.
        cache_key: of the model, by `model_cache_key`: the logits come from the cache, or go there.
        description: on the progress bar.

    Raises:
        UnlearnError: the model's outputs are not finite logits ``[N, K]``.
    """
    labels, predictions, entropies, confidences, margins, log_odds, probabilities = [], [], [], [], [], [], []
    sums: torch.Tensor | None = None
    for logits, batch_labels in cached_forward(model, dataset, hardware, cache_key, description=description):
        # float64: the entropies of confident outputs differ far below float32's resolution of a probability near 1.
        log_p = torch.log_softmax(logits.double(), dim=1)
        if not torch.isfinite(log_p).all():
            raise UnlearnError("the model's outputs are not finite: its weights, or its inputs, hold NaN or infinity")
        p = log_p.exp()
        if sums is None:
            sums = torch.zeros(p.shape[1], p.shape[1], dtype=torch.float64, device=p.device)
        sums.index_add_(0, batch_labels, p)
        labels.append(batch_labels.cpu())
        largest, predicted = p.max(dim=1)
        predictions.append(predicted.cpu())
        confidences.append(largest.cpu())
        entropies.append(-(p * log_p).sum(dim=1).cpu())
        margins.append(true_class_margins(logits, batch_labels).cpu())
        log_odds.append(true_class_log_odds(logits, batch_labels).cpu())
        if keep_probabilities:
            probabilities.append(p.cpu())
        if keep_logits is not None:
            keep_logits(sum(map(len, labels[:-1])), logits)
    if sums is None:
        raise UnlearnError("there is no sample to evaluate")
    return SplitOutputs(
        torch.cat(labels).numpy(),
        torch.cat(predictions).numpy(),
        torch.cat(entropies).clamp_min(0).numpy(),
        torch.cat(confidences).numpy(),
        torch.cat(margins).numpy(),
        torch.cat(log_odds).numpy(),
        sums.cpu().numpy(),
        torch.cat(probabilities).numpy() if probabilities else None,
    )


@users_code("the model or its data")
def attack_target(model: nn.Module, splits: Splits, hardware: Hardware, *, name: str = "model") -> Target:
    """What attacks read of a model: one pass over the forget and the test set, which leaves outputs and features.

    Args:
        model: images ``[N, C, H, W]`` to logits ``[N, K]``; left as it was found.
        splits: the four sets.
        hardware: where and in which precision.
        name: of the model, on the progress bars.

    Raises:
        UnlearnError: as `evaluate_split`.
    """
    placed = hardware.place(copy.deepcopy(model))
    outputs, features = {}, {}
    for split in ("forget", "test"):
        with last_features(placed) as caught:
            outputs[split] = evaluate_split(
                placed,
                getattr(splits, split),
                hardware,
                keep_probabilities=split == "forget",
                description=f"evaluating {name} on {split}",
            )
        if caught:
            features[split] = torch.cat(caught).numpy()
    return Target(outputs, features or None)


@on_all_ranks
@users_code("the model or its data")
def evaluate_splits(
    model: nn.Module,
    splits: Splits,
    hardware: Hardware,
    *,
    only: tuple[str, ...] = SPLIT_NAMES,
    name: str = "model",
    teacher: Teacher | None = None,
    cached: bool = False,
) -> Outputs:
    """`evaluate_split` each of the splits, or ``only`` some, on a copy where the model has to move.

    Args:
        model: images ``[N, C, H, W]`` to logits ``[N, K]``; left as it was found.
        splits: the four sets.
        hardware: where and in which precision.
        only: their names.
        name: of the model, on the progress bars.
        teacher: of the same model, which takes over the logits.
        cached: use the outputs that an earlier command left in the cache, and leave them there for later ones; not
            those of the forget set, of which no trace is to stay.

    Raises:
        UnlearnError: as `evaluate_split`.
    """
    device = next((p.device for p in model.parameters()), hardware.device)
    if device != hardware.device or hardware.channels_last:
        model = hardware.place(copy.deepcopy(model))
    cache_key = model_cache_key(model, hardware) if cached else None
    return {
        split: evaluate_split(
            model,
            getattr(splits, split),
            hardware,
            keep_probabilities=split == "forget",
            cache_key=cache_key if split != "forget" else None,
            keep_logits=partial(teacher.keep, split) if teacher is not None and split in TEACHER_SPLITS else None,
            description=f"evaluating {name} on {split}",
        )
        for split in only
    }
