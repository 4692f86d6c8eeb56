"""Frozen layers: those before a split point run once, their outputs are stored, and only the head is trained.

The model is split where the graph of its forward pass narrows to one tensor. Only the modules around that point are
traced (`torch.fx`); all others stay as they are, so that dropout and BatchNorm of the trained part follow its mode.

Frozen layers cannot forget what they encode.
"""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils.data import Dataset

from mlflow_unlearn.console import first_line
from mlflow_unlearn.data.batching import forward_batch, gather
from mlflow_unlearn.data.buffers import RowStore
from mlflow_unlearn.data.splits import labels_of, wholly_forgotten
from mlflow_unlearn.distributed import ranks
from mlflow_unlearn.engine.hardware import Hardware
from mlflow_unlearn.engine.method import Datasets
from mlflow_unlearn.engine.modes import evaluating, in_mode
from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.spelling import spelled


@dataclass(frozen=True)
class SplitModel:
    """A model in two parts that share its modules: ``model(x) == trainable_head(frozen_layers(x))``.

    Attributes:
        frozen_layers: images ``[B, C, H, W]`` → activations ``[B, …]``.
        trainable_head: activations → logits ``[B, K]``; training it trains the model.
    """

    frozen_layers: fx.GraphModule
    trainable_head: fx.GraphModule


def split_at(model: nn.Module, name: str) -> SplitModel:
    """Split ``model`` before its module ``name``, the first one that is to be trained.

    Raises:
        UnlearnError: there is no such module, or the model cannot be split there, and why.
    """
    modules = dict(model.named_modules())
    if name not in modules or not name:
        raise UnlearnError(f"the model has no module {name!r} to cut before: it has {', '.join(_near(modules, name))}")
    graph = _trace(model, name)
    # Both parts keep the modes of their modules, but a mode that the forward pass itself reads is fixed by tracing.
    if str(_trace(model, name, training=True)) != str(graph):
        raise UnlearnError(
            f"the model cannot be cut before {name!r}: its forward pass does one thing in training and another after, "
            f"outside of its modules; make them modules such as nn.Dropout, or use {spelled('prefix', 'none')}"
        )
    nodes = list(graph.nodes)
    start = next(
        (i for i, node in enumerate(nodes) if node.op == "call_module" and f"{node.target}.".startswith(f"{name}.")),
        None,
    )
    if start is None:
        raise UnlearnError(f"the model cannot be cut before {name!r}: its forward pass does not call that module")
    # A parameter that only the head reads may have been fetched before it.
    before = [node for node in nodes[:start] if node.op != "get_attr" or any(u in nodes[:start] for u in node.users)]
    after = [node for node in nodes if node not in before]
    crossing = [node for node in before if node.op != "get_attr" and any(user in after for user in node.users)]
    if [node.op for node in crossing] == ["placeholder"]:
        raise UnlearnError(f"there is nothing before {name!r}: give a later module, or {spelled('prefix', 'none')}")
    if len(crossing) != 1:
        raise UnlearnError(
            f"the model cannot be cut before {name!r}: {len(crossing)} tensors cross there, and it must be one; "
            "cut between its blocks"
        )
    frozen, head = _part(model, before, output=crossing[0]), _part(model, after, boundary=crossing[0])
    if _tensors(frozen) & _tensors(head):
        raise UnlearnError(
            f"the model cannot be cut before {name!r}: layers before and after it share parameters or statistics; cut "
            f"elsewhere, or use {spelled('prefix', 'none')}"
        )
    return SplitModel(frozen, head)


def split_points(model: nn.Module) -> list[str]:
    """Where ``model`` can be split, from front to back: before its children, and before the blocks of long stacks."""
    return list(_split_points(model))


def can_be_split(model: nn.Module) -> bool:
    """Whether `split_points` finds any."""
    return next(_split_points(model), None) is not None


def _split_points(model: nn.Module) -> Iterator[str]:
    names = []
    for name, _ in model.named_modules():
        stack = model.get_submodule(name.rpartition(".")[0]) if name else model
        if isinstance(model.get_submodule(name), nn.ModuleList):
            continue  # which is never called itself
        # The blocks of a stage of four count as one.
        if name and (stack is model or (isinstance(stack, nn.Sequential) and len(stack) > STAGE)):
            names.append(name)
    last = ""
    behind: set[int] = set()
    for name in names:
        try:
            head = _tensors(split_at(model, name).trainable_head)
        except UnlearnError:
            continue
        # A module and the first one inside it begin at the same place.
        if not (head == behind and name.startswith(f"{last}.")):
            last = name
            yield name
        behind = head


STAGE = 4


def depth_behind(model: nn.Module, name: str) -> float:
    """Fraction of the weights (tensors of two dimensions or more, one a layer) behind the split at ``name``."""
    head = split_at(model, name).trainable_head
    return sum(p.ndim > 1 for p in head.parameters()) / sum(p.ndim > 1 for p in model.parameters())


def auto(model: nn.Module) -> str:
    """The last split point with at least a quarter of the depth behind it, by `depth_behind`; see docs/prefix.md.

    Raises:
        UnlearnError: ``model`` can be split nowhere.
    """
    for name in reversed(split_points(model)):
        if depth_behind(model, name) >= DEPTH:
            return name
    raise UnlearnError(
        f"{spelled('prefix', 'auto')} finds no place where the model can be cut: name a module, or use "
        f"{spelled('prefix', 'none')}"
    )


DEPTH = 0.25


def resolve(model: nn.Module, prefix: str, datasets: Datasets) -> str | None:
    """The module to split before, by the user's option: its name, "auto", or "none" for no frozen prefix.

    "auto" freezes nothing where a class is forgotten wholly: a ViT with frozen layers forgets it far less
    (docs/prefix.md).

    Raises:
        UnlearnError: "auto", and ``model`` can be split nowhere.
    """
    if prefix != "auto":
        return None if prefix == "none" else prefix
    forgotten = wholly_forgotten(labels_of(datasets["forget"]), labels_of(datasets["retain"]))
    return None if len(forgotten) else auto(model)


class _Tracer(fx.Tracer):
    """Traces into the modules that contain the split point, and into no others."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return not self.name.startswith(f"{module_qualified_name}.")


def _tensors(module: nn.Module) -> set[int]:
    return {id(tensor) for tensor in (*module.parameters(), *module.buffers())}


def _trace(model: nn.Module, name: str, *, training: bool = False) -> fx.Graph:
    options = inspect.signature(model.forward).parameters.values()
    defaults = {option.name: option.default for option in options if option.default is not option.empty}
    try:
        with in_mode(model, training):
            return _Tracer(name).trace(model, concrete_args=defaults)
    except Exception as error:  # A forward pass may do anything that cannot be traced.
        raise UnlearnError(
            f"the model cannot be cut before {name!r}: its forward pass cannot be traced ({type(error).__name__}: "
            f"{first_line(error)}); use {spelled('prefix', 'none')}"
        ) from error


def _part(
    model: nn.Module, nodes: Sequence[fx.Node], *, boundary: fx.Node | None = None, output: fx.Node | None = None
) -> fx.GraphModule:
    graph = fx.Graph()
    copied: dict[fx.Node, fx.Node] = {}
    if boundary is not None:
        copied[boundary] = graph.placeholder("activations")
    for node in nodes:
        copied[node] = graph.node_copy(node, copied.__getitem__)
    if output is not None:
        graph.output(copied[output])
    return fx.GraphModule(model, graph)


def _near(modules: Mapping[str, nn.Module], name: str) -> list[str]:
    depth = name.count(".")
    return [other for other in modules if other and other.count(".") <= depth][:12]


class Activations(Dataset[tuple[Tensor, int]]):
    """A split as it leaves the frozen layers: ``(activations, label)``, computed at first use and then stored.

    Where the samples change each time they are read, or there is no room, they are computed each time.

    Attributes:
        deterministic: whether they are stored.
        in_memory: always: data-loading processes read the images, but the frozen layers run in this process.
    """

    in_memory = True

    def __init__(self, dataset: Dataset[Any], frozen_layers: nn.Module, hardware: Hardware, *, keep: bool) -> None:
        """Keep ``frozen_layers`` by reference: they are never trained.

        Args:
            dataset: images and labels, by sample.
            frozen_layers: images ``[B, C, H, W]`` to activations ``[B, …]``.
            hardware: where and in which precision.
            keep: whether activations are stored.
        """
        self.dataset, self.frozen_layers, self.hardware = dataset, frozen_layers, hardware
        self.labels = labels_of(dataset)
        self.deterministic = keep
        self._store = RowStore(len(self.labels))

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """One sample."""
        activations, labels = self.gather([index])
        return activations[0], int(labels[0])

    def gather(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Activations ``[B, …]`` and labels ``[B]``."""
        index = torch.as_tensor(indices, dtype=torch.long)
        missing = sorted(set(self._store.missing(index).tolist()))
        if self.deterministic and missing:
            self._keep(missing, self._run(gather(self.dataset, missing)[0]))
        found = self._store.get(index) if self.deterministic else self._run(gather(self.dataset, indices)[0])
        # Stored as short as they were computed, read in the type of the weights: not all methods train under autocast.
        return (found.float() if found.dtype is torch.bfloat16 else found), self.labels[index]

    def fill(self, indices: Tensor) -> None:
        """Run the frozen layers over the samples at ``indices [M]`` that they have not seen yet, on all ranks."""
        if not ranks.all_agree(self.deterministic):
            return
        missing = indices[~ranks.agreed(self._store.has(indices))]
        size = forward_batch(self.dataset, self.hardware.device) * ranks.size()
        batches = [missing[i : i + size].tolist() for i in range(0, len(missing), size)]
        loader = self.hardware.batches(self.dataset, [ranks.shard(batch) for batch in batches])
        for batch, (images, _) in zip(batches, loader, strict=True):
            self._keep(batch, ranks.all_gather(self._run(images), len(batch)))

    def _keep(self, indices: list[int], activations: Tensor) -> None:
        self.deterministic = self._store.put(indices, activations)

    def _run(self, images: Tensor) -> Tensor:
        with evaluating(self.frozen_layers), self.hardware.autocast():
            output: Tensor = self.frozen_layers(self.hardware.images(images))
        # A clone made outside inference mode may be saved for backward.
        return output.cpu().clone()
