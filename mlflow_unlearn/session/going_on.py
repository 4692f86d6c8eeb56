"""`train --from`: the version that a training goes on from, and which samples it may read."""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from mlflow.tracking import MlflowClient
from torch import nn
from torch.utils.data import Dataset, Subset

from mlflow_unlearn.config import ReadOptions, Train
from mlflow_unlearn.console import counted, note
from mlflow_unlearn.data.manifest import Manifest
from mlflow_unlearn.data.source import Source
from mlflow_unlearn.engine.architectures import weights_digest
from mlflow_unlearn.errors import UnlearnError, shortlist
from mlflow_unlearn.evidence.checkpoints import Origin, Shards
from mlflow_unlearn.registry import forget_requests
from mlflow_unlearn.registry.flavor import load_module
from mlflow_unlearn.registry.loading import admitted
from mlflow_unlearn.registry.versions import Commitment, Version, open_version
from mlflow_unlearn.session.canaries import canaries_of
from mlflow_unlearn.session.checks import check_as_registered
from mlflow_unlearn.session.lineage import fulfilled
from mlflow_unlearn.session.view import InputSpec, open_input_spec
from mlflow_unlearn.spelling import spelled

_GIVEN = ("architecture", "transform", "serialization")
"""Options of `train` that follow from the version; the default counts as not given, since MLproject gives them all."""


@dataclass(frozen=True)
class Before:
    """The version that a training goes on from.

    Attributes:
        version: opened.
        module: with its weights.
        view: how it reads data.
        known: what of ``view.source.train`` it was trained on ``[N]``.
        barred: what must not be trained on: forgotten since, or left out as canaries ``[N]``.
        forgotten: ids of the requests that it, or a version before it, has fulfilled.
        architecture: of the module, where it is recorded or given.
    """

    version: Version
    module: nn.Module
    view: InputSpec
    known: npt.NDArray[np.bool_]
    barred: npt.NDArray[np.bool_]
    forgotten: tuple[str, ...]
    architecture: str | None

    @property
    def canaries(self) -> Commitment | None:
        """Those of the first training, which the new version has as well."""
        return None if self.version.record is None else self.version.record.canaries

    @property
    def shards(self) -> Shards | None:
        """Of an ensemble how it was trained, which ends with this training at the latest; None of one model."""
        shards = None if self.version.record is None else self.version.record.shards
        return shards.ended("train") if shards is not None else None

    def allowed(self, kept: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Of the samples ``kept [B]`` those that may be trained on.

        Raises:
            UnlearnError: some that the version was trained on are not among them.
        """
        left_out = int(self.known.sum() - self.known[kept].sum())
        if left_out:
            raise UnlearnError(
                f"exclude names {counted(left_out, 'sample')} that {self.version.uri} was trained on, and its weights "
                "would keep what they have learned of them: unlearn them from it first, or leave "
                f"{spelled('from')} out"
            )
        if barred := int(self.barred[kept].sum()):
            by = f" (requests {shortlist(self.forgotten)})" if self.forgotten else ""
            note(f"Note: {barred} samples that {self.version.uri} has forgotten or left out{by} are not trained on.")
        return kept[~self.barred[kept]]

    def late(self, kept: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Positions in ``kept [B]`` of the samples that the version has not seen."""
        return np.flatnonzero(~self.known[kept])

    def new_alone(self, training: Dataset[Any], kept: npt.NDArray[np.int64]) -> Dataset[Any]:
        """Of the data set of ``kept [B]`` what the version has not seen.

        Raises:
            UnlearnError: that is nothing.
        """
        late = self.late(kept)
        if not len(late):
            raise UnlearnError(
                f"{spelled('train_on', 'new')}, and {self.version.uri} has seen all {len(kept)} samples of "
                f"{self.view.source.spec!r}: give data with new ones, or {spelled('train_on', 'all')}"
            )
        return Subset(training, late.tolist())

    def origin(self, kept: npt.NDArray[np.int64], salt: str, trained_on: str) -> Origin:
        """What the new version records of it.

        Args:
            kept: what the new version knows ``[B]``.
            salt: of its list.
            trained_on: what it was trained on.
        """
        ids = self.view.source.train.ids
        added = Manifest(tuple(ids[i] for i in kept[self.late(kept)])).hashed(salt)
        return Origin.model_validate(
            {
                "uri": self.version.uri,
                "model_id": self.version.model_id,
                "weights_sha256": weights_digest(self.module),
                "samples": len(added.ids),
                "added_sha256": added.digest,
                "at": datetime.now(UTC).isoformat(timespec="seconds"),
                "trained_on": trained_on,
                "forgotten": self.forgotten,
            }
        )


def check_going_on(options: Train) -> None:
    """Refuse options that do not go together.

    Raises:
        UnlearnError: they do not.
    """
    if options.keep_checkpoints >= options.epochs:
        raise UnlearnError(
            f"{spelled('keep_checkpoints', options.keep_checkpoints)} of {options.epochs} epochs: give at most "
            f"{options.epochs - 1}, since the last epoch is the version itself"
        )
    if options.from_ is None and options.train_on == "new":
        raise UnlearnError(
            f"{spelled('train_on', 'new')} needs {spelled('from')}, the version that was trained on the other samples"
        )
    if options.ensemble and (options.from_ is not None or options.keep_checkpoints):
        name = "keep_checkpoints" if options.keep_checkpoints else "from"
        raise UnlearnError(
            f"{spelled(name)} and {spelled('ensemble', options.ensemble)} do not go together: an ensemble keeps "
            "its slices"
        )
    if options.from_ is not None and options.canaries:
        raise UnlearnError(
            f"{spelled('canaries', options.canaries)} and {spelled('from', options.from_)} do not go together: "
            "canaries are planted by the first training alone"
        )


def open_before(client: MlflowClient, options: Train, folder: Path) -> Before:
    """Open the version that ``options.from_`` names, with the source of the data that it is to be trained on now.

    Args:
        client: of the registry.
        options: of the command.
        folder: for temporary files.

    Raises:
        UnlearnError: it is not there, the options contradict it, or the source lacks samples of it.
    """
    given = {name: getattr(options, name) for name in _GIVEN if getattr(options, name) != _default(name)}
    read = ReadOptions(data=options.data, architecture=given.get("architecture"), transform=given.get("transform"))
    version = admitted(open_version(client, str(options.from_), folder), read)
    if version.reads.transform is None:
        read = read.model_copy(update={"transform": options.transform})
    record = version.record
    own: dict[str, str | None] = {"serialization": version.format}
    if record is not None:
        own |= {"architecture": record.architecture, "transform": record.transform}
    for name, value in given.items():
        if own.get(name, value) != value:
            raise UnlearnError(
                f"{spelled(name, value)}, and {version.uri} has {own[name]!r}: leave {spelled(name)} out"
            )
    view = open_input_spec(version, read)
    source = view.source
    known = _known(version, source)
    requests = fulfilled(client, version)
    barred = np.zeros(len(source.train), dtype=np.bool_)
    for request in requests:
        barred |= forget_requests.read_manifest_of(request.run_id).mask(source.train.ids)
    canaries = canaries_of(version)
    if canaries is not None:
        barred |= canaries.ghosts_among(source.train.ids)
    pending = [request.id for request in forget_requests.of_version(version)[0] if request.pending]
    if pending:
        note(f"Note: {version.uri} still knows the samples of pending requests: {shortlist(pending)}.")
    if record is not None and record.shards is not None and record.shards.ended_by is None:
        note(
            f"Note: {version.uri} can be unlearned exactly, shard by shard; going on trains all of its weights "
            "together and ends that for the new version: to keep it, train an ensemble anew, with "
            f"{spelled('ensemble')}."
        )
    module = load_module(version, given.get("architecture"), len(view.classes))
    check_as_registered(client, version, module)
    architecture = given.get("architecture", own.get("architecture"))
    forgotten = tuple(request.id for request in requests)
    return Before(version, module, view, known, barred & ~known, forgotten, architecture)


def _default(name: str) -> object:
    return Train.model_fields[name].default


def _known(version: Version, source: Source) -> npt.NDArray[np.bool_]:
    """What of ``source.train`` a version was trained on ``[N]``: all that it was.

    Raises:
        UnlearnError: the source lacks some of it, or it is not known.
    """
    manifest = version.training_manifest
    if manifest is None:
        raise UnlearnError(
            f"{version.uri} has no list of what it was trained on, so it is unknown what came later: "
            "record it with `manifest`"
        )
    known = manifest.mask(source.train.ids)
    if missing := len(manifest.ids) - int(known.sum()):
        raise UnlearnError(
            f"{missing} of the {len(manifest.ids)} samples that {version.uri} was trained on are not in the training "
            f"split of {source.spec!r}: give data that has them beside the new ones, or unlearn them first"
        )
    return known
