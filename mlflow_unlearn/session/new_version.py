"""What a new version is given besides its weights: its record and its input example."""

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch

from mlflow_unlearn.config import ReadOptions
from mlflow_unlearn.console import note
from mlflow_unlearn.data.placement import Placement, keys_of, placements
from mlflow_unlearn.data.spec import without_options
from mlflow_unlearn.engine.hardware import as_recorded, machine_of
from mlflow_unlearn.engine.loop import Outcome
from mlflow_unlearn.evidence.checkpoints import Machine, Shards
from mlflow_unlearn.evidence.provenance import Provenance
from mlflow_unlearn.registry.flavor import example_images, input_example
from mlflow_unlearn.registry.versions import Record, TrainedOn
from mlflow_unlearn.session.session import Session


def new_record(session: Session, options: ReadOptions, provenance: Provenance, result: Outcome | None = None) -> Record:
    """What the new version records of itself.

    Args:
        session: the source version, opened.
        options: of the command.
        provenance: how the weights came about.
        result: of the unlearning, with what the new version keeps of its training; None where there is none yet.
    """
    old = session.version.record
    kept = () if result is None else result.kept
    origin = None if result is None else result.origin
    architecture = old.architecture if old is not None else None
    if session.version.format == "pt2":
        architecture = options.architecture or session.version.reads.architecture
    return Record(
        architecture=architecture,
        num_classes=len(session.view.classes),
        image_shape=session.image_shape,
        transform=session.view.transform,
        classes=session.view.classes,
        data=session.view.source.spec,
        source_uri=session.version.uri,
        request_ids=tuple(request.id for request in session.requests),
        provenance=provenance,
        canaries=old.canaries if old is not None else None,
        checkpoints=kept,
        shards=_shards(old, provenance, result),
        origin=origin,
        machine=_machine(session, old, result),
        trained_on=TrainedOn.of(
            session.known_after(None if result is None else result.exactness),
            without_options(session.view.source.spec),
            session.view.source.samples_digest,
        ),
    )


def _machine(session: Session, old: Record | None, result: Outcome | None) -> Machine | None:
    """What the bits of the weights depend on, where the training can be gone back on.

    A training that is run again has the threads of the first one, whatever this process has.
    """
    if result is None or not (result.kept or result.origin is not None or result.shards is not None):
        return None
    before = None if old is None else old.machine
    here = machine_of(as_recorded(session.hardware, before))
    return here if before is None else here.model_copy(update={"threads": before.threads})


def _shards(old: Record | None, provenance: Provenance, result: Outcome | None) -> Shards | None:
    """Of an ensemble: how it was trained, or what has ended that."""
    if result is not None and result.shards is not None:
        return result.shards
    return None if old is None or old.shards is None else old.shards.ended(provenance.method)


def placed_of(session: Session, record: Record) -> tuple[Sequence[str], Placement] | None:
    """The retained ids ``[R]`` of an ensemble and where they lie; None of a version that has no shards, or no more."""
    if record.shards is None or record.shards.ended_by is not None:
        return None
    train, shards = session.view.source.train.subset(session.retain), record.shards
    return train.ids, placements(keys_of(train, shards.by), shards.shards, shards.slices)


def example_without_forgotten(session: Session) -> np.ndarray[Any, Any] | None:
    """Test images ``[2, C, H, W]`` as the input example, if the source's shows a forgotten image; else None."""
    example = input_example(session.version)
    if example is None:
        return None
    shown = torch.from_numpy(example)
    for index in range(len(session.forget)):
        image = cast(Any, session.splits.forget)[index][0]
        if any(one.shape == image.shape and torch.allclose(one.to(image.dtype), image) for one in shown):
            note("Note: the source's input example shows a forgotten image; the new version's shows test images.")
            test = cast(Any, session.splits.test)
            return example_images([test[i % len(test)][0] for i in range(2)])
    return None
