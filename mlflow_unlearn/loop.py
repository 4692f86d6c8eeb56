"""The one training loop: it owns optimiser, device, precision, clock and progress; methods own the ideas."""

import copy
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR
from torch.utils.data import DataLoader, Dataset

from mlflow_unlearn.compute import (
    Precision,
    autocast,
    deterministic_convolutions,
    isolated_rng,
    pick_device,
    pick_precision,
)
from mlflow_unlearn.data.splits import labels_of
from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.forward import Hardware, checked_logits, predict
from mlflow_unlearn.methods._api import Batch, Method, OptimizerSpec, Phase, PhaseStats, Role
from mlflow_unlearn.progress import track
from mlflow_unlearn.teacher import Teacher

Epoch = dict[str, float]


@dataclass(frozen=True)
class Outcome:
    """What a finished plan leaves: the model in eval mode, one mapping per epoch, what is known of the end state."""

    model: nn.Module
    history: list[Epoch]
    final: Mapping[str, float]
    seconds: float


def run(
    model: nn.Module,
    method: Method,
    datasets: Mapping[str, Dataset[Any]],
    *,
    seed: int,
    hardware: Hardware,
    teacher: Teacher | None = None,
    cache_teacher: bool | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
) -> Outcome:
    """Carry out a method's plan on a copy of ``model``.

    The caller's model, the global random states and the grad mode are untouched. Same seed, same machine, same
    versions: bit-identical weights.

    Raises:
        UnlearnError: no parameter can be trained, or the loss is not finite.
    """
    start = time.perf_counter()
    home = next(model.parameters()).device
    with isolated_rng(seed), torch.inference_mode(False), torch.enable_grad(), deterministic_convolutions():
        student = copy.deepcopy(model).to(hardware.device)
        if teacher is None:
            frozen = copy.deepcopy(model).to(hardware.device)
            teacher = Teacher(frozen, datasets, hardware, cache=cache_teacher)
        desk = _Desk(student, teacher, datasets, seed, hardware, on_epoch)
        plan = method.plan(desk)
        try:
            phase = next(plan)
            while True:
                phase = plan.send(desk.run_phase(phase, method.name))
        except StopIteration as stop:
            final = stop.value or {}
    student.zero_grad(set_to_none=True)
    return Outcome(student.to(home).eval(), desk.history, final, time.perf_counter() - start)


def resolve_hardware(
    model: nn.Module,
    dataset: Dataset[Any],
    *,
    device: str | torch.device | None = None,
    precision: Precision = "fp32",
    num_workers: int = 0,
    progress: bool = False,
) -> Hardware:
    """Decide device and precision once; ``auto`` precision is timed on the first samples of ``dataset``."""
    picked = pick_device(device)
    images = torch.empty(0)
    with isolated_rng(0), torch.inference_mode(False), torch.enable_grad():
        if precision == "auto":
            images = torch.stack([dataset[i][0] for i in range(min(64, len(dataset)))])  # type: ignore[arg-type]
        return Hardware(picked, pick_precision(precision, model, images, picked), num_workers, progress)


class _Desk:
    """The `Workspace` of one plan, and the state of its loop."""

    def __init__(
        self,
        model: nn.Module,
        teacher: Teacher,
        datasets: Mapping[str, Dataset[Any]],
        seed: int,
        hardware: Hardware,
        on_epoch: Callable[[Epoch], None] | None,
    ) -> None:
        self.model, self.teacher, self.hardware = model, teacher, hardware
        self.generator = torch.Generator().manual_seed(seed)
        self.history: list[Epoch] = []
        self._datasets, self._on_epoch = datasets, on_epoch
        self._labels: dict[str, Tensor] = {}
        self._optimizers: dict[OptimizerSpec, tuple[torch.optim.Optimizer, LRScheduler | None]] = {}

    def labels(self, role: Role) -> Tensor:
        if role not in self._labels:
            labels = labels_of(self._datasets[role])
            if labels.ndim != 1:
                raise UnlearnError(
                    f"the labels of the {role} set have shape {list(labels.shape)}: give one class a sample"
                )
            self._labels[role] = labels
        return self._labels[role]

    def predictions(self, role: Role, *, teacher: bool = False) -> Tensor:
        model = self.teacher.model if teacher else self.model
        return predict(model, self._datasets[role], replace(self.hardware, progress=False))

    def record(self, **values: float) -> None:
        self.history.append(values)
        if self._on_epoch is not None:
            self._on_epoch(values)

    def snapshot(self) -> dict[str, Tensor]:
        return {name: value.detach().clone() for name, value in self.model.state_dict().items()}

    def restore(self, state: dict[str, Tensor]) -> None:
        self.model.load_state_dict(state)

    def run_phase(self, phase: Phase, name: str) -> PhaseStats:
        start = time.perf_counter()
        data = _TaggedSamples(self._datasets, phase)
        steps_per_epoch = len(shuffled_batches(len(data), phase))
        optimizer, scheduler = self._optimizer(phase.optimizer, steps_per_epoch)
        total, count = 0.0, 0
        for epoch in range(phase.epochs):
            passes = len(self.history) + epoch + 1
            batches = shuffled_batches(len(data), phase, self.generator)
            loader = DataLoader(
                data,
                batch_sampler=batches,
                num_workers=self.hardware.num_workers,
                pin_memory=self.hardware.device.type == "cuda",
            )
            # Set in each epoch: a plan may have measured the model in between.
            self.model.train()
            steps = track(loader, f"{name}: epoch {passes}", enabled=self.hardware.progress, total=len(batches))
            for step, samples in enumerate(steps, start=1):
                loss = self._step(phase, optimizer, samples)
                if not torch.isfinite(loss):
                    raise UnlearnError(
                        f"the loss became {loss.item()} in epoch {passes}, step {step}, "
                        f"with lr {phase.optimizer.lr:g}: try a smaller lr, say {phase.optimizer.lr / 10:g}"
                    )
                if scheduler is not None:
                    scheduler.step()
                total, count = total + loss.item() * len(samples[1]), count + len(samples[1])
        return PhaseStats(total / count, time.perf_counter() - start)

    def _step(self, phase: Phase, optimizer: torch.optim.Optimizer, samples: list[Tensor]) -> Tensor:
        images, labels, forget, index = samples
        device = self.hardware.device
        images = images.to(device, non_blocking=True)
        teacher_logits = self._teacher_logits(images, forget, index) if phase.teacher else None
        with autocast(self.hardware.precision, device):
            output = self.model(images)
        batch = Batch(checked_logits(output, labels), labels.to(device), forget.to(device), teacher_logits)
        loss = phase.loss(batch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        if phase.gradient_hook is not None:
            phase.gradient_hook(self.model)
        optimizer.step()
        return loss.detach()

    def _teacher_logits(self, images: Tensor, forget: Tensor, index: Tensor) -> Tensor:
        parts = [(mask, role) for mask, role in ((forget, "forget"), (~forget, "retain")) if mask.any()]
        logits = [self.teacher.logits(role, index[mask], images[mask]) for mask, role in parts]
        joined = torch.empty(len(images), logits[0].shape[1], device=logits[0].device)
        for (mask, _), values in zip(parts, logits, strict=True):
            joined[mask] = values
        return joined

    def _optimizer(self, spec: OptimizerSpec, steps_per_epoch: int) -> tuple[torch.optim.Optimizer, LRScheduler | None]:
        if spec not in self._optimizers:
            trainable = [p for p in self.model.parameters() if p.requires_grad]
            if not trainable:
                raise UnlearnError("all parameters of the model are frozen: set requires_grad on those to be trained")
            optimizer = (
                torch.optim.AdamW(trainable, spec.lr, weight_decay=spec.weight_decay)
                if spec.name == "adamw"
                else torch.optim.SGD(
                    trainable, spec.lr, spec.momentum, weight_decay=spec.weight_decay, nesterov=spec.momentum > 0
                )
            )
            scheduler = None
            if spec.one_cycle_epochs:
                steps = spec.one_cycle_epochs * steps_per_epoch
                # One step to spare, since it is taken after the optimiser's; momentum stays as the spec says.
                scheduler = OneCycleLR(optimizer, max_lr=spec.lr, total_steps=steps + 1, cycle_momentum=False)
            self._optimizers[spec] = (optimizer, scheduler)
        return self._optimizers[spec]


def shuffled_batches(count: int, phase: Phase, generator: torch.Generator | None = None) -> list[list[int]]:
    """Batches of positions, shuffled where a generator is given, as many as ``batch_size`` asks for and of equal size.

    A small batch at the end of each epoch would leave its noise in the running statistics of BatchNorm, which cannot
    normalise a single sample at all; so the rest is spread (and a batch of two may become one of three).
    """
    order = torch.arange(count) if generator is None else torch.randperm(count, generator=generator)
    batches = max(1, min(-(-count // phase.batch_size), count // 2))
    return [part.tolist() for part in order.tensor_split(batches)]


class _TaggedSamples(Dataset[tuple[Tensor, int, bool, int]]):
    """The samples of a phase as ``(image, label, from the forget set?, index in its set)``."""

    def __init__(self, datasets: Mapping[str, Dataset[Any]], phase: Phase) -> None:
        self._datasets = datasets
        none = torch.empty(0, dtype=torch.long)
        forget = none if phase.forget is None else phase.forget
        retain = none if phase.retain is None else phase.retain
        self._index: list[int] = torch.cat([forget, retain]).tolist()
        self._forget_count = len(forget)

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, position: int) -> tuple[Tensor, int, bool, int]:
        index, forget = self._index[position], position < self._forget_count
        image, label = cast(Any, self._datasets["forget" if forget else "retain"])[index]
        return image, int(label), forget, index
