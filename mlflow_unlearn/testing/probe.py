"""One method on one model: it is run in many ways, and the effects of each run are recorded."""

import copy
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from mlflow_unlearn.data.splits import Splits
from mlflow_unlearn.engine.architectures import model_family
from mlflow_unlearn.engine.hardware import Hardware
from mlflow_unlearn.engine.loop import RunOptions, run
from mlflow_unlearn.engine.method import Method, Plan, Workspace
from mlflow_unlearn.engine.modes import evaluating
from mlflow_unlearn.rng import isolated_rng
from mlflow_unlearn.testing.models import FORGET, RETAIN, TEST, VAL, digits, original, subset
from mlflow_unlearn.testing.settings import BATCH_SIZE, SETTINGS, Promises, Unlearner


def recipe_of(method: type[Method] | Unlearner) -> type[Method] | None:
    """The method if it is a `Method`, None if it is a callable."""
    return method if isinstance(method, type) and issubclass(method, Method) else None


@dataclass(frozen=True)
class Run:
    """One call of the method, and its effects.

    Attributes:
        given: the model that went in.
        returned: the model that came out.
        tensors: parameters and buffers of ``returned``, copied at once.
        touched: what the call changed of ``given``: tensors, modes, flags, gradients.
        leaked: which global states the call changed.
    """

    given: nn.Module
    returned: nn.Module
    tensors: Mapping[str, Tensor]
    touched: list[str]
    leaked: list[str]


class MethodProbe:
    """A method and a model, as the properties see them.

    Attributes:
        original: the trained model, which is never changed.
        recipe: the method if it is a `Method`, None if it is a callable.
        params: hyperparameters of a `Method`.
        stochastic: whether another seed should give other weights.
    """

    def __init__(
        self,
        method: type[Method] | Unlearner,
        model: str,
        params: Mapping[str, Any],
        promises: Promises,
        stochastic: bool | None,
    ) -> None:
        """Run nothing yet.

        Args:
            method: see `check_method`.
            model: its name in `MODELS`.
            params: hyperparameters of a `Method`, over those of `SETTINGS`.
            promises: of the method.
            stochastic: see `check_method`.
        """
        self.original = original(model)
        self.recipe = recipe_of(method)
        self.stochastic = getattr(self.recipe, "stochastic", True) if stochastic is None else stochastic
        self.params = {} if self.recipe is None else self._cheap(self.recipe, params)
        self._method, self._promises = method, promises
        self._random_states = count(2**31)  # Far from the seeds in use: seeding with one of those must be seen.

    def _cheap(self, recipe: type[Method], params: Mapping[str, Any]) -> dict[str, Any]:
        settings = {**SETTINGS.get(recipe.name, {}), **params}
        used = recipe(settings, family=model_family(self.original)).params.model_dump()
        limits = {"epochs": 2, "batch_size": BATCH_SIZE}
        limited = {name: min(used[name], limit) for name, limit in limits.items() if isinstance(used.get(name), int)}
        return limited | settings

    def promised(self, name: str) -> Mapping[str, Any]:
        """What the method promises by the property ``name``."""
        return self._promises.get(name, {})

    def run(
        self,
        forget: Sequence[int] = FORGET,
        retain: Sequence[int] = RETAIN,
        *,
        seed: int = 0,
        freeze: Iterable[str] = (),
        params: Mapping[str, Any] | None = None,
        batches_of: int | None = None,
    ) -> Run:
        """Call the method on a fresh copy of the model, each time from another state of the global generators.

        Args:
            forget: indices of the digits to forget.
            retain: indices of the others.
            seed: given to the method.
            freeze: names of the parameters that are not to be trained.
            params: hyperparameters of a `Method` that differ from the probe's.
            batches_of: the size of the batches that the workspace of a `Method` serves, whatever it asks for.

        Raises:
            TypeError: the method returned no module.
        """
        given = copy.deepcopy(self.original)
        # A caller's model may be in any mode; a mixed one shows whether they are all put back.
        given.train()
        list(given.modules())[-1].training = False
        for name in freeze:
            given.get_parameter(name).requires_grad = False
        before, traits = tensors(given), _traits(given)
        splits = Splits(subset(forget), subset(retain), subset(VAL), subset(TEST))
        with isolated_rng(next(self._random_states)), torch.inference_mode(False), torch.enable_grad():
            states = _global_states()
            returned = self._call(given, splits, seed, {**self.params, **(params or {})}, batches_of)
            leaked = [name for name, state in _global_states().items() if state != states[name]]
        if not isinstance(returned, nn.Module):
            raise TypeError(f"the method returned a {type(returned).__name__}, not a torch.nn.Module")
        touched = differing(before, tensors(given))
        touched += [trait for trait, value in _traits(given).items() if traits.get(trait) != value]
        return Run(given, returned, tensors(returned), touched, leaked)

    def _call(
        self, model: nn.Module, splits: Splits, seed: int, params: Mapping[str, Any], batches_of: int | None
    ) -> nn.Module:
        if self.recipe is None:
            return cast(Unlearner, self._method)(model, splits, seed)
        method = self.recipe(params, family=model_family(model))
        if batches_of is not None:
            method = _InBatches(method, batches_of)
        datasets: Mapping[str, Dataset[Any]] = vars(splits)
        return run(model, method, datasets, Hardware(torch.device("cpu")), RunOptions(seed)).model

    def refusal(self, freeze: Iterable[str] = ()) -> str | None:
        """Why a `Method` refuses the model, with some parameters frozen; None where it does not."""
        if self.recipe is None:
            return None
        model = copy.deepcopy(self.original)
        for name in freeze:
            model.get_parameter(name).requires_grad = False
        return self.recipe.unsuited(model)

    @property
    def refuses(self) -> bool:
        """Whether the method has to refuse the model, or the lack of a training to go back to."""
        return self.refusal() is not None or (self.recipe is not None and self.recipe.needs is not None)

    @cached_property
    def plain(self) -> Run:
        """The run with nothing special about it."""
        return self.run()

    def run_as_promised(self, name: str) -> Run:
        """The run under the hyperparameters of the promise ``name``."""
        return self.run(params=self.promised(name)) if self.recipe and self.promised(name) else self.plain

    @cached_property
    def reads_forget_set(self) -> bool:
        """Whether as many other samples to forget give other weights, where they fill a batch."""
        return bool(differing(self.run(FORGET[:BATCH_SIZE]).tensors, self.run(FORGET[-BATCH_SIZE:]).tensors))

    def moved(self, run: Run) -> bool:
        """Whether a parameter differs from the original's."""
        return bool(differing(dict(self.original.named_parameters()), run.tensors))

    def outputs(self, model: nn.Module) -> Tensor:
        """The logits ``[N, K]`` of ``model`` for all digits, in eval mode."""
        with evaluating(model):
            logits: Tensor = model(digits()[0])
        return logits

    def worse(self, run: Run) -> str | None:
        """A fault of the outcome of ``run`` that the outcome of the plain run does not have."""
        if self.moved(self.plain) and not self.moved(run):
            return "the weights stay as they were"
        if self.outputs(self.plain.returned).isfinite().all() and not self.outputs(run.returned).isfinite().all():
            return "the outputs of the returned model are not finite"
        return None


class _InBatches(Method):
    """A method whose workspace serves batches of another size than it asks for."""

    def __init__(self, method: Method, size: int) -> None:
        self._method, self._size = method, size
        self.name = method.name  # type: ignore[misc]

    def plan(self, workspace: Workspace) -> Plan:
        served = copy.copy(workspace)
        # One method of one copy: whatever else the plan asks for is the workspace's own.
        served.batches = (  # type: ignore[method-assign]
            lambda role, batch_size, index=None: workspace.batches(role, self._size, index)
        )
        return self._method.plan(served)


def tensors(model: nn.Module) -> dict[str, Tensor]:
    """A copy of every parameter and buffer ``[…]`` by name, also of those that a state dict leaves out."""
    named = [*model.named_parameters(), *model.named_buffers()]
    return {name: tensor.detach().clone() for name, tensor in named}


def differing(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> list[str]:
    """The names in ``a`` whose tensor ``[…]`` is not in ``b`` with the same type, shape and bits (NaN equals NaN)."""
    return [name for name, tensor in a.items() if name not in b or not _same_bits(tensor, b[name])]


def _same_bits(a: Tensor, b: Tensor) -> bool:
    first, second = (tensor.detach().reshape(-1).view(torch.uint8) for tensor in (a, b))
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(first, second)


def _traits(model: nn.Module) -> dict[str, bool]:
    """The state of a model beside its tensors: modes, flags, gradients."""
    modes = {f"the mode of {name or 'the whole'}": module.training for name, module in model.named_modules()}
    flags = {f"requires_grad of {name}": p.requires_grad for name, p in model.named_parameters()}
    return modes | flags | {f"the gradient of {name}": p.grad is not None for name, p in model.named_parameters()}


def _global_states() -> dict[str, Any]:
    kind, keys, *rest = np.random.get_state()
    return {
        "Python's random state": random.getstate(),
        "NumPy's random state": (kind, np.asarray(keys).tolist(), rest),
        "torch's random state": torch.get_rng_state().tolist(),
        "the grad mode": torch.is_grad_enabled(),
    }
