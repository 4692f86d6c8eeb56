"""Relearning: how many epochs bring forgotten and unseen samples to the loss that the original has."""

import copy
import math
from dataclasses import dataclass, replace

import numpy as np
from pydantic import Field
from torch import nn
from torch.utils.data import Subset

from mlflow_unlearn.console import track
from mlflow_unlearn.data.splits import Splits
from mlflow_unlearn.engine.hardware import Hardware
from mlflow_unlearn.engine.loop import RunOptions, run
from mlflow_unlearn.engine.method import Method, OptimizerSpec, Params, Phase, Plan, Workspace, all_indices
from mlflow_unlearn.engine.modes import eval_mode, evaluating
from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.evidence.audit import RelearnRecord
from mlflow_unlearn.methods.retrain import cross_entropy
from mlflow_unlearn.metrics.arrays import Ints
from mlflow_unlearn.metrics.attacks.relearning import epochs_until, relearn_test
from mlflow_unlearn.metrics.attacks.suite import Target, log_likelihood

PARTS = 6
"""Of each set: of the 924 ways to draw them, two are as far apart as can be."""
LEAST, LARGEST = 48, 300
"""Samples of each set."""
SLACK = 1.05
"""Of the original's loss on its forgotten samples, at or below which these count as learned again."""
CAP = 30
"""Epochs."""
FRACTION = 0.03
"""Of the training's learning rate, which is the peak of its schedule: at more of it some models diverge."""
LOW = 0.05
"""Nats: whose loss is lower has learned, however sure the original was."""
FLOOR = 1e-12
"""Of a loss, whose logarithm is taken."""


class RelearnParams(Params):
    """Hyperparameters: until which loss, and how."""

    target: float = Field(gt=0)
    lr: float = Field(gt=0)
    batch_size: int = 8
    momentum: float = 0.9


class Relearn(Method):
    """Fine-tuning on the retain set alone, as all calls here give it, with BatchNorm as it stands."""

    name = "relearn"
    Params = RelearnParams
    params: RelearnParams

    def plan(self, workspace: Workspace) -> Plan:
        """One phase an epoch, until the loss is down or `CAP` is reached.

        Raises:
            UnlearnError: the model cannot learn, or its loss is not finite.
        """
        p = self.params
        optimizer = OptimizerSpec("sgd", p.lr, momentum=p.momentum, nesterov=True)
        every = all_indices(workspace.labels("retain"))
        phase = Phase(cross_entropy, optimizer, p.batch_size, retain=every, frozen_statistics=True)
        losses = [_loss(workspace)]
        images, _ = next(workspace.batches("retain", 1))
        with eval_mode(workspace.model):
            if not workspace.model(images).requires_grad:
                raise UnlearnError("its outputs have no gradient")
        while losses[-1] > p.target and len(losses) <= CAP:
            yield phase
            losses.append(_loss(workspace))
        return {"epochs": epochs_until(losses, p.target), "censored": float(losses[-1] > p.target)}


def _loss(workspace: Workspace) -> float:
    """Mean cross-entropy in eval mode."""
    total = 0.0
    with evaluating(workspace.model):
        for images, labels in workspace.batches("retain", 256):
            logits = workspace.model(images).double()
            total += float(nn.functional.cross_entropy(logits, labels, reduction="sum"))
    mean = total / len(workspace.labels("retain"))
    if not math.isfinite(mean):
        raise UnlearnError("its loss is not finite")
    return max(mean, FLOOR)


@dataclass(frozen=True)
class Relearning:
    """The same parts of both sets for every model of an audit.

    Attributes:
        splits: of which the forget and the test set are read.
        forget: indices of each part.
        unseen: of as many, with the same classes.
        params: until the original's loss.
        hardware: where and in which precision.
        seed: of the order of the samples.
        progress: whether a bar is shown for each model.
    """

    splits: Splits
    forget: list[Ints]
    unseen: list[Ints]
    params: RelearnParams
    hardware: Hardware
    seed: int
    progress: bool = False

    def of(self, module: nn.Module, name: str) -> RelearnRecord | str:
        """Relearn every part, each from the model as it is with all of its weights free; or why it cannot be.

        Args:
            module: the model; left as it was found.
            name: on the progress bar.
        """
        module = copy.deepcopy(module)
        for parameter in module.parameters():
            parameter.requires_grad_(True)
        epochs: dict[str, list[float]] = {"forget": [], "test": []}
        censored = 0.0
        parts = [("forget", part) for part in self.forget] + [("test", part) for part in self.unseen]
        for number, (split, part) in enumerate(track(parts, f"{name} relearns", enabled=self.progress)):
            data = Subset(getattr(self.splits, split), part.tolist())
            options = RunOptions(self.seed + number % PARTS)
            try:
                final = run(module, Relearn(self.params.model_dump()), {"retain": data}, self.hardware, options).final
            except UnlearnError as error:  # of one model, and the others are audited all the same
                return f"{name} cannot be trained on ({error})"
            epochs[split].append(final["epochs"])
            censored += final["censored"] / len(parts)
        test = relearn_test(epochs["forget"], epochs["test"])
        return RelearnRecord(forget=epochs["forget"], unseen=epochs["test"], censored=censored, **test._asdict())


def relearning(original: Target, splits: Splits, lr: float, hardware: Hardware, *, seed: int) -> Relearning | str:
    """Parts of equal classes, and the loss that the original has on the forgotten ones; or why there are none.

    Args:
        original: whose loss is to be reached.
        splits: the four sets.
        lr: the peak of its training's schedule.
        hardware: where and in which precision; progress bars of single parts are not shown.
        seed: of the draw.
    """
    labels = [original.outputs[split].labels for split in ("forget", "test")]
    forget, unseen = _matched(labels[0], labels[1], np.random.default_rng(seed))
    if forget.size < LEAST:
        return f"needs {LEAST} forgotten and {LEAST} unseen samples of the same classes"
    loss = -float(log_likelihood(original.log_odds("forget")[forget]).mean())
    params = RelearnParams(target=max(SLACK * loss, LOW), lr=FRACTION * lr)
    of_forget, of_unseen = ([chosen[number::PARTS] for number in range(PARTS)] for chosen in (forget, unseen))
    quiet = replace(hardware, progress=False)
    return Relearning(splits, of_forget, of_unseen, params, quiet, seed, progress=hardware.progress)


def _matched(forget: Ints, unseen: Ints, rng: np.random.Generator) -> tuple[Ints, Ints]:
    """Indices of as many of each class of both, in one order of classes, so that every sixth one makes equal parts."""
    pairs = []
    for label in np.intersect1d(forget, unseen):
        own, other = (rng.permutation(np.flatnonzero(labels == label)) for labels in (forget, unseen))
        pairs += list(zip(own.tolist(), other.tolist(), strict=False))
    if len(pairs) > LARGEST:
        pairs = [pairs[k] for k in np.sort(rng.permutation(len(pairs))[:LARGEST])]
    pairs = pairs[: len(pairs) - len(pairs) % PARTS]
    return np.array([own for own, _ in pairs], np.int64), np.array([other for _, other in pairs], np.int64)
