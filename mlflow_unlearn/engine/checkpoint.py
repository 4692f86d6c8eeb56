"""Where a long training stands, on disk: the same command goes on there after its process was killed.

A plan is a generator, which cannot be stored. So what it has been told is: on the way back it runs again from its
beginning, with the recorded answers in the place of the measurements and passes that they came from, and then the
weights, the optimisers and the random states are put where they were. The weights come out as without the kill, bit for
bit on a CPU.
"""

import hashlib
import io
import json
import math
import os
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from mlflow_unlearn import cache
from mlflow_unlearn.console import note
from mlflow_unlearn.data.content import content_digest
from mlflow_unlearn.data.fingerprints import value_digest
from mlflow_unlearn.engine.hardware import Hardware
from mlflow_unlearn.engine.method import Datasets, InputLoss, Method, OptimizerSpec, Phase, PhaseStats, SplitName
from mlflow_unlearn.engine.output_cache import model_cache_key
from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.evidence.checkpoints import Kept
from mlflow_unlearn.rng import rng_states, set_rng_states

if TYPE_CHECKING:
    from mlflow_unlearn.engine.loop import Progress, TrainerState

SECONDS_VARIABLE = "MLFLOW_UNLEARN_CHECKPOINT_SECONDS"
SECONDS = 60.0
"""Of training before the first checkpoint and between two: short work has none."""

COST = 50.0
"""Between two checkpoints lies at least so many times what writing the last one took."""


class Checkpoint:
    """One training's place in the cache, which holds it from the first write until `remove`.

    Its owner removes it once a version is registered: until then the same command goes on there, also where it was
    stopped or the tracking server failed.
    """

    def __init__(self, command: str, run_id: str, data: Mapping[str, Any], of: str | None = None) -> None:
        """Read and write nothing yet.

        Args:
            command: whose training it is.
            run_id: of its run, by which a command that finishes what this one had registered finds what is left here.
            data: what identifies all samples, as JSON; their digest is kept.
            of: whose data this holds, wherever it begins: digest of the weights of the version that is unlearned, or
                what tells the training from others that makes one.

        Raises:
            UnlearnError: the environment names no number of seconds.
        """
        self.command, self._facts = command, {"run": run_id, **({} if of is None else {"of": of})}
        self._data = hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()
        given = os.environ.get(SECONDS_VARIABLE, SECONDS)
        try:
            self.interval = max(0.0, float(given))
        except ValueError as error:
            raise UnlearnError(f"{SECONDS_VARIABLE} = {given!r} is not a number of seconds: give 60, say") from error
        self._key: dict[str, Any] | None = None
        self._datasets: Datasets = {}
        self._next = time.monotonic() + self.interval  # infinite where none can be written

    def open(
        self, model: nn.Module, method: Method, datasets: Datasets, hardware: Hardware, seed: int, prefix: str | None
    ) -> Any:
        """What an earlier process has stored of the same training; None where there is nothing.

        Args:
            model: where the training starts.
            method: with its hyperparameters.
            datasets: what is read, by split; their content is looked at where there is a checkpoint.
            hardware: where and in which precision.
            seed: of everything random.
            prefix: the first module that is trained.
        """
        known, code = model_cache_key(model, hardware), value_digest(type(method))
        if known is None or code is None:
            return None
        self._datasets = datasets
        self._key = {
            **known,
            "command": self.command,
            "data": self._data,
            "method": [method.name, code],
            "params": method.params.model_dump(mode="json"),
            "seed": seed,
            "prefix": prefix,
            "training": [hardware.compile, hardware.num_workers],
        }
        found = cache.read(cache.CHECKPOINTS, self._key)
        if found is None:
            return None
        state = torch.load(io.BytesIO(found["state"].tobytes()), map_location="cpu", weights_only=True)
        return state if state["content"] == self._content else None  # the same ids, and other samples behind them

    @property
    def resume_key(self) -> str | None:
        """What the same command goes on by; None before `open`, and where there is nothing to go on by."""
        if self._key is None:
            return None
        told = json.dumps([self._key, str(cache.folder())], sort_keys=True)
        return hashlib.sha256(told.encode()).hexdigest()

    @cached_property
    def _content(self) -> str | None:
        """Digest of all samples; None where it cannot be told."""
        found = {split: content_digest(dataset) for split, dataset in self._datasets.items()}
        if None in found.values():
            return None
        return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()

    def due(self) -> bool:
        """Whether it is time to write one."""
        return self._key is not None and time.monotonic() >= self._next

    def save(self, state: Mapping[str, Any]) -> None:
        """Write ``state`` in the place of the last one; where that is not possible, there will be none."""
        if self._key is None:
            return
        if self._content is None:  # nobody could tell whether it is of the same samples
            self._next = math.inf
            return
        start, content = time.monotonic(), io.BytesIO()
        torch.save({**state, "content": self._content}, content)
        arrays = {"state": np.frombuffer(content.getbuffer(), np.uint8)}
        written = cache.write(cache.CHECKPOINTS, self._key, arrays, **self._facts)
        now = time.monotonic()
        pause = max(self.interval, COST * (now - start)) if self.interval else 0.0
        self._next = now + pause if written else math.inf

    def remove(self) -> None:
        """The training is done with, and nothing is to stay of it."""
        if self._key is not None:
            cache.drop(cache.CHECKPOINTS, self._key)


class _Snapshot(dict[str, Tensor]):
    """A state dict that tells whether the plan still has it."""


class ResumableWorkspace:
    """The `Workspace` of a plan with a checkpoint: it records what the plan is told, or tells it once more.

    A plan that looks at the weights themselves once it has trained cannot be told again what it saw: from there on no
    checkpoint is written, and an earlier one still serves.
    """

    def __init__(self, state: "TrainerState", checkpoint: Checkpoint, stored: Any) -> None:
        """Begin, or begin again where there is something ``stored``."""
        self.generator = state.generator
        self.elapsed = float(stored["elapsed"]) if stored else 0.0
        self._state, self._checkpoint, self._start = state, checkpoint, time.perf_counter()
        self._stored: dict[str, Any] | None = stored
        self._answers: list[Tensor] = []
        self._phases: list[dict[str, Any]] = []
        self._snapshots: list[weakref.ref[_Snapshot]] = []
        self._can_be_told = True
        self._full = state.teacher.complete_splits()

    @property
    def resuming(self) -> bool:
        """Whether the plan is still being told what it was told before."""
        return self._stored is not None

    @property
    def model(self) -> nn.Module:
        """The student, whose weights the plan sees or edits."""
        self._looks()
        return self._state.model

    def labels(self, role: SplitName) -> Tensor:
        """The labels ``[N]`` of a split."""
        return self._state.labels(role)

    def predictions(self, role: SplitName, *, teacher: bool = False) -> Tensor:
        """Predicted classes ``[N]``, or those of the first time."""
        return self._answer(lambda: self._state.predictions(role, teacher=teacher).int()).long()

    def teacher_entropies(self, role: SplitName) -> Tensor:
        """Entropies ``[N]`` of the teacher, nats, or those of the first time."""
        return self._answer(lambda: self._state.teacher_entropies(role))

    def teacher_margins(self, role: SplitName) -> Tensor:
        """Margins ``[N]`` of the teacher, or those of the first time."""
        return self._answer(lambda: self._state.teacher_margins(role))

    def _answer(self, ask: Callable[[], Tensor]) -> Tensor:
        number = len(self._answers)
        told: Tensor | None = None
        if self._stored is not None and number < len(self._stored["answers"]):
            told = self._stored["answers"][number]
        # Behind a frozen prefix the pass also leaves activations, whose bits depend on who asked first.
        if told is None or self._state.teacher.prefix is not None:
            computed = ask()
            told = computed if told is None else told
        self._answers.append(told)
        return told

    def batches(self, role: SplitName, batch_size: int, index: Tensor | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Images ``[B, C, H, W]`` and labels ``[B]``, in order; of all samples, or of ``index [M]``."""
        self._looks()
        return self._state.batches(role, batch_size, index)

    def optimise_inputs(
        self, images: Tensor, labels: Tensor, loss: InputLoss, optimizer: OptimizerSpec, steps: int
    ) -> Tensor:
        """As `Workspace` describes it; images ``[N, C, H, W]``.

        Args:
            images: where to start.
            labels: ``[N]``.
            loss: of images and logits.
            optimizer: of the images.
            steps: how many.
        """
        self._looks()
        return self._state.optimise_inputs(images, labels, loss, optimizer, steps)

    learn_inputs = optimise_inputs

    def reinitialise(self) -> None:
        """Fresh random weights."""
        self._state.reinitialise()

    def rewind(self, share: float, epochs: int, *, fall_back: bool = False) -> int:
        """Go back in the version's own training; the second time to the same state.

        Args:
            share: of the schedule.
            epochs: of the whole schedule.
            fall_back: whether a lost state gives way to the one before it.

        Raises:
            UnlearnError: the state that it went back to the first time is lost.
        """
        done = self._state.rewind(share, epochs, fall_back=fall_back)
        if int(self._answer(lambda: torch.tensor(done))) != done:
            raise UnlearnError("a checkpoint of the version was lost since this command was killed: start it again")
        return done

    def freeze_before(self, name: str) -> None:
        """Freeze the layers before the module ``name``."""
        self._looks()
        self._state.freeze_before(name)

    def warn(self, sentence: str) -> None:
        """Keep ``sentence`` for the outcome."""
        self._state.warn(sentence)

    def record(self, **values: float) -> None:
        """Add an epoch to the history; of the epochs of an earlier process too, whose run knows nothing else."""
        self._state.record(**values)

    def snapshot(self) -> dict[str, Tensor]:
        """A copy of the student's state dict, tensors ``[…]`` by name; those of the first time where it was kept."""
        number = len(self._snapshots)
        if self._stored is not None and number < len(self._stored["snapshots"]):
            made = _Snapshot(self._stored["snapshots"][number] or {})
        else:
            made = _Snapshot(self._state.snapshot())
        self._snapshots.append(weakref.ref(made))
        return made

    def restore(self, state: dict[str, Tensor]) -> None:
        """Load a `snapshot`, tensors ``[…]`` by name."""
        if self._stored is None:
            self._state.restore(state)

    def run_phase(self, phase: Phase, name: str) -> PhaseStats:
        """Train, or tell what came of it the first time; where the first process was killed, go on."""
        stored, number = self._stored, len(self._phases)
        if stored is not None and number < len(stored["phases"]):
            done = stored["phases"][number]
            self._phases.append(done)
            self._state.fill(phase)
            self.generator.set_state(done["generator"])
            set_rng_states(done["random"])
            return PhaseStats(*done["stats"])
        progress = None
        if stored is not None:
            progress = self._state.load(stored["trainer"])
            self._state.kept = [Kept.model_validate(one) for one in stored["kept"]]
            note(f"Note: {name} continues where this command was killed, in epoch {len(self._state.history) + 1}.")
            self._stored = None
        stats = self._state.run_phase(phase, name, progress, self._pause if self._can_be_told else None)
        self._phases.append(
            {
                "stats": [stats.loss, stats.seconds, stats.acc_forget],
                "generator": self.generator.get_state(),
                "random": rng_states(),
            }
        )
        return stats

    def __getattr__(self, name: str) -> Any:
        """What else the loop's own workspace has."""
        self._looks()
        return getattr(self._state, name)

    def _looks(self) -> None:
        if self._phases:
            self._can_be_told = False

    def _pause(self, progress: "Progress") -> None:
        """Between two steps: write a checkpoint if it is time."""
        if not self._checkpoint.due():
            return
        alive = [reference() for reference in self._snapshots]
        self._checkpoint.save(
            {
                "elapsed": self.elapsed + time.perf_counter() - self._start,
                "answers": self._answers,
                "phases": self._phases,
                "snapshots": [None if one is None else dict(one) for one in alive],
                "trainer": {**self._state.saved(self._full), "progress": asdict(progress)},
                "kept": [one.model_dump() for one in self._state.kept],
            }
        )
