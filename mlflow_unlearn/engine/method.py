"""What a method is: hyperparameters, pure losses, and a plan that yields phases to the one loop."""

from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Annotated, Any, ClassVar, Literal, Protocol, Self, get_args, get_origin

import torch
from pydantic import ConfigDict, ValidationError
from pydantic.fields import FieldInfo
from torch import Tensor, nn
from torch.utils.data import Dataset

from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.parsing import NumbersAreNumbers, message
from mlflow_unlearn.spelling import spelled

SplitName = Literal["forget", "retain", "val", "test"]
InputLoss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""``(images [N, C, H, W], logits [N, K], labels [N])`` to a scalar."""
Datasets = Mapping[str, Dataset[Any]]
"""Images and labels by sample, by the name of their split."""


@dataclass(frozen=True)
class OptimizerSpec:
    """An optimiser by its settings; phases with equal settings share its state and its schedule.

    ``one_cycle_epochs`` > 0 is a one-cycle schedule up to ``lr`` over so many epochs, ``cosine_epochs`` > 0 half a
    cosine from ``lr`` down to almost 0; with neither the learning rate is constant.
    """

    name: Literal["adam", "adamw", "sgd"]
    lr: float
    weight_decay: float = 0.0
    momentum: float = 0.0
    nesterov: bool = False
    one_cycle_epochs: int = 0
    cosine_epochs: int = 0

    def __post_init__(self) -> None:
        """Refuse two schedules at once."""
        if self.one_cycle_epochs and self.cosine_epochs:
            raise ValueError("an optimiser has one schedule: one_cycle_epochs or cosine_epochs")


@dataclass(frozen=True)
class Batch:
    """One step of the loop as a loss sees it: outputs, never models.

    Attributes:
        logits: the student's outputs ``[B, K]`` in float32, with gradient.
        labels: ``[B]``.
        forget: which samples come from the forget set, ``[B]`` bool.
        teacher_logits: outputs ``[B, K]`` of the teacher that the phase names; None where it names none.
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
        batch_size: samples a step; with ``paired``, of each of the two sets.
        forget: indices into the forget set, or None for none of it.
        retain: indices into the retain set, or None for none of it; both are shuffled together.
        synthetic: images and labels of the method's own making, shuffled in as well; no teacher knows them.
        paired: each step takes a batch of the forget set *and* one of the retain set; the shorter set cycles.
        epochs: passes before the plan resumes.
        teacher: whose outputs the loss reads: those of the original, or of the original on retain samples and of a
            reinitialised copy on forget samples.
        lr_scale: factor on the optimiser's learning rate during this phase.
        frozen_statistics: BatchNorm normalises by its running statistics and leaves them as they are. It does so in any
            case where the phase has a single sample, which has no statistics.
        before_step: called with the student before each step of the optimiser, when its gradients are there.
        after_step: called with the student after each step of the optimiser.
    """

    loss: Callable[[Batch], Tensor]
    optimizer: OptimizerSpec
    batch_size: int
    forget: Tensor | None = None
    retain: Tensor | None = None
    synthetic: Dataset[Any] | None = None
    paired: bool = False
    epochs: int = 1
    teacher: Literal["original", "random on forget"] | None = None
    lr_scale: float = 1.0
    frozen_statistics: bool = False
    before_step: Callable[[nn.Module], None] | None = None
    after_step: Callable[[nn.Module], None] | None = None

    def __post_init__(self) -> None:
        """Refuse what the loop would otherwise have to ignore."""
        if self.synthetic is not None and self.teacher is not None:
            raise ValueError("a phase with synthetic samples cannot have a teacher: its logits are kept by real sample")
        if (self.optimizer.one_cycle_epochs or self.optimizer.cosine_epochs) and self.lr_scale != 1:
            raise ValueError("lr_scale has no effect beside a schedule over epochs")


@dataclass(frozen=True)
class PhaseStats:
    """What the loop reports to the plan when a phase is done.

    Attributes:
        loss: mean over its samples.
        seconds: wall-clock.
        acc_forget: accuracy on its forget samples as the passes saw them, in training mode and while the weights moved;
            None where there were none.
    """

    loss: float
    seconds: float
    acc_forget: float | None = None


class Workspace(Protocol):
    """What the loop offers to a plan."""

    generator: torch.Generator
    """On the CPU, seeded: all randomness of a method comes from here."""

    @property
    def model(self) -> nn.Module:
        """The student itself, for a method that edits weights."""

    def labels(self, role: SplitName) -> Tensor:
        """The labels ``[N]`` of a set."""

    def predictions(self, role: SplitName, *, teacher: bool = False) -> Tensor:
        """The student's (or the teacher's) predicted classes ``[N]`` in eval mode."""

    def teacher_entropies(self, role: SplitName) -> Tensor:
        """The entropies ``[N]`` of the teacher's softmax outputs on a set, nats, float64."""

    def teacher_margins(self, role: SplitName) -> Tensor:
        """The margins ``[N]`` of the true class in the teacher's logits on a set, float64."""

    def batches(self, role: SplitName, batch_size: int, index: Tensor | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Images ``[B, C, H, W]`` and labels ``[B]`` of a set, in order, where the student computes.

        Args:
            role: which set.
            batch_size: B, but for the last batch.
            index: samples ``[M]`` of the set, in their order; None for all of them.
        """

    def optimise_inputs(
        self, images: Tensor, labels: Tensor, loss: InputLoss, optimizer: OptimizerSpec, steps: int
    ) -> Tensor:
        """Images that minimise a loss of the student, which is in eval mode and stays as it is.

        Args:
            images: where to start, ``[N, C, H, W]``.
            labels: ``[N]``.
            loss: ``(images, logits [N, K], labels)`` to a scalar.
            optimizer: of the images.
            steps: how many.

        Returns:
            ``[N, C, H, W]``.
        """

    @property
    def learn_inputs(self) -> Callable[..., Tensor]:
        """`optimise_inputs`, by its name in earlier versions."""

    def reinitialise(self) -> None:
        """Give the student fresh random weights; frozen parameters stay as they are."""

    def rewind(self, share: float, epochs: int, *, fall_back: bool = False) -> int:
        """Put the student and its training where the version's own training was, and return the epochs done there.

        To be called before any phase; the optimiser of the first one goes on with the rest of its one-cycle schedule.

        Args:
            share: of the schedule that is to be run again at least, unless a later state has never seen the forget set.
            epochs: of the whole schedule.
            fall_back: whether a state that is missing or was changed gives way to the one before it.
        """

    def freeze_before(self, name: str) -> None:
        """Freeze the layers before the module ``name``: they run once, and from here on the student is the rest.

        `reinitialise` then draws anew what is behind.
        """

    def warn(self, sentence: str) -> None:
        """Warn the user of what does not stop the method."""

    def record(self, **values: float) -> None:
        """Add one epoch to the history."""

    def snapshot(self) -> dict[str, Tensor]:
        """A copy of the student's state dict, tensors ``[…]`` by name."""

    def restore(self, state: dict[str, Tensor]) -> None:
        """Load a `snapshot`, tensors ``[…]`` by name."""


Plan = Generator[Phase, PhaseStats, Mapping[str, float]]


def all_indices(labels: Tensor) -> Tensor:
    """The indices ``[N]`` of a whole set, from its labels."""
    return torch.arange(len(labels))


def random_subset(labels: Tensor, fraction: float, generator: torch.Generator) -> Tensor:
    """The indices ``[M]`` of a random ``fraction`` of a set with ``labels [N]``, at least one."""
    return torch.randperm(len(labels), generator=generator)[: max(1, round(fraction * len(labels)))]


def run_epochs(workspace: Workspace, phase: Phase, epochs: int) -> Plan:
    """The plan of most methods: one phase, ``epochs`` times, each recorded."""
    for epoch in range(epochs):
        stats = yield phase
        workspace.record(epoch=epoch, loss=stats.loss, seconds=stats.seconds)
    return {}


def override_phases(plan: Plan, **changes: Any) -> Plan:
    """``plan`` with ``changes`` made to each of its phases: how one method wraps another."""
    try:
        phase = next(plan)
        while True:
            phase = plan.send((yield replace(phase, **changes)))
    except StopIteration as stop:
        final: Mapping[str, float] = stop.value
        return final


everything, sample, repeated, changed = all_indices, random_subset, run_epochs, override_phases
"""The names of these functions in earlier versions, which plugins may import."""


class Params(NumbersAreNumbers):
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
                    f"unknown hyperparameter {name!r} of {method}: {hint}valid values: {cls.known() or 'none'}"
                )
        try:
            return cls(**values)
        except ValidationError as error:
            first = error.errors()[0]
            raise UnlearnError(
                f"hyperparameter {first['loc'][0]} = {first['input']!r} of {method} is not usable: "
                f"{message(first)}; valid values: {cls.known()}"
            ) from error

    @classmethod
    def known(cls) -> str:
        """The names of all hyperparameters with their ranges, for messages."""
        return ", ".join(f"{name}{_range(field)}" for name, field in sorted(cls.model_fields.items()))


def _range(field: FieldInfo) -> str:
    signs = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}
    kinds = [kind for kind in (field.annotation, *get_args(field.annotation)) if kind is not None]
    # Bounds of one kind of several stand in that kind: Annotated[float, Field(gt=0)] | Literal["auto"].
    inner = [info for kind in kinds if get_origin(kind) is Annotated for info in get_args(kind)[1:]]
    limits = [*field.metadata, *(limit for info in inner for limit in getattr(info, "metadata", [info]))]
    bounds = [f"{sign} {getattr(x, key):g}" for x in limits for key, sign in signs.items() if hasattr(x, key)]
    choices = [str(choice) for kind in kinds if get_origin(kind) is Literal for choice in get_args(kind)]
    allowed = " | ".join([*filter(None, [", ".join(bounds)]), *choices])
    return f" ({allowed})" if allowed else ""


class Method:
    """Base of all methods: subclass, name `Params`, and write `plan`."""

    name: ClassVar[str]
    Params: ClassVar[type[Params]]
    by_family: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """Published settings that differ from the defaults of `Params`, by model family ("cnn", "vit")."""
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """Published settings by name, which the option ``preset`` of `unlearn` takes; sources are on the method's page."""
    position: ClassVar[int] = 50
    """Of one of ours in tables and in ``methods=all``: the smallest comes first, and retraining last."""
    stochastic: ClassVar[bool] = True
    """Whether another seed gives other weights."""
    epoch_metrics: ClassVar[Mapping[str, str]] = {"acc_val": "a_u"}
    """Values of `Workspace.record` that are logged under another name.

    ``acc_val``, the original's accuracy on unseen samples, would run into the measured model's metric of that name.
    """
    final_metrics: ClassVar[tuple[str, ...]] = ("acc_forget", "delta")
    """Which of the values that `plan` returns are logged."""
    own_prefix: ClassVar[bool] = False
    """Whether the method itself decides which layers stay frozen, so that it takes no prefix."""
    from_recipe: ClassVar[tuple[str, ...]] = ()
    """Hyperparameters that, where they are not given, commands take from the record of how the version was trained."""
    epochs_of_training: ClassVar[Mapping[str, float]] = {}
    """By model family the fraction of the recorded training's epochs that are the default of ``epochs``."""

    needs: ClassVar[str | None] = None
    """What a version must keep of its training for the method: checkpoints or shards; None for nothing."""
    by_shards: ClassVar[bool] = False
    """Whether an ensemble is trained shard by shard, and so as a whole only where it is not one."""

    def __init__(self, params: Mapping[str, Any] | None = None, *, family: str = "cnn") -> None:
        """Complete ``params`` with the published settings of the family and validate them."""
        self.params = self.Params.parse({**self.by_family.get(family, {}), **(params or {})}, method=self.name)

    def plan(self, workspace: Workspace) -> Plan:
        """Yield phases, receive their `PhaseStats`, and return what is known of the end state (``acc_forget``, …).

        Raises:
            NotImplementedError: a subclass has not written it.
        """
        raise NotImplementedError

    @classmethod
    def preset(cls, name: str | None) -> Mapping[str, Any]:
        """The hyperparameters of one of `presets`; none for None.

        Raises:
            UnlearnError: the method has no such preset; the message lists those that it has.
        """
        if name is None:
            return {}
        if name not in cls.presets:
            known = ", ".join(cls.presets) or f"none, so leave {spelled('preset')} out"
            raise UnlearnError(f"unknown preset {name!r} of {cls.name}: valid values: {known}")
        return cls.presets[name]

    @classmethod
    def recorded(cls, training: Mapping[str, Any], family: str = "cnn") -> dict[str, Any]:
        """What the method takes of a recorded ``training``: the values of `from_recipe` and a fraction of its epochs.

        Args:
            training: hyperparameters of the training, as far as they are recorded.
            family: of the model.
        """
        taken = {name: training[name] for name in cls.from_recipe if name in training}
        if "epochs" in training and family in cls.epochs_of_training:
            taken["epochs"] = max(1, round(cls.epochs_of_training[family] * training["epochs"]))
        return taken

    @classmethod
    def unsuited(cls, model: nn.Module) -> str | None:
        """Why the method refuses ``model``, with what would do in its place; None where it does not.

        Args:
            model: whose trainable parameters count; behind a frozen prefix, its trainable head.
        """
        return None

    @classmethod
    def nothing_to_unlearn(cls, final: Mapping[str, float]) -> str | None:
        """Why it was right to leave the weights as they were, by what `plan` returned; None where that is unknown.

        The default speaks for plans that compare ``acc_forget`` with the accuracy on unseen samples, ``acc_val``.
        """
        if "acc_val" not in final:
            return None
        shown = {"acc_forget": "acc_forget", "acc_val": "A_u", "mia_auc_val": "mia_auc"}
        values = ", ".join(f"{name} {final[key]:.4f}" for key, name in shown.items() if key in final)
        return f"the model knows these samples no better than unseen ones ({values})"

    @classmethod
    def not_worthwhile(
        cls,
        labels: Mapping[str, Tensor],
        predictions: Mapping[str, Tensor],
        entropies: Mapping[str, Tensor],
        margins: Mapping[str, Tensor],
    ) -> str | None:
        """Why no hyperparameters would unlearn anything here, before any training; None where some may.

        Args:
            labels: by set ("forget", "retain", "val"), ``[N]``.
            predictions: the original's predicted classes on the same sets, ``[N]``.
            entropies: of the original's softmax outputs on the same sets, nats, ``[N]``.
            margins: of the true class in the original's logits on the same sets, ``[N]``.
        """
        return None
