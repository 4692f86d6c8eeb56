"""The one training loop: it owns optimiser, device, precision, clock and progress; methods own the ideas."""

import copy
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, OneCycleLR

from mlflow_unlearn.console import first_line, track
from mlflow_unlearn.data.batching import BatchReader, in_order
from mlflow_unlearn.data.functions import users_code
from mlflow_unlearn.data.splits import labels_of
from mlflow_unlearn.distributed import ranks
from mlflow_unlearn.engine.architectures import reinitialised_copy
from mlflow_unlearn.engine.checkpoint import Checkpoint, ResumableWorkspace
from mlflow_unlearn.engine.forward import predict
from mlflow_unlearn.engine.frozen_prefix import Activations, split_at
from mlflow_unlearn.engine.hardware import Hardware, deterministic_convolutions, full_precision
from mlflow_unlearn.engine.memory import (
    BESIDE,
    GIVEN,
    STAYED,
    beside_the_weights,
    changed,
    doubted,
    is_default,
    not_drawn,
)
from mlflow_unlearn.engine.method import Batch, Datasets, InputLoss, Method, OptimizerSpec, Phase, PhaseStats, SplitName
from mlflow_unlearn.engine.modes import eval_mode
from mlflow_unlearn.engine.past import ANEW, CHOSEN, Keep, Past, Point, State
from mlflow_unlearn.engine.phase_samples import PhaseSamples
from mlflow_unlearn.engine.teacher import Teacher, is_deterministic
from mlflow_unlearn.errors import BrokenMethod, UnlearnError
from mlflow_unlearn.evidence.checkpoints import Kept, Origin, Shards
from mlflow_unlearn.evidence.record import Exactness
from mlflow_unlearn.rng import isolated_rng, rng_states, seed_all, set_rng_states
from mlflow_unlearn.spelling import spelled

if TYPE_CHECKING:
    from mlflow_unlearn.engine.shards import ShardedPast

Epoch = dict[str, float]
Watch = Callable[[Epoch, nn.Module, Datasets], None]
"""Called after an epoch with its record, the student (or its trainable head) and the datasets that it reads."""


def retrains_all() -> str:
    """Why retraining takes no prefix."""
    return (
        "retraining starts every layer anew, and a frozen prefix would keep what it has learned: use "
        f"{spelled('prefix', 'none')}"
    )


@dataclass(frozen=True)
class Outcome:
    """The result of a finished plan.

    Attributes:
        model: in eval mode.
        history: one mapping per epoch.
        final: what is known of the end state.
        warnings: sentences for the user.
        seconds: wall-clock.
        trained: samples that went through the student for a gradient, each as often as it did; by it methods are
            compared where clocks differ.
        exactness: what may be claimed where the training was gone back on; None of other methods.
        remembers: what beside its weights has changed in training, by name.
        kept: checkpoints that the new weights can be gone back on by.
        shards: how the new weights were trained, where they are an ensemble's and nothing else has changed them.
        origin: the version that the training went on from, where it was gone back to.
    """

    model: nn.Module
    history: list[Epoch]
    final: Mapping[str, float]
    warnings: tuple[str, ...]
    seconds: float
    trained: int = field(kw_only=True)
    exactness: Exactness | None = field(default=None, kw_only=True)
    remembers: tuple[str, ...] = field(default=(), kw_only=True)
    kept: tuple[Kept, ...] = field(default=(), kw_only=True)
    shards: Shards | None = field(default=None, kw_only=True)
    origin: Origin | None = field(default=None, kw_only=True)


@dataclass(frozen=True)
class RunOptions:
    """How a plan is run, apart from model, method, data and hardware.

    Attributes:
        seed: of everything random.
        teacher: the original with what it has computed, shared by several runs; None makes one.
        cache_teacher: whether the logits of a teacher made here are cached; None decides by watching the inputs.
        prefix: for a teacher made here, the first module that is trained: the layers before it stay frozen and run
            once, and the plan sees the layers behind them. A given ``teacher`` has its own.
        model_factory: builds a randomly initialised model of the same architecture, for a plan that starts anew;
            without it each module's own ``reset_parameters`` makes one of a copy.
        on_epoch: called with each epoch's record.
        on_state: called after each epoch; it may look at the student, and end the plan by an exception.
        checkpoint: where a long training is kept, for the same command to go on after a kill; not with several ranks.
        keep: which states of the training stay with the version.
        past: what the version keeps of its training, for a method that goes back.
        sharded: what an ensemble's version keeps of its training; methods that train shards need it.
    """

    seed: int
    teacher: Teacher | None = None
    cache_teacher: bool | None = None
    prefix: str | None = None
    model_factory: Callable[[], nn.Module] | None = None
    on_epoch: Callable[[Epoch], None] | None = None
    on_state: Watch | None = None
    checkpoint: Checkpoint | None = None
    keep: Keep | None = None
    past: Past | None = None
    sharded: "ShardedPast | None" = None

    def __getstate__(self) -> dict[str, Any]:
        """What other ranks are sent: the callbacks are rank 0's own."""
        return {**vars(self), **dict.fromkeys(("on_epoch", "on_state", "checkpoint", "keep", "past"))}


@ranks.on_all_ranks
@users_code("the model, its data or the method")
def run(model: nn.Module, method: Method, datasets: Datasets, hardware: Hardware, options: RunOptions) -> Outcome:
    """Run a method's plan on a copy of ``model``.

    The caller's model, the global random states and the grad mode are untouched. Same seed, same machine, same
    versions: bit-identical weights.

    Args:
        model: an image classifier, images ``[N, C, H, W]`` to logits ``[N, K]``.
        method: whose plan.
        datasets: what the plan may ask for, by split.
        hardware: where and in which precision.
        options: the rest.

    Raises:
        UnlearnError: no parameter can be trained, the method refuses the model, or the loss is not finite.
        BrokenMethod: code of a plugin's method fails.
    """
    start = time.perf_counter()
    home = next(model.parameters()).device
    with (
        isolated_rng(options.seed),
        torch.inference_mode(False),
        torch.enable_grad(),
        deterministic_convolutions(),
        full_precision(hardware.precision),
    ):
        student = hardware.place(copy.deepcopy(model))
        teacher = options.teacher
        if teacher is None:
            original = hardware.place(copy.deepcopy(model))
            teacher = Teacher(original, datasets, hardware, cache=options.cache_teacher, prefix=options.prefix)
        trained, samples = student, datasets
        if teacher.prefix is not None:
            trained = split_at(student, teacher.prefix).trainable_head
            datasets, hardware = teacher.datasets, replace(hardware, num_workers=None)
        if not any(p.requires_grad for p in trained.parameters()):
            raise UnlearnError("all parameters of the model are frozen: set requires_grad on those to be trained")
        if method.own_prefix and teacher.prefix is not None:
            raise UnlearnError(
                f"{method.name} decides itself which layers stay frozen: use {spelled('prefix', 'none')}"
            )
        refusal = method.unsuited(trained)
        if refusal is not None:
            raise UnlearnError(refusal)
        state, beside = TrainerState(trained, datasets, teacher, hardware, options), beside_the_weights(student)
        workspace: TrainerState | ResumableWorkspace = state
        if options.checkpoint is not None and ranks.size() == 1:
            stored = options.checkpoint.open(model, method, samples, hardware, options.seed, teacher.prefix)
            workspace = ResumableWorkspace(state, options.checkpoint, stored)
            start -= workspace.elapsed
        plan = method.plan(workspace)
        try:
            phase = next(plan)
            while True:
                state.trained += state.samples_of(phase)
                stats = workspace.run_phase(phase, method.name)
                state.epochs += phase.epochs
                if not (isinstance(workspace, ResumableWorkspace) and workspace.resuming):
                    state.keep()
                phase = plan.send(stats)
        except StopIteration as stop:
            final = stop.value or {}
        except Exception as error:
            going_on = isinstance(workspace, ResumableWorkspace) and workspace.resuming
            if options.checkpoint is not None and (going_on or isinstance(error, UnlearnError)):
                options.checkpoint.remove()  # from there it would come to the same end
            # By name: to import the class takes a second.
            if not any(kind.__name__ == "TorchDynamoException" for kind in type(error).__mro__):
                if (where := _in_own_code(method, error)) is None or isinstance(error, UnlearnError | BrokenMethod):
                    raise
                reason = f"{type(error).__name__}: {first_line(error)}"
                raise BrokenMethod(f"the method {method.name} failed in {where} ({reason}): correct it") from error
            reason = next(line for line in str(error).splitlines() if line.strip())
            raise UnlearnError(
                f"the model cannot be compiled here ({reason}): leave {spelled('compile')} out"
            ) from error
    remembers = changed(beside, beside_the_weights(student))
    student.zero_grad(set_to_none=True)
    student = student.to(home, memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    seconds = time.perf_counter() - start
    return Outcome(
        student.eval(),
        state.history,
        final,
        tuple(state.warnings),
        seconds,
        trained=state.trained,
        exactness=doubted(state.exactness, remembers, BESIDE),
        remembers=tuple(remembers),
        kept=tuple(state.kept),
        origin=None if state.start is None else state.start.origin,
    )


def _in_own_code(method: Method, error: Exception) -> str | None:
    """File and line of a plugin's own code that failed; None where it is not at fault, or the method is ours."""
    ours, own = __name__.partition(".")[0], type(method).__module__.partition(".")[0]
    where = None
    for frame, line in traceback.walk_tb(error.__traceback__):
        package = str(frame.f_globals.get("__name__")).partition(".")[0]
        if package == own != ours:
            where = f"{'/'.join(Path(frame.f_code.co_filename).parts[-2:])}, line {line}"
        elif package == ours:  # called by it, such as a callback that ends a trial
            where = None
    return where


@dataclass
class Progress:
    """How far a phase is.

    Attributes:
        epoch: passes that are done.
        step: steps of the next one that are done.
        order: state of the generator that has shuffled this one.
        total: sum of the losses over samples.
        count: samples.
        correct: forget samples whose class was predicted.
        forgotten: forget samples.
        seconds: wall-clock.
    """

    epoch: int = 0
    step: int = 0
    order: Tensor | None = None
    total: float = 0.0
    count: int = 0
    correct: int = 0
    forgotten: int = 0
    seconds: float = 0.0


class TrainerState:
    """The `Workspace` of one plan, and the state of its loop."""

    def __init__(
        self, model: nn.Module, datasets: Datasets, teacher: Teacher, hardware: Hardware, options: RunOptions
    ) -> None:
        """Compute nothing yet.

        Args:
            model: the student, or its trainable head.
            datasets: what ``model`` reads, by split.
            teacher: the original.
            hardware: where and in which precision.
            options: those of `run`.
        """
        self.model, self.teacher, self.hardware = model, teacher, hardware
        self._given_prefix = teacher.prefix
        self.generator = torch.Generator().manual_seed(options.seed)
        self.history: list[Epoch] = []
        self.warnings: list[str] = []
        self.trained = 0
        self._read_forget = self._anew = False
        self._not_anew: dict[str, Tensor] = {}
        self._given: list[str] = []
        self.epochs = 0
        self.kept: list[Kept] = []
        self.start: Point | None = None
        self._state_at_start: State = {}
        self._datasets, self._options = datasets, options
        self._labels: dict[str, Tensor] = {}
        self._reader: BatchReader | None = None
        # Of what is drawn by sample, such as a random transform: each rank has its own samples.
        self._worker_seeds = torch.Generator().manual_seed((options.seed + ranks.rank()) % 2**64)
        self._optimizers: dict[OptimizerSpec, tuple[torch.optim.Optimizer, LRScheduler | None]] = {}
        self._steps: dict[OptimizerSpec, int] = {}

    def labels(self, role: SplitName) -> Tensor:
        """The labels ``[N]`` of a split, read once.

        Raises:
            UnlearnError: they are of another shape.
        """
        if role not in self._labels:
            labels = labels_of(self._datasets[role])
            if labels.ndim != 1:
                raise UnlearnError(
                    f"the labels of the {role} set have shape {list(labels.shape)}: give one class a sample"
                )
            self._labels[role] = labels
        return self._labels[role]

    def predictions(self, role: SplitName, *, teacher: bool = False) -> Tensor:
        """Predicted classes ``[N]`` in eval mode, on the CPU."""
        if teacher:
            return self.teacher.predictions(role)
        return predict(self.model, self._datasets[role], replace(self.hardware, progress=False))

    def teacher_entropies(self, role: SplitName) -> Tensor:
        """The entropies ``[N]`` of the teacher's softmax outputs, nats, on the CPU."""
        return self.teacher.entropies(role)

    def teacher_margins(self, role: SplitName) -> Tensor:
        """The margins ``[N]`` of the true class in the teacher's logits, on the CPU."""
        return self.teacher.margins(role)

    def batches(self, role: SplitName, batch_size: int, index: Tensor | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Images ``[B, C, H, W]`` and labels ``[B]``, in order, on the device; of all samples, or of ``index [M]``."""
        self._read_forget |= role == "forget"
        dataset = self._datasets[role]
        order = in_order(dataset, batch_size) if index is None else _parts(index, batch_size)
        for images, labels in self.hardware.batches(dataset, order):
            self.trained += len(labels)
            yield self.hardware.images(images), labels.to(self.hardware.device).long()

    def optimise_inputs(
        self, images: Tensor, labels: Tensor, loss: InputLoss, optimizer: OptimizerSpec, steps: int
    ) -> Tensor:
        """As `Workspace` describes it; the images come back on the CPU.

        Args:
            images: where to start, ``[N, C, H, W]``.
            labels: ``[N]``.
            loss: ``(images, logits [N, K], labels)`` to a scalar.
            optimizer: of the images.
            steps: how many.
        """
        optimised = images.to(self.hardware.device).clone().requires_grad_()
        labels = labels.to(self.hardware.device)
        rule = _build_optimizer(optimizer, [optimised])
        self.trained += steps * len(images)
        with eval_mode(self.model):
            for _ in range(steps):
                logits = self.hardware.logits(self.model, optimised, labels)
                (optimised.grad,) = torch.autograd.grad(loss(optimised, logits, labels), optimised)
                rule.step()
        return optimised.detach().cpu()

    learn_inputs = optimise_inputs  # its name in earlier versions, which plugins may call

    def reinitialise(self) -> None:
        """Fresh random weights where they can be trained.

        Raises:
            UnlearnError: layers are frozen by a prefix.
        """
        if self._given_prefix is not None:
            raise UnlearnError(retrains_all())
        build = self._options.model_factory or partial(reinitialised_copy, self.model)
        # Nothing would train frozen parameters again.
        frozen = {name: p.detach() for name, p in self.model.named_parameters() if not p.requires_grad}
        self._anew = self.teacher.prefix is None
        before = {name: value.detach().clone() for name, value in self.model.state_dict().items()}
        fresh = build().state_dict()
        self.model.load_state_dict({name: fresh[name] for name in before} | frozen)
        if self._anew:
            now = self.model.state_dict()
            # What a builder gives is not the version's, whatever it is equal to.
            alike = [*frozen] if self._options.model_factory is not None else [*before]
            same = (name for name in alike if torch.equal(now[name], before[name]))
            self._not_anew = {name: before[name] for name in same if not is_default(before[name])}
            self._given = not_drawn(build)

    def freeze_before(self, name: str) -> None:
        """As `Workspace` describes it; to be called before any phase.

        Raises:
            UnlearnError: the model cannot be split there, or a prefix has been given.
        """
        if self._given_prefix is not None:
            raise UnlearnError(
                f"the layers before {self._given_prefix!r} are frozen already: use {spelled('prefix', 'none')}"
            )
        self.teacher = Teacher(
            self.teacher.model, self._datasets, self.hardware, cache=self._options.cache_teacher, prefix=name
        )
        self.model = split_at(self.model, name).trainable_head
        self._datasets, self.hardware = self.teacher.datasets, replace(self.hardware, num_workers=None)

    def rewind(self, share: float, epochs: int, *, fall_back: bool = False) -> int:
        """As `Workspace` describes it; to be called before any phase.

        Args:
            share: of the schedule.
            epochs: of the whole schedule.
            fall_back: whether a lost state gives way to the one before it.

        Raises:
            UnlearnError: there is nothing to go back to, it is lost, or it belongs to another schedule.
        """
        if ranks.world() > 1:
            raise UnlearnError(f"a training is run again in one process: leave {spelled('processes')} out")
        past = self._options.past
        if past is None:
            raise UnlearnError(
                f"there is no training to go back to: a version keeps it of `train` with {spelled('keep_checkpoints')} "
                f"or {spelled('from')}"
            )
        if epochs != past.epochs:
            raise UnlearnError(f"epochs = {epochs}, and the recorded training has {past.epochs}: leave epochs out")
        self.start, saved = past.go_back(share, fall_back=fall_back, warn=self.warn)
        self.epochs = self.start.epochs
        if "optimizers" in saved:
            self._put_training(saved)
            self._state_at_start = saved
        else:
            _put(self.model, saved["model"])
            self.generator.manual_seed(past.seed)
            self._worker_seeds.manual_seed(past.seed)
            seed_all(past.seed)
        return self.start.epochs

    def keep(self) -> None:
        """Store the state of the training, if one is to be kept after so many epochs."""
        keep = self._options.keep
        if keep is not None and self.epochs in keep.after(0 if self.start is None else self.start.epochs):
            self.kept.append(keep.store(self._training(), self.epochs))

    @property
    def exactness(self) -> Exactness | None:
        """What may be claimed at the end of a training that was run again."""
        steps = max(self._steps.values(), default=0)
        if self.start is None or self._options.past is None:
            return self._trained_anew(self.epochs * steps) if self._anew and not self._read_forget else None
        if self._read_forget:  # a plugin's method may
            return Exactness(
                covers="The training was gone back on, and the method has read the forgotten samples since."
            )
        return self._options.past.exactness(self.start, steps)

    def _trained_anew(self, steps: int) -> Exactness | None:
        """Of a training from random weights that took so many steps."""
        trainable = {name for name, parameter in self.model.named_parameters() if parameter.requires_grad}
        now, parameters = self.model.state_dict(), dict(self.model.named_parameters())
        # A buffer that training does not change is a constant.
        stayed = [name for name, old in self._not_anew.items() if name in parameters or not torch.equal(now[name], old)]
        claim = Exactness(kind="exact", covers=ANEW, excludes=[CHOSEN], steps=steps, steps_from_scratch=steps)
        return doubted(doubted(claim, stayed, STAYED), [name for name in self._given if name in trainable], GIVEN)

    def warn(self, sentence: str) -> None:
        """Keep ``sentence`` for the `Outcome`."""
        self.warnings.append(sentence)

    def record(self, **values: float) -> None:
        """Add an epoch to the history and call back."""
        self.history.append(values)
        if self._options.on_epoch is not None:
            self._options.on_epoch(values)
        if self._options.on_state is not None:
            with isolated_rng(0):
                self._options.on_state(values, self.model, self._datasets)

    def snapshot(self) -> dict[str, Tensor]:
        """A copy of the student's state dict, tensors ``[…]`` by name."""
        return {name: value.detach().clone() for name, value in self.model.state_dict().items()}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Load a `snapshot`, tensors ``[…]`` by name."""
        self.model.load_state_dict(state)

    @cached_property
    def _parallel(self) -> nn.Module:
        """The student in training: compiled where the hardware says so, its gradients averaged over the ranks."""
        model = self.model
        if ranks.size() > 1:
            model = DistributedDataParallel(model, find_unused_parameters=True)
        return torch.compile(model) if self.hardware.compile else model  # type: ignore[return-value]

    def samples_of(self, phase: Phase) -> int:
        """How many samples all epochs of ``phase`` train on, those that repeat counted as often."""
        data = PhaseSamples(self._datasets, phase)
        # Of a pair of sets the shorter one cycles.
        return phase.epochs * (sum(map(len, data.epoch(phase, None))) if phase.paired else len(data))

    def fill(self, phase: Phase) -> None:
        """Run the frozen layers, where there are any, over the samples of ``phase`` that they have not seen yet."""
        for split, index in (("forget", phase.forget), ("retain", phase.retain)):
            dataset = self._datasets.get(split)
            if index is not None and isinstance(dataset, Activations):
                dataset.fill(index)

    def run_phase(
        self, phase: Phase, name: str, progress: Progress | None = None, pause: Callable[[Progress], None] | None = None
    ) -> PhaseStats:
        """Train for the epochs of ``phase``.

        Args:
            phase: of the plan.
            name: stands on the progress bar.
            progress: where to go on.
            pause: called after steps and epochs from which one could go on.

        Raises:
            UnlearnError: the loss is not finite.
        """
        self._read_forget |= phase.forget is not None and len(phase.forget) > 0
        at = progress or Progress()
        start = time.perf_counter() - at.seconds
        self.fill(phase)
        data = PhaseSamples(self._datasets, phase)
        steps_per_epoch = len(data.epoch(phase, None))
        optimizer, scheduler = self._optimizer(phase.optimizer, steps_per_epoch)
        if scheduler is None:
            for group in optimizer.param_groups:
                group["lr"] = phase.optimizer.lr * phase.lr_scale
        # Random inputs of processes that read ahead cannot be had again from the middle of an epoch.
        same_again = all(map(is_deterministic, data.datasets))
        pause_in_epoch = pause if same_again or self.hardware.num_workers == 0 else None
        for epoch in range(at.epoch, phase.epochs):
            passes = len(self.history) + epoch + 1
            if at.order is None:
                at.order = self.generator.get_state()
                batches = data.epoch(phase, self.generator)
            else:
                batches = data.epoch(phase, _generator(at.order))[at.step :]
            # The last phase's reader, with its processes, where this one reads the same samples.
            if self._reader is None or not data.is_like(self._reader.dataset):
                self._reader = self.hardware.reader(data, self._worker_seeds, persistent=same_again)
            loader = self._shards(self._reader.read([ranks.shard(batch) for batch in batches]), batches)
            # Set in each epoch: a plan may have measured the model in between.
            self.model.train()
            if phase.frozen_statistics or len(data) == 1:
                # Of every layer that keeps them: BatchNorm, and InstanceNorm where it is so configured.
                for module in self.model.modules():
                    if getattr(module, "track_running_stats", False):
                        module.eval()
            steps = track(loader, f"{name}: epoch {passes}", enabled=self.hardware.progress, total=len(batches))
            for batch, samples in zip(batches, steps, strict=True):
                loss, seen = self._step(phase, optimizer, samples, len(batch))
                at.step += 1
                if not torch.isfinite(loss):
                    raise UnlearnError(
                        f"the loss became {loss.item()} in epoch {passes}, step {at.step}, "
                        f"with lr {phase.optimizer.lr:g}: try a smaller lr, say {phase.optimizer.lr / 10:g}"
                    )
                if scheduler is not None:
                    scheduler.step()
                at.total, at.count = at.total + loss.item() * len(batch), at.count + len(batch)
                hits = seen.logits[seen.forget].argmax(dim=1) == seen.labels[seen.forget]
                at.correct, at.forgotten = at.correct + int(hits.sum()), at.forgotten + len(hits)
                at.seconds = time.perf_counter() - start
                if pause_in_epoch is not None and at.step < steps_per_epoch:
                    pause_in_epoch(at)
            at.epoch, at.step, at.order = epoch + 1, 0, None
            if pause is not None:
                pause(at)
        ranks.synchronise(self.model)
        acc_forget = at.correct / at.forgotten if at.forgotten else None
        return PhaseStats(at.total / at.count, time.perf_counter() - start, acc_forget)

    def saved(self, without: Iterable[str]) -> dict[str, Any]:
        """All that further training depends on, to be put back by `load`.

        Args:
            without: splits whose teacher's logits are there anyway.
        """
        random_teacher = vars(self).get("_random_teacher")
        return {
            **self._training(),
            "teacher": self.teacher.saved(without),
            "random_teacher": random_teacher and [_tensors(random_teacher.model), random_teacher.saved(())],
        }

    def _training(self) -> dict[str, Any]:
        """The state of the training, without what a teacher has computed."""
        return {
            "model": _tensors(self.model),
            "optimizers": [
                [asdict(spec), self._steps[spec], optimizer.state_dict(), scheduler and scheduler.state_dict()]
                for spec, (optimizer, scheduler) in self._optimizers.items()
            ],
            "generators": [self.generator.get_state(), self._worker_seeds.get_state()],
            "random": rng_states(),
        }

    def _put_training(self, saved: State) -> None:
        """Weights and generators of such a state; its optimisers follow once the schedule is known."""
        _put(self.model, saved["model"])
        self.generator.set_state(saved["generators"][0])
        self._worker_seeds.set_state(saved["generators"][1])
        set_rng_states(saved["random"])

    def load(self, saved: dict[str, Any]) -> Progress:
        """Put back what `saved` gave; how far the phase was that is to go on."""
        for values, steps, optimizer_state, scheduler_state in saved["optimizers"]:
            optimizer, scheduler = self._optimizer(OptimizerSpec(**values), steps)
            optimizer.load_state_dict(optimizer_state)
            if scheduler is not None:
                scheduler.load_state_dict(scheduler_state)
        self.teacher.load(saved["teacher"])
        if saved["random_teacher"] is not None:
            weights, computed = saved["random_teacher"]
            _put(self._random_teacher.model, weights)
            self._random_teacher.load(computed)
        self._put_training(saved)
        return Progress(**saved["progress"])

    @contextmanager
    def _own_draws(self, shared: bool) -> Iterator[None]:
        """What is drawn inside is each rank's own where a batch is shared: random transforms, and dropout.

        The global generators stay as they were, the same on all ranks, for what these draw alike.
        """
        if not shared:
            yield
            return
        with isolated_rng(int(torch.randint(1 << 62, (), generator=self._worker_seeds))):
            yield

    def _shards(self, loader: Iterable[Any], batches: list[list[int]]) -> Iterator[Any]:
        """The rank's samples of each batch."""
        samples = iter(loader)
        for batch in batches:
            with self._own_draws(len(ranks.shard(batch)) < len(batch)):
                found = next(samples)
            yield found
        yield from samples  # which ends the loader's workers

    def _step(
        self, phase: Phase, optimizer: torch.optim.Optimizer, samples: list[Tensor], count: int
    ) -> tuple[Tensor, Batch]:
        """One step on this rank's ``samples`` of a batch of ``count``; the loss is that of the whole batch."""
        images, labels, forget, index = samples
        images = self.hardware.images(images)
        teacher_logits = self._teacher_logits(phase, images, forget, index) if phase.teacher else None
        with self._own_draws(len(images) < count):
            logits = self.hardware.logits(self._parallel, images, labels)
        tags = ranks.all_gather(torch.stack([labels, forget], dim=1).to(self.hardware.device), count)
        batch = Batch(
            ranks.all_gather(logits, count),
            tags[:, 0],
            tags[:, 1].bool(),
            None if teacher_logits is None else ranks.all_gather(teacher_logits, count),
        )
        loss = phase.loss(batch)
        if not (isinstance(loss, Tensor) and loss.numel() == 1 and loss.requires_grad):
            what = f"a tensor {list(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
            if isinstance(loss, Tensor) and loss.numel() == 1:
                what = "a number without a gradient"
            raise BrokenMethod(f"the method's loss is {what}: return a tensor of one number, made of batch.logits")
        optimizer.zero_grad(set_to_none=True)
        # The mean over ranks, which DDP takes, of the gradients through each one's own samples is to be their sum.
        (loss * (ranks.size() if len(images) < count else 1)).backward()  # type: ignore[no-untyped-call]
        if phase.before_step is not None:
            with torch.no_grad():
                phase.before_step(self.model)
        optimizer.step()
        if phase.after_step is not None:
            with torch.no_grad():
                phase.after_step(self.model)
        return loss.detach(), batch

    def _teacher_logits(self, phase: Phase, images: Tensor, forget: Tensor, index: Tensor) -> Tensor:
        on_forget = self._random_teacher if phase.teacher == "random on forget" else self.teacher
        parts = []
        for teacher, split, mask in ((on_forget, "forget", forget), (self.teacher, "retain", ~forget)):
            if mask.any():
                parts.append((mask, teacher.logits(split, index[mask], images[mask])))
        logits = torch.empty(len(images), parts[0][1].shape[1], device=parts[0][1].device)
        for mask, values in parts:
            logits[mask] = values
        return logits

    @cached_property
    def _random_teacher(self) -> Teacher:
        model = reinitialised_copy(self.teacher.reader)
        return Teacher(model, self._datasets, self.hardware, cache=self._options.cache_teacher)

    def _optimizer(self, spec: OptimizerSpec, steps_per_epoch: int) -> tuple[torch.optim.Optimizer, LRScheduler | None]:
        if spec not in self._optimizers:
            optimizer = _build_optimizer(spec, [p for p in self.model.parameters() if p.requires_grad])
            scheduler: LRScheduler | None = None
            if spec.cosine_epochs:
                scheduler = CosineAnnealingLR(optimizer, T_max=spec.cosine_epochs * steps_per_epoch)
            if spec.one_cycle_epochs:
                # One step to spare, since it is taken after the optimiser's; momentum is constant.
                steps = spec.one_cycle_epochs * steps_per_epoch + 1
                schedule = partial(OneCycleLR, optimizer, max_lr=spec.lr, total_steps=steps, cycle_momentum=False)
                scheduler = schedule()
                if self._state_at_start:
                    # Momentum as it was; the rate where the schedule was left, whose epochs may have other steps now.
                    [[_, _, stored, _]] = self._state_at_start["optimizers"]
                    groups = optimizer.state_dict()["param_groups"]
                    optimizer.load_state_dict({"state": copy.deepcopy(stored["state"]), "param_groups": groups})
                    scheduler = schedule(last_epoch=self.epochs * steps_per_epoch - 1)
            self._optimizers[spec], self._steps[spec] = (optimizer, scheduler), steps_per_epoch
        return self._optimizers[spec]


def _parts(index: Tensor, size: int) -> list[list[int]]:
    return [part.tolist() for part in torch.split(index, size)]


def _generator(state: Tensor) -> torch.Generator:
    generator = torch.Generator()
    generator.set_state(state)
    return generator


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers ``[…]`` by name, also those that are in no state dict."""
    return {name: value.detach() for name, value in (*module.named_parameters(), *module.named_buffers())}


def _put(module: nn.Module, values: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for name, value in _tensors(module).items():
            value.copy_(values[name])


def _build_optimizer(spec: OptimizerSpec, parameters: list[Any]) -> torch.optim.Optimizer:
    # One kernel for all tensors, where there is one.
    fused = all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in parameters)
    kinds: dict[str, Any] = {
        "adamw": torch.optim.AdamW,
        "adam": torch.optim.Adam,
        "sgd": partial(torch.optim.SGD, momentum=spec.momentum, nesterov=spec.nesterov),
    }
    built: torch.optim.Optimizer = kinds[spec.name](parameters, spec.lr, weight_decay=spec.weight_decay, fused=fused)
    return built
