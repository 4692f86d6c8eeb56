"""What a model learns beside its weights, and which weights are not drawn at random: with either nothing is exact."""

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mlflow_unlearn.errors import shortlist
from mlflow_unlearn.evidence.record import Exactness
from mlflow_unlearn.rng import isolated_rng

_OWN = frozenset(vars(nn.Module()))
"""Attributes of every module: parameters, hooks, whether it is trained."""
SEEDS = 1, 2


def beside_the_weights(model: nn.Module) -> dict[str, str]:
    """Digests of what no state dict has, by name: buffers that are not persistent, and values in attributes."""
    known = {value.data_ptr() for value in (*model.parameters(), *model.buffers())}
    found = {}
    for name, module in model.named_modules():
        mine = {key: value for key, value in vars(module).items() if key not in _OWN}
        mine |= {key: module._buffers[key] for key in module._non_persistent_buffers_set}
        for key, value in mine.items():
            digest = hashlib.sha256()
            for part in _parts(value, known if key in vars(module) else frozenset()):
                digest.update(part)
            found[f"{name}.{key}".removeprefix(".")] = digest.hexdigest()
    return found


def _parts(value: Any, known: Iterable[int]) -> Iterator[bytes]:
    """Of numbers, texts, tensors and arrays, also inside of collections; other objects and weights count as nothing."""
    if isinstance(value, Tensor):
        if value.data_ptr() not in known:
            yield value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
    elif isinstance(value, np.ndarray):
        yield value.tobytes()
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield repr(key).encode()
            yield from _parts(inner, known)
    elif isinstance(value, list | tuple | deque):
        for inner in value:
            yield from _parts(inner, known)
    elif isinstance(value, set | frozenset):
        yield repr(sorted(map(repr, value))).encode()
    elif value is None or isinstance(value, bool | int | float | complex | str | bytes | np.generic):
        yield repr(value).encode()


def changed(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """What training has changed of it."""
    return sorted(name for name in {*before, *after} if before.get(name) != after.get(name))


def is_constant(value: Tensor) -> bool:
    """Whether all elements are one, as initial scales and biases are."""
    return value.numel() == 0 or bool((value == value.flatten()[0]).all())


def is_default(value: Tensor) -> bool:
    """Whether all elements are 0 or all are 1, which training has not left there."""
    return is_constant(value) and (value.numel() == 0 or value.flatten()[0].item() in (0, 1))


def not_drawn(build: Callable[[], nn.Module]) -> list[str]:
    """Parameters that a builder gives the same values whatever the seed: they come from somewhere else."""
    states = []
    for seed in SEEDS:
        with isolated_rng(seed):
            states.append(dict(build().named_parameters()))
    first, second = states
    return [
        name
        for name, value in first.items()
        if name in second and torch.equal(value, second[name]) and not is_constant(value)
    ]


def doubted(claim: Exactness | None, names: Iterable[str], what: str) -> Exactness | None:
    """A claim that is no longer exact where something may have kept what the samples were.

    Args:
        claim: of the training.
        names: of what may have.
        what: about them, behind their names.
    """
    if claim is None or not (listed := list(names)):
        return claim
    sentence = f"{shortlist(listed)}: {what}."
    return claim.model_copy(update={"kind": "approximate", "excludes": [*claim.excludes, sentence]})


BESIDE = "changed in training and in no state dict, so that it stayed from before"
GIVEN = "not drawn at random by what builds the model, so that it may have learned of the samples before"
STAYED = "not drawn anew, so that it stayed, with whatever it has learned"
