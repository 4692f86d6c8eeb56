"""What a method is: hyperparameters, pure losses, and a plan that yields phases to the one loop."""

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, ClassVar, Literal, Protocol, Self

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor, nn

from mlflow_unlearn.errors import UnlearnError

Role = Literal["forget", "retain", "val", "test"]


@dataclass(frozen=True)
class OptimizerSpec:
    """An optimiser by its settings; phases with equal settings share its state and its schedule.

    ``one_cycle_epochs`` > 0 is a one-cycle schedule up to ``lr`` over so many epochs; 0 is a constant rate.
    """

    name: Literal["adamw", "sgd"]
    lr: float
    weight_decay: float = 0.0
    momentum: float = 0.0
    one_cycle_epochs: int = 0


@dataclass(frozen=True)
class Batch:
    """One step of the loop as a loss sees it: outputs, never models.

    Attributes:
        logits: the student's outputs ``[B, K]`` in float32, with gradient.
        labels: ``[B]``.
        forget: which samples come from the forget set, ``[B]`` bool.
        teacher_logits: the frozen original's outputs ``[B, K]``; None unless the phase asks for them.
    """

    logits: Tensor
    labels: Tensor
    forget: Tensor
    teacher_logits: Tensor | None


@dataclass(frozen=True)
class Phase:
    """What to iterate and how to learn from it; the loop does the rest.

    Attributes:
        loss: mean loss of a `Batch`, a scalar.
        optimizer: reused, with its state, by every later phase that names equal settings.
        batch_size: samples a step.
        forget: indices into the forget set, or None for none of it.
        retain: indices into the retain set, or None for none of it; both are shuffled together.
        epochs: passes before the plan resumes.
        teacher: whether the loss reads ``teacher_logits``.
        gradient_hook: called with the student between ``backward()`` and the optimiser's step.
    """

    loss: Callable[[Batch], Tensor]
    optimizer: OptimizerSpec
    batch_size: int
    forget: Tensor | None = None
    retain: Tensor | None = None
    epochs: int = 1
    teacher: bool = False
    gradient_hook: Callable[[nn.Module], None] | None = None


@dataclass(frozen=True)
class PhaseStats:
    """What the loop tells the plan when a phase is done: mean loss over its samples, wall-clock seconds."""

    loss: float
    seconds: float


class Workspace(Protocol):
    """What the loop offers to a plan."""

    model: nn.Module
    generator: torch.Generator
    """On the CPU, seeded: all randomness of a method comes from here."""

    def labels(self, role: Role) -> Tensor:
        """The labels ``[N]`` of a set."""

    def predictions(self, role: Role, *, teacher: bool = False) -> Tensor:
        """The student's (or the teacher's) predicted classes ``[N]`` in eval mode."""

    def record(self, **values: float) -> None:
        """Add one epoch to the history."""

    def snapshot(self) -> dict[str, Tensor]:
        """A copy of the student's state."""

    def restore(self, state: dict[str, Tensor]) -> None:
        """Put a `snapshot` back."""


Plan = Generator[Phase, PhaseStats, Mapping[str, float]]


class Params(BaseModel):
    """Hyperparameters of a method: frozen, and nothing unknown gets through."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @classmethod
    def parse(cls, values: Mapping[str, Any], *, method: str) -> Self:
        """Validate ``values``.

        Raises:
            UnlearnError: an unknown name (with the nearest known one) or a value out of range.
        """
        for name in values:
            if name not in cls.model_fields:
                near = get_close_matches(str(name), cls.model_fields, n=1)
                hint = f"did you mean {near[0]!r}? " if near else ""
                raise UnlearnError(
                    f"unknown hyperparameter {name!r} of {method}: {hint}"
                    f"known are {', '.join(sorted(cls.model_fields))}"
                )
        try:
            return cls(**values)
        except ValidationError as error:
            first = error.errors()[0]
            raise UnlearnError(
                f"hyperparameter {'.'.join(map(str, first['loc']))} = {first['input']!r} of {method} is not usable: "
                f"{first['msg'][0].lower()}{first['msg'][1:]}"
            ) from error


class Method:
    """Base of all methods: subclass, name `Params`, and write `plan`."""

    name: ClassVar[str]
    Params: ClassVar[type[Params]]
    by_family: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """Published settings that differ from the defaults of `Params`, by model family ("cnn", "vit")."""

    def __init__(self, params: Mapping[str, Any] | None = None, *, family: str = "cnn") -> None:
        """Complete ``params`` with the published settings of the family and validate them."""
        self.params = self.Params.parse({**self.by_family.get(family, {}), **(params or {})}, method=self.name)

    def plan(self, workspace: Workspace) -> Plan:
        """Yield phases, read their `PhaseStats`, and return what is known of the final state (``acc_forget``, …)."""
        raise NotImplementedError
