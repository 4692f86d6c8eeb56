"""Training an ensemble so that a sample can be taken out again: shard by shard, slice by slice (SISA).

A stage trains a shard's sub-model on its first slices. It is a function of the weights before it, of its samples and of
a seed of its own: optimiser, learning rates and order begin anew in each. So a checkpoint is the weights after a stage,
and what comes out of all stages without a sample is, bit for bit on one machine, what comes out of those that had not
seen it yet, followed by the others without it.
"""

import copy
import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset, TensorDataset

from mlflow_unlearn.console import note, track
from mlflow_unlearn.data.batching import gather
from mlflow_unlearn.data.placement import Placement, check_placement
from mlflow_unlearn.data.splits import labels_of
from mlflow_unlearn.engine.architectures import build_model, load_weights, state_digest
from mlflow_unlearn.engine.checkpoint import Checkpoint
from mlflow_unlearn.engine.ensemble import Ensemble, EnsembleSpec
from mlflow_unlearn.engine.frozen_prefix import split_at
from mlflow_unlearn.engine.hardware import Hardware, as_recorded, machine_of, threads
from mlflow_unlearn.engine.loop import Epoch, Outcome, RunOptions, run
from mlflow_unlearn.engine.memory import BESIDE, GIVEN, doubted, not_drawn
from mlflow_unlearn.engine.method import Method
from mlflow_unlearn.engine.modes import evaluating
from mlflow_unlearn.engine.past import CHOSEN, passed_over
from mlflow_unlearn.engine.phase_samples import shuffled_batches
from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.evidence.checkpoints import Kept, Machine, Shards
from mlflow_unlearn.evidence.record import Exactness
from mlflow_unlearn.rng import isolated_rng
from mlflow_unlearn.spelling import spelled

State = Mapping[str, Tensor]


def stage_epochs(epochs: int, slices: int) -> int:
    """Epochs of each stage, so that all of them cost what ``epochs`` over everything would.

    Stage r of R reads r / R of the samples: ``e (1 + … + R) / R = E``, so ``e = 2 E / (R + 1)``, rounded, at least 1.

    >>> stage_epochs(15, 1), stage_epochs(15, 4)
    (15, 6)
    """
    return max(1, round(2 * epochs / (slices + 1)))


def stage_seed(seed: int, shard: int, stage: int) -> int:
    """Of everything random in a stage; stage 0 are the initial weights."""
    return int.from_bytes(hashlib.sha256(f"{seed} {shard} {stage}".encode()).digest()[:8], "big")


@dataclass(frozen=True)
class Cost:
    """Of training stages.

    Attributes:
        steps: of the optimiser.
        samples: that go through a sub-model for a gradient, each as often as it does.
    """

    steps: int
    samples: int


def cost(shards: Shards, placed: Placement, begin: Mapping[int, int]) -> Cost:
    """Of the stages that are trained when some shards begin again.

    Args:
        shards: how they are trained.
        placed: of the samples that they are trained on ``[N]``.
        begin: shard → the stages that are done already.
    """
    epochs = stage_epochs(shards.params["epochs"], shards.slices)
    sizes = [
        len(placed.rows(shard, after)) for shard, done in begin.items() for after in range(done + 1, shards.slices + 1)
    ]
    batches = [len(shuffled_batches(size, shards.params["batch_size"])) for size in sizes if size]
    return Cost(epochs * sum(batches), epochs * sum(sizes))


def touched(placed: Placement) -> dict[int, int]:
    """Shard → its stages that have seen none of these samples ``[F]``, for every shard that has one of them."""
    return {int(shard): int(placed.slice_[placed.shard == shard].min()) for shard in np.unique(placed.shard)}


def frozen_features(frozen: nn.Module, dataset: Dataset[Any], hardware: Hardware) -> TensorDataset:
    """What the frozen layers make of each sample: activations ``[N, …]`` and labels ``[N]``.

    Each sample by itself: in a batch its bits may depend on where it stands, and so on which others there are.
    """
    count, found = len(dataset), list[Tensor]()  # type: ignore[arg-type]
    with evaluating(frozen), hardware.autocast():
        for row in track(range(count), "frozen layers", enabled=hardware.progress):
            output: Tensor = frozen(hardware.images(gather(dataset, [row])[0]))
            found.append(output.float().cpu().clone())
    return TensorDataset(torch.cat(found), labels_of(dataset))


@dataclass
class ShardTrainer:
    """Trains stages, and keeps count.

    Attributes:
        shards: how.
        method: makes the method of one stage of its epochs.
        hardware: where and in which precision.
        keep: stores the weights after a stage of a shard; None keeps nothing.
        checkpoint: of a stage, for the same command to go on after a kill; None without.
        on_epoch: called with each epoch's record.
        kept: what was stored.
        history: one mapping per epoch.
        steps: of the optimiser.
        samples: that went through a sub-model.
    """

    shards: Shards
    method: Callable[[Mapping[str, Any]], Method]
    hardware: Hardware
    keep: Callable[[State, int, int], Kept] | None = None
    checkpoint: Callable[[int, int], Checkpoint] | None = None
    on_epoch: Callable[[Epoch], None] | None = None
    kept: list[Kept] = field(default_factory=list)
    history: list[Epoch] = field(default_factory=list)
    steps: int = 0
    samples: int = 0
    remembers: set[str] = field(default_factory=set)
    _saved: float = field(default_factory=time.monotonic)
    _unsaved: list[tuple[Checkpoint, State]] = field(default_factory=list)

    def train(
        self, shard: int, member: nn.Module, dataset: Dataset[Any], placed: Placement, done: int = 0
    ) -> nn.Module:
        """The shard's sub-model after all stages.

        Args:
            shard: its number.
            member: as it is after ``done`` stages.
            dataset: all samples that are trained on ``[N]``, as the sub-model reads them.
            placed: where they lie ``[N]``.
            done: stages that are left out.
        """
        params = {**self.shards.params, "epochs": stage_epochs(self.shards.params["epochs"], self.shards.slices)}
        for stage in range(done + 1, self.shards.slices + 1):
            rows = placed.rows(shard, stage)
            if not len(rows):
                continue  # the first slices of a small shard may be empty
            before = cost(self.shards, placed, {shard: stage - 1})
            after = cost(self.shards, placed, {shard: stage})
            member = self._stage(shard, stage, member, Subset(dataset, rows.tolist()), self.method(params))
            self.steps += before.steps - after.steps
            self.samples += before.samples - after.samples
            if stage < self.shards.slices:
                self.store(member, shard, stage)
        return member

    def store(self, member: nn.Module, shard: int, stage: int) -> None:
        """Keep a checkpoint of a shard's sub-model after a stage, where any are kept."""
        if self.keep is not None:
            self.kept.append(self.keep(_weights(member), shard, stage))

    def _stage(self, shard: int, stage: int, member: nn.Module, dataset: Dataset[Any], method: Method) -> nn.Module:
        seed = stage_seed(self.shards.seed, shard, stage)
        checkpoint = None if self.checkpoint is None else self.checkpoint(shard, stage)
        if checkpoint is not None:
            stored = checkpoint.open(member, method, {"retain": dataset}, self.hardware, seed, None)
            if stored is not None and "finished" in stored:
                member.load_state_dict(stored["finished"])
                return member

        def count(epoch: Epoch) -> None:
            self.history.append({**epoch, "epoch": len(self.history), "shard": shard, "stage": stage})
            if self.on_epoch is not None:
                self.on_epoch(self.history[-1])

        options = RunOptions(seed, on_epoch=count, checkpoint=checkpoint)
        outcome = run(member, method, {"retain": dataset}, self.hardware, options)
        self.remembers.update(outcome.remembers)
        trained = outcome.model
        if checkpoint is not None:
            self._unsaved.append((checkpoint, _weights(trained)))
            # All that were finished since: many short stages are as long a work as one.
            if time.monotonic() - self._saved >= checkpoint.interval:
                for one, weights in self._unsaved:
                    one.save({"finished": weights})
                self._unsaved, self._saved = [], time.monotonic()
        return trained


def _weights(module: nn.Module) -> dict[str, Tensor]:
    """A copy: the next stage trains another one, and a frozen head may be the caller's."""
    return {name: value.detach().cpu().clone() for name, value in module.state_dict().items()}


def initial_model(
    architecture: str, num_classes: int, image_shape: tuple[int, int, int], seed: int, shard: int
) -> nn.Module:
    """One whole model of an ensemble as its training begins: random by seed and shard.

    Args:
        architecture: of one sub-model.
        num_classes: K.
        image_shape: ``(C, H, W)``.
        seed: of the training.
        shard: its number.
    """
    with isolated_rng(stage_seed(seed, shard, 0)):
        return build_model(architecture, num_classes, image_shape)


@dataclass(frozen=True)
class ShardedPast:
    """What an ensemble's version keeps of its training.

    Attributes:
        shards: how it was trained.
        machine: on which.
        architecture: an `EnsembleSpec`.
        retain: of the retain set ``[R]``.
        forget: of the forget set ``[F]``.
        kept: checkpoints.
        read: weights of one; raises where it is missing or was changed.
        classes: names.
        image_shape: ``(C, H, W)``.
        keep: stores a new one; None keeps nothing.
        checkpoint: of a stage.
    """

    shards: Shards
    machine: Machine | None
    architecture: str
    retain: Placement
    forget: Placement
    kept: Sequence[Kept]
    read: Callable[[Kept], State]
    classes: Sequence[str]
    image_shape: tuple[int, int, int]
    keep: Callable[[State, int, int], Kept] | None = None
    checkpoint: Callable[[int, int], Checkpoint] | None = None

    def begin(self) -> dict[int, int]:
        """Touched shard → stages that stay: up to the last kept checkpoint from before the samples."""
        return {
            shard: max((k.stage for k in self.kept if k.shard == shard and k.stage <= stage), default=0)
            for shard, stage in touched(self.forget).items()
        }

    def check(self, labels: Tensor) -> None:
        """Refuse a retain set with these ``labels [R]`` that leaves a shard empty.

        Raises:
            UnlearnError: or without a class that the others have.
        """
        way_out = f"retrain without shards, by `train` with {spelled('exclude')}, or with fewer"
        check_placement(self.retain, labels.numpy(), self.classes, self.shards.shards, way_out)

    def cost(self) -> tuple[Cost, Cost]:
        """Of taking the forget set out, and of training everything anew without it."""
        everything = dict.fromkeys(range(self.shards.shards), 0)
        return cost(self.shards, self.retain, self.begin()), cost(self.shards, self.retain, everything)

    def start(
        self,
        member: nn.Module,
        shard: int,
        stage: int,
        *,
        fall_back: bool,
        warn: Callable[[str], None] | None = None,
    ) -> tuple[nn.Module, int]:
        """A shard's sub-model after ``stage`` stages or fewer, and how many.

        Args:
            member: of the same architecture; its weights are replaced.
            shard: its number.
            stage: after which.
            fall_back: whether an earlier one may serve where a checkpoint cannot be read.
            warn: called with a sentence about each that could not.

        Raises:
            UnlearnError: a checkpoint cannot be read.
        """
        found = sorted((k for k in self.kept if k.shard == shard and k.stage <= stage), key=lambda k: -k.stage)
        for kept in found:
            try:
                state = self.read(kept)
            except UnlearnError as error:
                if not fall_back:
                    raise UnlearnError(
                        f"{error}: restore it, or go back further with params '{{\"fall_back\": true}}'"
                    ) from error
                if warn is not None:
                    warn(passed_over(error))
                continue
            load_weights(member, state, self.architecture)
            return member, kept.stage
        with isolated_rng(stage_seed(self.shards.seed, shard, 0)):
            return self.initial(), 0

    def initial(self) -> nn.Module:
        """What is trained of one sub-model, as the random state has it.

        Raises:
            ValueError: the architecture is not an ensemble's.
        """
        spec = EnsembleSpec.parse(self.architecture)
        if spec is None:
            raise ValueError("an ensemble's record names an ensemble")
        model = build_model(spec.architecture, len(self.classes), self.image_shape)
        return model if spec.prefix is None else split_at(model, spec.prefix).trainable_head


def train_anew(
    model: nn.Module,
    past: ShardedPast,
    retain: Dataset[Any],
    method: Callable[[Mapping[str, Any]], Method],
    hardware: Hardware,
    *,
    begin: Mapping[int, int],
    fall_back: bool = False,
    on_epoch: Callable[[Epoch], None] | None = None,
) -> Outcome:
    """The ensemble with some shards trained again on the retain set, each from a stage on.

    Args:
        model: the ensemble; left as it is.
        past: what its version keeps.
        retain: the retain set, as it is trained on.
        method: makes the method of one stage.
        hardware: where and in which precision.
        begin: shard → stages that stay.
        fall_back: whether an earlier checkpoint may serve where one cannot be read.
        on_epoch: called with each epoch's record.

    Raises:
        UnlearnError: a shard would be left empty or without a class, or a checkpoint cannot be read.
    """
    if not isinstance(model, Ensemble):
        raise UnlearnError(
            f"this version is not an ensemble: train one with {spelled('ensemble')}, or use the method retrain"
        )
    start, shards = time.perf_counter(), past.shards
    past.check(labels_of(retain))
    own, anew = (cost(shards, past.retain, done) for done in (begin, dict.fromkeys(range(shards.shards), 0)))
    if own == anew:
        note(f"Note: all {shards.shards} shards are trained again from their first slice: it takes a full retraining.")
    elif len(begin) == shards.shards:
        note(
            f"Note: the samples lie in all {shards.shards} shards: {own.steps} of {anew.steps} steps are trained again."
        )
    hardware = as_recorded(hardware, past.machine, augment=shards.augment)
    trainer = ShardTrainer(shards, method, hardware, past.keep, past.checkpoint, on_epoch)
    members: list[nn.Module] = list(model.members)
    done_by: dict[int, int] = {}
    warnings: list[str] = []
    with threads(past.machine.threads if past.machine is not None else torch.get_num_threads()):
        rows = np.flatnonzero(np.isin(past.retain.shard, list(begin)))
        read: Dataset[Any] = Subset(retain, rows.tolist())
        placed = past.retain.subset(rows)
        if model.frozen is not None:
            read = frozen_features(hardware.place(model.frozen), read, hardware)
            trainer.hardware = replace(hardware, num_workers=0)
        for shard, stage in sorted(begin.items()):
            copied = copy.deepcopy(members[shard])
            member, done_by[shard] = past.start(copied, shard, stage, fall_back=fall_back, warn=warnings.append)
            members[shard] = trainer.train(shard, member, read, placed, done_by[shard]).cpu()
    kept = [copy.deepcopy(member) for member in members]
    result = Ensemble(kept, copy.deepcopy(model.frozen), model.pretrained_cfg).cpu().eval()
    differences = _differences(past, done_by, hardware)
    return Outcome(
        result,
        trainer.history,
        {},
        tuple(warnings),
        time.perf_counter() - start,
        trained=trainer.samples,
        exactness=_doubts(past, trainer, _exactness(past, model, trainer, done_by, differences)),
        shards=shards.model_copy(update={"mixed": bool(differences)}),
        kept=tuple(_still_valid(past.kept, done_by, shards)) + tuple(trainer.kept),
    )


def _doubts(past: ShardedPast, trainer: ShardTrainer, claim: Exactness) -> Exactness | None:
    """A claim that is no longer exact where something beside what was trained may know the samples."""
    return doubted(doubted(claim, sorted(trainer.remembers), BESIDE), not_drawn(past.initial), GIVEN)


def _still_valid(kept: Sequence[Kept], done_by: Mapping[int, int], shards: Shards) -> Iterator[Kept]:
    """Checkpoints that have seen nothing of what was taken out."""
    for one in kept:
        if one.stage <= done_by.get(one.shard, shards.slices):
            yield one


def _differences(past: ShardedPast, done_by: Mapping[int, int], hardware: Hardware) -> list[str]:
    """Why the bits may not be those of a training from scratch on this machine."""
    if sum(done_by.values()) == 0 and len(done_by) == past.shards.shards:
        return []  # nothing of it is left
    if past.machine is None:
        return ["a machine that is not recorded"]
    mixed = ["shards of several machines"] if past.shards.mixed else []
    return [*past.machine.differences(machine_of(hardware)), *mixed]


def _exactness(
    past: ShardedPast,
    model: Ensemble,
    trainer: ShardTrainer,
    done_by: Mapping[int, int],
    differences: Sequence[str],
) -> Exactness:
    shards, excludes = past.shards, [CHOSEN]
    if shards.prefix is not None:
        excludes.append(
            f"The layers before {shards.prefix} are frozen and come from {shards.backbone}: what they were trained on "
            "before is outside of this claim."
            if shards.backbone is not None
            else f"The layers before {shards.prefix} are frozen at random weights, which have learned nothing."
        )
    if differences:
        excludes.append(
            f"The first training had {'; '.join(differences)}: this is a model trained without the samples, and its "
            "bits may differ from those of a training from scratch on either machine."
        )
    return Exactness(
        kind="exact up to numerics" if differences else "exact",
        covers=(
            "Every weight that was trained here comes from training without the forgotten samples: their shards were "
            "trained again from before the first of them was seen, and the other shards never saw them."
        ),
        excludes=excludes,
        retrained={str(shard): stage for shard, stage in sorted(done_by.items())},
        untouched={
            str(number): state_digest(member.state_dict())
            for number, member in enumerate(model.members)
            if number not in done_by
        },
        steps=trainer.steps,
        steps_from_scratch=past.cost()[1].steps,
        frozen=shards.prefix,
    )
