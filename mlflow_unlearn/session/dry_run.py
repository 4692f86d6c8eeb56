"""A dry run: what a command will take in time, memory and disk, from a short calibration on this very machine.

The command's own code runs on a fraction of the data. The seconds of a method over the fraction f with E epochs are
modelled as ``a + c f + d f E``: what it does once, once a sample, and in each epoch.
"""

import statistics
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import numpy.typing as npt
import torch
from rich.table import Table
from torch.utils.data import Dataset, Subset, TensorDataset

from mlflow_unlearn.console import STARTED, say
from mlflow_unlearn.data.batching import LARGEST_BATCH, forward_batch
from mlflow_unlearn.data.splits import Splits, labels_of
from mlflow_unlearn.engine.architectures import model_family
from mlflow_unlearn.engine.ensemble import Ensemble
from mlflow_unlearn.engine.frozen_prefix import resolve
from mlflow_unlearn.engine.loop import Outcome, RunOptions, run
from mlflow_unlearn.engine.predictions import evaluate_split, evaluate_splits
from mlflow_unlearn.engine.shards import ShardedPast, frozen_features
from mlflow_unlearn.engine.teacher import Teacher
from mlflow_unlearn.methods import get_method
from mlflow_unlearn.methods.retrain import Training
from mlflow_unlearn.metrics.outputs import SplitOutputs
from mlflow_unlearn.metrics.suite import compute_metrics
from mlflow_unlearn.registry.flavor import NewModel, save_model
from mlflow_unlearn.registry.versions import Record
from mlflow_unlearn.report.fit import show_table
from mlflow_unlearn.session.ensemble import sharded_past
from mlflow_unlearn.session.past import CHECKPOINTS
from mlflow_unlearn.session.recipe import Recipe
from mlflow_unlearn.session.session import Session

BATCHES = 24
"""The larger of the two fractions of the training set has so many batches, where they are quick."""
SLOW = 4.0
"""Seconds of a calibrating step: what takes longer is precise enough on less data."""
ENOUGH, TIMES = 1.0, 7
"""What is quick is timed again, for so many seconds and so often: one short time may be several times another one."""
_CALLS = 50
"""Of the store, by a command that registers a version; each method adds ten or so."""
_EVIDENCE = 100_000
"""Bytes of record, report and card, for ten classes; they are stored with the run and with the model."""


@dataclass(frozen=True)
class Estimate:
    """What is to be expected.

    Attributes:
        seconds: by phase of the command.
        memory: peak anonymous memory of the process, in bytes; None where the system does not report it.
        disk: bytes that stay, by what they are.
    """

    seconds: Mapping[str, float]
    memory: int | None
    disk: Mapping[str, int]


@dataclass(frozen=True)
class Workload:
    """A method, and how often it runs.

    Attributes:
        method: registered name.
        params: hyperparameters; the rest is the method's.
        seed: of the calibration.
        recipe: for retraining.
        times: how often.
        name: in the table; default: the method.
    """

    method: str
    params: Mapping[str, Any]
    seed: int
    recipe: Recipe | None = None
    times: int = 1
    name: str = ""

    @property
    def label(self) -> str:
        """Its row in the table."""
        name = self.name or self.method
        return name if self.times == 1 else f"{name}, {self.times} times"


def estimate(
    session: Session, workloads: Sequence[Workload], *, prefix: str = "none", models: int, record: Record | None
) -> Estimate:
    """What a command costs that runs ``workloads`` on a session.

    Args:
        session: opened as for the work.
        workloads: what runs.
        prefix: as the command's option.
        models: how many are measured: the original, what comes of it, golds.
        record: of the version that is registered; None where none is.
    """
    opened = time.monotonic() - STARTED
    session = replace(session, hardware=replace(session.hardware, progress=False))
    sets = vars(session.splits)
    count = sum(len(data) for data in sets.values())
    with _peak_memory() as peak:
        first, again, outputs = _evaluation_seconds(session)
        seconds = {
            "open version and data": opened,
            "measure the original": first * count,
            **{one.label: method_seconds(session, one, prefix) * one.times for one in workloads},
            **({f"measure {models - 1} more": again * count * (models - 1)} if models > 1 else {}),
            "metrics": _metrics_seconds(session, models) * models,
        }
        version = 0
        if record is not None:
            start = time.perf_counter()
            path = session.folder / "planned"
            trained_on = session.stored_manifest(session.retain)
            save_model(NewModel(session.module, record, trained_on, session.folder, source=session.version), path)
            seconds["save the version"] = time.perf_counter() - start
            version = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        runs = sum(one.times for one in workloads)
        seconds["log and register"] = _store_seconds() * ((_CALLS if record is not None else _CALLS / 3) + 10 * runs)
        highest = peak()
    cached = (4 * outputs + 8) * (count - len(sets["forget"]))  # logits and labels
    teacher = 4 * outputs * sum(len(sets[split]) for split in ("forget", "retain", "val"))
    disk = {"the new version": version, "its evidence, twice": 2 * _EVIDENCE} if record is not None else {}
    return Estimate(
        seconds, None if highest is None else highest + teacher, {**disk, "outputs kept for later commands": cached}
    )


def show(estimate: Estimate) -> Estimate:
    """Print it, log the sums on the run, and return it."""
    total = sum(estimate.seconds.values())
    table = Table(title="plan")
    table.add_column("what")
    table.add_column("how much", justify="right")
    for phase, seconds in estimate.seconds.items():
        table.add_row(phase, _duration(seconds))
    table.add_row("time, in all", _duration(total), style="bold", end_section=True)
    if estimate.memory is not None:
        table.add_row("memory, at the peak", _bytes(estimate.memory), style="bold", end_section=True)
    for what, size in estimate.disk.items():
        table.add_row(f"disk: {what}", _bytes(size))
    show_table(table)
    say("A method may stop earlier by its own rule. Nothing was unlearned, filed or registered.")
    mlflow.log_metrics({"plan.seconds": total, "plan.disk_bytes": float(sum(estimate.disk.values()))})
    if estimate.memory is not None:
        mlflow.log_metric("plan.memory_bytes", estimate.memory)
    return estimate


def _evaluation_seconds(session: Session) -> tuple[float, float, int]:
    """Seconds a sample, in the first pass over the data and in later ones, and the number of outputs."""
    retain = session.splits.retain
    count: int = len(retain)  # type: ignore[arg-type]

    def seconds(start: int, stop: int) -> tuple[float, int]:
        part = Subset(retain, range(start, stop))
        began = time.perf_counter()
        evaluated = evaluate_splits(session.module, Splits(part, part, part, part), session.hardware, only=("retain",))
        return (time.perf_counter() - began) / len(part), len(evaluated["retain"].class_sums)

    batch = min(forward_batch(retain, session.hardware.device), count // 2 or 1)
    # The first batch takes what the first pass of a process takes more.
    warm, outputs = seconds(0, batch)
    start = batch % count
    stop = min(count, start + max(batch, min(4 * batch, int(SLOW / warm))))
    return seconds(start, stop)[0], seconds(start, stop)[0], outputs


def method_seconds(session: Session, workload: Workload, prefix: str = "none") -> float:
    """What the method alone takes, once."""
    if get_method(workload.method).needs == CHECKPOINTS:
        return method_seconds(session, _as_training(session, workload))
    anew = get_method(workload.method).needs is None
    if get_method(workload.method).by_shards and (past := sharded_past(session, anew=anew)) is not None:
        if anew:
            given = get_method(workload.method)(workload.params).params.model_dump()
            past = replace(past, shards=past.shards.model_copy(update={"params": given}))
        own, everything = sharded_seconds(session, past)
        return everything if anew else own
    recipe, seed = workload.recipe, workload.seed
    params = get_method(workload.method)(workload.params, family=model_family(session.module)).params.model_dump()
    batch, epochs = int(params.get("batch_size", LARGEST_BATCH)), int(params.get("epochs", 1))
    count: int = len(session.splits.forget) + len(session.splits.retain)  # type: ignore[arg-type]
    larger = min(1.0, BATCHES * batch / count)
    split_point = None if recipe is not None else resolve(session.module, prefix, vars(session.splits))

    def seconds(fraction: float, epochs: int) -> float:
        splits = Splits(**{split: _subset(data, fraction) for split, data in vars(session.splits).items()})
        # LoTUS compares the forget set with unseen samples of its classes.
        splits = replace(splits, val=_subset(session.splits.val, fraction, classes=labels_of(splits.forget).numpy()))
        some = {**params, "epochs": epochs} if "epochs" in params else params
        if recipe is not None:
            splits, options = recipe.splits(splits), RunOptions(seed, model_factory=recipe.model_factory)
        else:
            module = session.hardware.place(session.module)
            teacher = Teacher(module, vars(splits), session.hardware, prefix=split_point)
            teacher.fill(("forget", "retain", "val"))
            options = RunOptions(seed, teacher=teacher)
        start = time.perf_counter()
        session.unlearn(workload.method, some, options, splits=splits)
        return time.perf_counter() - start

    # The first run takes longer than the others, and shows how slow they are.
    if seconds(larger / 9, 1) > SLOW:
        larger = max(larger / 3, min(1.0, batch / count))  # a whole batch: the memory of a step is that of its batch
    smaller = larger / 3
    low, high = _steady(lambda: seconds(smaller, 1)), _steady(lambda: seconds(larger, 1))
    by_epoch = (_steady(lambda: seconds(larger, 2)) - high) / larger if epochs > 1 else 0.0
    by_fraction = (high - low) / (larger - smaller)
    # Where everything takes milliseconds, noise may make a slope negative.
    return high + max(0.0, by_fraction) * (1 - larger) + max(0.0, by_epoch) * (epochs - 1)


def _as_training(session: Session, workload: Workload) -> Workload:
    """A training from random weights with as many epochs as are run again: its checkpoints fit one schedule alone."""
    params = get_method(workload.method)(workload.params, family=model_family(session.module)).params.model_dump()
    past = session.own_training.past
    again = past.epochs - past.candidates(params["share"])[0].epochs
    recipe = {name: params[name] for name in get_method("retrain").Params.model_fields}
    return replace(workload, method="retrain", params={**recipe, "epochs": again}, name=workload.label)


def sharded_seconds(session: Session, past: ShardedPast) -> tuple[float, float]:
    """What training the touched shards of an ensemble again takes, and what training all of them anew would.

    From the seconds a sample of one sub-model's steps, and where layers are frozen, of their one forward pass.

    Raises:
        ValueError: the version is one model.
    """
    ensemble, retain, shards = session.module, session.splits.retain, past.shards
    if not isinstance(ensemble, Ensemble):
        raise ValueError("shards are an ensemble's")
    count: int = min(len(past.retain), BATCHES * shards.params["batch_size"])
    few: Dataset[Any] = _subset(retain, count / len(past.retain))
    by_pass = 0.0
    if ensemble.frozen is not None:
        frozen, some = session.hardware.place(ensemble.frozen), _subset(retain, min(1.0, 64 / len(past.retain)))
        read = frozen_features(frozen, some, session.hardware)
        by_pass = _steady(lambda: _timed(lambda: frozen_features(frozen, some, session.hardware))) / len(read)
        rows = torch.arange(count) % len(read)
        few = TensorDataset(read.tensors[0][rows], labels_of(few))
    method = Training({**shards.params, "epochs": 1})
    # Both costs come of this one figure: whatever else the machine does, it changes them alike.

    def train() -> Outcome:
        return run(ensemble.members[0], method, {"retain": few}, session.hardware, RunOptions(0))

    train()  # the first one takes longer
    by_step = _steady(lambda: _timed(train)) / count
    touched = np.isin(past.retain.shard, list(past.begin())).sum()
    own, anew = past.cost()
    return (
        by_step * own.samples + by_pass * int(touched),
        by_step * anew.samples + by_pass * len(past.retain),
    )


def _timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _steady(seconds: Callable[[], float]) -> float:
    """The median of several timings of what is quick, and one of what is slow."""
    times = [seconds()]
    while sum(times) < ENOUGH and len(times) < TIMES:
        times.append(seconds())
    return statistics.median(times)


def _metrics_seconds(session: Session, models: int) -> float:
    """Of one model: on outputs of the right size, whose values do not matter."""
    hardware = session.hardware
    module = hardware.place(session.module)
    outputs = {}
    for split, data in vars(session.splits).items():
        labels = labels_of(data).numpy()
        size = len(labels)
        few = evaluate_split(module, _subset(data, min(1.0, 8 / size)), hardware, keep_probabilities=split == "forget")
        outputs[split] = SplitOutputs(
            labels,
            np.resize(few.predictions, size),
            np.resize(few.entropies, size),
            np.resize(few.confidences, size),
            np.resize(few.margins, size),
            np.resize(few.log_odds, size),
            few.class_sums + 1,  # no class without a sample
            None if few.probabilities is None else np.resize(few.probabilities, (size, few.probabilities.shape[1])),
        )
    start = time.perf_counter()
    compute_metrics(outputs, original_test=outputs["test"], gold=outputs if models > 2 else None)
    return time.perf_counter() - start


def _store_seconds() -> float:
    """Of one call of the tracking store, a write."""
    calls = 5
    start = time.perf_counter()
    for step in range(calls):
        mlflow.log_metric("plan.calls", step)
    return (time.perf_counter() - start) / calls


def _subset(dataset: Any, fraction: float, classes: npt.ArrayLike = ()) -> Subset[Any]:
    """Evenly spread samples, two at least, and the first one of each of ``classes [C]`` that it has."""
    count = len(dataset)
    chosen = np.linspace(0, count - 1, max(min(2, count), round(fraction * count))).round().astype(int)
    if np.size(classes):
        found, first = np.unique(labels_of(dataset).numpy(), return_index=True)
        chosen = np.union1d(chosen, first[np.isin(found, classes)])
    return Subset(dataset, chosen.tolist())


@contextmanager
def _peak_memory() -> Iterator[Callable[[], int | None]]:
    """Sampled ``RssAnon`` of this process: mapped files do not count."""
    status = Path("/proc/self/status")
    peak, done = [0], threading.Event()

    def sample() -> None:
        while not done.wait(0.02):
            line = next(line for line in status.read_text().splitlines() if line.startswith("RssAnon"))
            peak[0] = max(peak[0], 1024 * int(line.split()[1]))

    thread = threading.Thread(target=sample, daemon=True)
    if status.exists():
        thread.start()
    try:
        yield lambda: peak[0] or None
    finally:
        done.set()
        if thread.is_alive():
            thread.join()


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _bytes(size: float) -> str:
    return f"{size / 1e6:.1f} MB" if size < 1e9 else f"{size / 1e9:.2f} GB"
