"""What an opened version keeps of its training, for the methods that go back."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from torch import nn
from torch.utils.data import Subset

from mlflow_unlearn.api import Result
from mlflow_unlearn.console import note
from mlflow_unlearn.data.datasets import Augmented
from mlflow_unlearn.data.manifest import Manifest
from mlflow_unlearn.data.splits import Splits
from mlflow_unlearn.engine.architectures import builder_like, weights_digest
from mlflow_unlearn.engine.checkpoint import Checkpoint
from mlflow_unlearn.engine.hardware import Hardware, as_recorded, machine_of, threads
from mlflow_unlearn.engine.memory import GIVEN, not_drawn
from mlflow_unlearn.engine.past import Keep, Past, Point, State
from mlflow_unlearn.errors import UnlearnError, shortlist
from mlflow_unlearn.evidence.checkpoints import Kept, Origin
from mlflow_unlearn.evidence.provenance import Provenance
from mlflow_unlearn.evidence.record import DIGEST_TAG, Exactness
from mlflow_unlearn.methods import get_method
from mlflow_unlearn.methods.retrain import RetrainParams
from mlflow_unlearn.registry.checkpoints import LostCheckpoint, keeper, read_checkpoint
from mlflow_unlearn.registry.flavor import load_module
from mlflow_unlearn.registry.loading import admitted
from mlflow_unlearn.registry.versions import Record, Version, open_version
from mlflow_unlearn.rng import isolated_rng
from mlflow_unlearn.session.checks import check_as_registered, check_training
from mlflow_unlearn.session.lineage import previous
from mlflow_unlearn.spelling import spelled

if TYPE_CHECKING:
    from mlflow_unlearn.session.session import Session

CHECKPOINTS = "checkpoints"
"""`Method.needs` of a method that goes back."""
SHARDS = "shards"
"""Of one that takes shards of an ensemble back."""
NOT_THE_RECORDED = "The training was not quite the recorded one"


def unmet(method: str, version: Version) -> str | None:
    """Why a version does not keep what a method needs of its training, and what would do; None where it does."""
    needs, record = get_method(method).needs, version.record
    if needs is None or _keeps(needs, record):
        return None
    own = needs == CHECKPOINTS and _keeps(SHARDS, record)
    why = f"is an ensemble, whose checkpoints are for {spelled('method', 'exact')}" if own else _lacking(needs)
    return f"{method} cannot be used, since {version.uri} {why}"


def _lacking(needs: str) -> str:
    if needs == CHECKPOINTS:
        return (
            f"keeps no checkpoints of its training: `train` does with {spelled('keep_checkpoints')} or "
            f"{spelled('from')}"
        )
    return f"is not an ensemble that no other method has changed: `train` makes one with {spelled('ensemble')}"


def _keeps(needs: str, record: Record | None) -> bool:
    if record is None:
        return False
    sharded = record.shards is not None and record.shards.ended_by is None
    if needs == CHECKPOINTS:
        return not sharded and (bool(record.checkpoints) or record.origin is not None)
    return sharded


def check_prefix(method: str, prefix: str | None) -> None:
    """Refuse to freeze layers where the training of all of them is run again.

    Raises:
        UnlearnError: a prefix is given, or would be chosen.
    """
    if get_method(method).needs is not None and prefix not in (None, "none"):
        raise UnlearnError(f"{method} runs the training of all layers again: use {spelled('prefix', 'none')}")


def usable(methods: Sequence[str], version: Version, *, named: bool) -> list[str]:
    """The methods whose needs a version meets; the others are left out with a note.

    Args:
        methods: to choose from.
        version: that is to forget.
        named: whether the user has named them, and not asked for all.

    Raises:
        UnlearnError: one that was named cannot be used.
    """
    refusals = {method: reason for method in methods if (reason := unmet(method, version)) is not None}
    if refusals and named:
        raise UnlearnError("; ".join(refusals.values()))
    for reason in refusals.values():
        note(f"Note: {reason}.")
    return [method for method in methods if method not in refusals]


@dataclass(frozen=True)
class OwnTraining:
    """The training of an opened version, as it can be run again.

    Attributes:
        past: its states.
        params: hyperparameters that it was trained with.
        augment: random augmentation of the images.
        hardware: on which it is run again.
        threads: that it computed with; None where that is not recorded.
        late: positions in the retain set of what it was trained on alone; None for all of it.
    """

    past: Past
    params: Mapping[str, Any]
    augment: str
    hardware: Hardware
    threads: int | None
    late: tuple[int, ...] | None = None

    def splits(self, splits: Splits) -> Splits:
        """The splits with the retain set as it was trained on."""
        retain = splits.retain if self.augment == "none" else Augmented(splits.retain, self.augment)
        return replace(splits, retain=retain if self.late is None else Subset(retain, self.late))

    def claimed(self, result: Result) -> Exactness | None:
        """What may be claimed of a result, with what was chosen otherwise than in the training."""
        other = otherwise(result.params, self.params)
        if sigma := result.params.get("sigma"):
            other.append(f"noise of standard deviation {sigma} on each weight")
        return with_difference(result.exactness, f"{NOT_THE_RECORDED}: {', '.join(other)}." if other else None)

    def computing(self) -> AbstractContextManager[None]:
        """Compute with as many threads as the training did."""
        return nullcontext() if self.threads is None else threads(self.threads)


def otherwise(given: Mapping[str, Any], recorded: Mapping[str, Any]) -> list[str]:
    """Which of the recorded hyperparameters a training did not have, in words."""
    return [f"{name} {given[name]} and not {value}" for name, value in recorded.items() if given[name] != value]


def with_difference(claim: Exactness | None, sentence: str | None) -> Exactness | None:
    """A claim that does not speak of a difference between the training and the recorded one."""
    if claim is None or sentence is None:
        return claim
    return claim.model_copy(update={"excludes": [*claim.excludes, sentence]})


def own_training(session: "Session") -> OwnTraining:
    """What is kept of the training of a session's version.

    Raises:
        UnlearnError: nothing is, or the version that it went on from is lost and nothing else tells what came later.
    """
    record = session.version.record
    if record is None or not _keeps(CHECKPOINTS, record):
        raise UnlearnError(f"{session.version.uri} {_lacking(CHECKPOINTS)}")
    check_training(session.client, session.version, session.module)
    provenance = record.provenance
    points = [_kept(one, len(session.forget)) for one in record.checkpoints]
    late = None
    if record.origin is not None:
        before = _Before(session, record.origin)
        points.append(before.point())
        late = tuple(before.late().tolist()) if record.origin.trained_on == "new" else None
    if late is None:
        given = _given(session, record)
        doubt = f"{shortlist(given)}: {GIVEN}." if given else None
        anew = partial(_anew, session, record)
        points.append(Point(0, "random weights and all epochs", anew, seen=0, anew=True, doubt=doubt))
    augment = provenance.augment or "none"
    hardware = as_recorded(session.hardware, record.machine, augment=augment)
    past = Past(
        tuple(points),
        int(provenance.params["epochs"]),
        provenance.seed,
        tuple(record.machine.differences(machine_of(hardware))) if record.machine is not None else (),
    )
    count = record.machine.threads if record.machine is not None else None
    return OwnTraining(past, _recipe(provenance), augment, hardware, count, late)


def _recipe(provenance: Provenance) -> dict[str, Any]:
    fields = RetrainParams.model_fields
    return {name: value for name, value in provenance.params.items() if name in fields}


def _kept(kept: Kept, seen: int) -> Point:
    return Point(kept.stage, f"the checkpoint after epoch {kept.stage}", partial(read_checkpoint, kept), seen)


def _anew(session: "Session", record: Record) -> State:
    """Random weights as the training has drawn them."""
    build = _builder(session, record)
    with isolated_rng(record.provenance.seed):
        return _weights(build())


def _builder(session: "Session", record: Record) -> Callable[[], nn.Module]:
    with isolated_rng(0):
        return builder_like(session.module, record.architecture, len(session.view.classes), session.image_shape)


def _given(session: "Session", record: Record) -> list[str]:
    """What "random weights" are not random; the architectures of libraries have none."""
    name = record.architecture or ""
    own = ":" in name and not name.startswith(("timm:", "torchvision:"))
    return not_drawn(_builder(session, record)) if own or not name else []


def _weights(module: nn.Module) -> State:
    return {"model": dict([*module.named_parameters(), *module.named_buffers()])}


class _Before:
    """The version that a training went on from, which may be gone by now."""

    def __init__(self, session: "Session", origin: Origin) -> None:
        self._session, self._origin = session, origin
        self._version: Version | None = None
        self._manifest: Manifest | None = None
        self._lost = "it has no list of what it was trained on"
        try:
            self._version = open_version(session.client, origin.uri, session.folder)
            self._manifest = self._version.training_manifest
        except UnlearnError as error:
            self._lost = str(error)

    def point(self) -> Point:
        """Its weights as a state; what it has seen is not known where it is lost, which is told when it is loaded."""
        if self._version is None or self._manifest is None:
            return Point(0, self._origin.uri, self._load, seen=0)
        # Whatever it knows and the new version is not to know: also what has left the data source since.
        seen = len(self._manifest.ids) - int(
            self._manifest.mask(self._session.manifest(self._session.retain).ids).sum()
        )
        origin = None if seen else self._of_a_version_made_of_it()
        return Point(
            0, self._origin.uri, self._load, seen, origin=origin, doubt=self._doubt(self._version, self._manifest)
        )

    def _doubt(self, version: Version, manifest: Manifest) -> str | None:
        """Why nothing exact may be claimed of what is made of it, although it has seen none of the samples.

        Its own list no longer has what it was made to forget, however little of that it has forgotten.
        """
        made = previous(version)
        if made is not None:
            evidence, digest = made
            if not evidence.exactness.trained_without:
                return f"What {version.uri} was made to forget, by {evidence.provenance.method}, may still show in it."
            if digest != version.tags.get(DIGEST_TAG):
                return f"What {version.uri} was made to forget may still show in it: its evidence was changed."
        elif self._origin.forgotten:
            return f"What {version.uri} came from was made to forget samples, which may still show in it."
        if version.recorded is not None:
            return f"What {version.uri} was trained on is what `manifest` has recorded: no training of ours says so."
        own = self._session.version.training_manifest
        stated = None if version.record is None else version.record.trained_on
        train = self._session.view.source.train.ids
        late = np.zeros(len(train), np.bool_) if own is None else own.mask(train) & ~manifest.mask(train)
        added = Manifest(tuple(train[i] for i in np.flatnonzero(late)))
        if own is not None and own.salt is not None:
            added = added.hashed(own.salt)
        if added.digest != self._origin.added_sha256 or (stated and manifest.digest != stated.manifest_sha256):
            return f"It is unknown which samples came after {version.uri}: its list and what was recorded do not agree."
        return None

    def late(self) -> npt.NDArray[np.int64]:
        """Positions in the retain set of what it has not seen.

        Raises:
            LostCheckpoint: nobody can tell any more.
        """
        if self._manifest is None:
            raise LostCheckpoint(f"{self._gone()}: restore it, or use the method retrain")
        return np.flatnonzero(~self._manifest.mask(self._session.manifest(self._session.retain).ids))

    def _of_a_version_made_of_it(self) -> Origin:
        """To which less is added now."""
        added = self._session.stored_manifest(self._session.retain[self.late()])
        return self._origin.model_copy(update={"samples": len(added.ids), "added_sha256": added.digest})

    def _load(self) -> State:
        if self._version is None or self._manifest is None:
            raise self._gone()
        module = load_module(admitted(self._version, self._session.read), None, len(self._session.view.classes))
        if weights_digest(module) != self._origin.weights_sha256:
            raise LostCheckpoint(f"the weights of {self._origin.uri} were changed since the training went on from them")
        check_as_registered(self._session.client, self._version, module)
        return _weights(module)

    def _gone(self) -> LostCheckpoint:
        uri = self._session.version.uri
        return LostCheckpoint(f"the training of {uri} went on from {self._origin.uri}, which is lost ({self._lost})")


def keep_of(session: "Session", method: str, run_id: str, checkpoint: Checkpoint) -> Keep | None:
    """What a method that goes back keeps of the training that it runs again: as many checkpoints as its source.

    Args:
        session: the version opened for work.
        method: a registered name.
        run_id: whose artifacts they become.
        checkpoint: where the same command goes on after a kill.
    """
    record = session.version.record
    if get_method(method).needs != CHECKPOINTS or record is None or not record.checkpoints:
        return None
    return Keep(
        len(record.checkpoints), int(record.provenance.params["epochs"]), keeper(run_id, lambda: checkpoint.resume_key)
    )


def trained_as(session: "Session", provenance: Provenance) -> Provenance:
    """With seed and augmentation of the version's training, where the method has run that again."""
    needs, record = get_method(provenance.method).needs, session.version.record
    if needs is None or record is None:
        return provenance
    trained = record.shards if needs == SHARDS else record.provenance
    if trained is None:
        return provenance
    return provenance.model_copy(update={"augment": trained.augment, "seed": trained.seed})
