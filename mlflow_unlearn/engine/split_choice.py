"""Where to split a model whose first layers are to stay: the last place in front of which the memory does not show.

Depth alone does not tell: a frozen prefix that reaches behind the layers that memorise keeps the memory, whatever is
trained behind it. So it is measured, without a gold standard and without training the model: a linear probe of the
activations at each place learns the retain set, and the probe's margins of the forget set are compared with those of
unseen samples.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from mlflow_unlearn.engine.forward import true_class_margins
from mlflow_unlearn.engine.hardware import checked_logits
from mlflow_unlearn.engine.method import SplitName
from mlflow_unlearn.engine.modes import evaluating
from mlflow_unlearn.metrics.advantage import advantage

Floats = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]

FEATURES = 512
"""Of a probe; wider activations are projected on so many random directions."""
GRID = 4
"""Places a side to which a map of activations is averaged."""
RIDGE = 1e-3
"""Penalty of the probe, as a fraction of the mean variance of its features."""
PERMUTATIONS = 200


@dataclass(frozen=True)
class SplitMemory:
    """What the layers in front of a split show of the forget set.

    Attributes:
        name: of the module behind the split.
        distance: `mlflow_unlearn.metrics.advantage.advantage` by the probe's margin, in ``[0, 1]``.
        null: its 95 % quantile under permutation within classes.
    """

    name: str
    distance: float
    null: float

    @property
    def shows(self) -> bool:
        """Whether the forget set stands out."""
        return self.distance > self.null


def pooled(activations: Tensor) -> Tensor:
    """``[B, …]`` as ``[B, F]``: maps ``[B, C, H, W]`` averaged to `GRID` × `GRID`, tokens ``[B, N, D]`` over N.

    >>> pooled(torch.ones(2, 3, 8, 8)).shape, pooled(torch.ones(2, 7, 5)).shape, pooled(torch.ones(2, 6)).shape
    (torch.Size([2, 48]), torch.Size([2, 5]), torch.Size([2, 6]))
    """
    if activations.ndim == 4:
        height, width = (min(GRID, side) for side in activations.shape[2:])
        return nn.functional.adaptive_avg_pool2d(activations, (height, width)).flatten(1)
    if activations.ndim == 3:
        return activations.mean(dim=1)
    return activations.flatten(1)


def features(
    model: nn.Module, names: Sequence[str], batches: Iterable[tuple[Tensor, Tensor]], generator: torch.Generator
) -> tuple[dict[str, Floats], Labels]:
    """By module the features ``[N, F]`` of what it is given, F ≤ `FEATURES`, and the labels ``[N]``; one forward pass.

    Args:
        model: in eval mode while this runs.
        names: of modules; one that is not given a tensor is left out.
        batches: images ``[B, C, H, W]`` and labels ``[B]``.
        generator: of the projections, on the CPU; the same state gives the same ones.
    """
    given: dict[str, Tensor] = {}
    found: dict[str, list[Tensor]] = {name: [] for name in names}
    projections: dict[str, Tensor] = {}
    labels = []

    def keep(name: str) -> Callable[[nn.Module, tuple[object, ...]], None]:
        def hook(_: nn.Module, inputs: tuple[object, ...]) -> None:
            if inputs and isinstance(inputs[0], Tensor) and inputs[0].is_floating_point():
                given[name] = pooled(inputs[0]).float().cpu()

        return hook

    with ExitStack() as stack:
        for name in names:
            stack.callback(model.get_submodule(name).register_forward_pre_hook(keep(name)).remove)
        stack.enter_context(evaluating(model))
        for images, some in batches:
            checked_logits(model(images), some)
            labels.append(some.cpu())
            for name, values in given.items():
                width = values.shape[1]
                if width > FEATURES and name not in projections:
                    projections[name] = torch.randn(width, FEATURES, generator=generator) / width**0.5
                found[name].append(values @ projections[name] if name in projections else values)
            given.clear()
    kept = {name: torch.cat(parts).double().numpy() for name, parts in found.items() if len(parts) == len(labels)}
    return kept, torch.cat(labels).numpy()


def margins(train: tuple[Floats, Labels], features: Floats, labels: Labels, num_classes: int) -> Floats:
    """Margins ``[N]`` of a ridge regression on one-hot labels: the true class's output less the next best.

    Args:
        train: features ``[M, F]`` and labels ``[M]`` that it learns.
        features: ``[N, F]``.
        labels: ``[N]``.
        num_classes: K.
    """
    known, classes = train
    mean, spread = known.mean(axis=0), known.std(axis=0)
    scale = np.where(spread > 1e-9, spread, 1.0)
    x = np.column_stack([(known - mean) / scale, np.ones(len(known))])
    gram = x.T @ x + RIDGE * len(x) * np.eye(x.shape[1])
    weights = np.linalg.solve(gram, x.T @ np.eye(num_classes)[classes])
    outputs = np.column_stack([(features - mean) / scale, np.ones(len(features))]) @ weights
    result: Floats = true_class_margins(torch.from_numpy(outputs), torch.from_numpy(labels)).numpy()
    return result


def memory_by_split(
    model: nn.Module,
    names: Sequence[str],
    batches: Mapping[SplitName, Iterable[tuple[Tensor, Tensor]]],
    num_classes: int,
    seed: int,
) -> list[SplitMemory]:
    """What each place shows of the forget set, in the order of ``names``.

    Args:
        model: the original.
        names: modules to split before, front to back.
        batches: images and labels of "retain", "forget" and "val"; each is read once.
        num_classes: K.
        seed: of projections and permutations.

    Raises:
        ValueError: no class of the forget set occurs in the validation set.
    """
    sets = {split: features(model, names, part, torch.Generator().manual_seed(seed)) for split, part in batches.items()}
    (retain, learned), (forget, forgotten), (unseen, others) = (sets[split] for split in ("retain", "forget", "val"))
    found = []
    for name in names:
        if name not in retain:
            continue
        probe = retain[name], learned
        mine = margins(probe, forget[name], forgotten, num_classes)
        theirs = margins(probe, unseen[name], others, num_classes)
        shown = advantage(mine, theirs, forgotten, others, num_classes, seed=seed, permutations=PERMUTATIONS)
        if shown is None:
            raise ValueError("no class of the forget set occurs in the validation set")
        found.append(SplitMemory(name, shown.sides.advantage, shown.null.q95))
    return found


def chosen_split(memory: Sequence[SplitMemory]) -> str:
    """The place in front of the first one that shows the forget set: nothing before it does; the first one at least."""
    chosen = memory[0].name
    for split in memory:
        if split.shows:
            break
        chosen = split.name
    return chosen
