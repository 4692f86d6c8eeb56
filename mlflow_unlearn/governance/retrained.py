"""`verify --recompute`: an ensemble that is called exact, trained from scratch without what was forgotten."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from mlflow_unlearn.console import counted, first_line
from mlflow_unlearn.data.datasets import Augmented
from mlflow_unlearn.engine.architectures import weights_digest
from mlflow_unlearn.engine.hardware import as_recorded, machine_of
from mlflow_unlearn.engine.shards import train_anew
from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.evidence.record import Evidence
from mlflow_unlearn.governance.integrity import IntegrityFinding, same
from mlflow_unlearn.methods.retrain import Training
from mlflow_unlearn.registry.flavor import load_module
from mlflow_unlearn.session.ensemble import sharded_past
from mlflow_unlearn.session.session import Session

PART = "weights, trained anew"


def check_trained_anew(session: Session, evidence: Evidence) -> Iterator[IntegrityFinding]:
    """Train every shard from its start, by the recorded recipe, seed and number of threads, and compare the weights.

    Args:
        session: the version opened to be measured.
        evidence: of the version.
    """
    record = session.version.record
    shards = None if record is None else record.shards
    if record is None or shards is None or shards.ended_by is not None or not evidence.exactness.trained_without:
        return
    if record.machine is None or shards.mixed:
        yield IntegrityFinding(PART, "not checked", "its shards were trained on several machines")
        return
    hardware = as_recorded(session.hardware, record.machine)
    if differences := record.machine.differences(machine_of(hardware)):
        why = f"the training had {'; '.join(differences)}: the bits of weights depend on that"
        yield IntegrityFinding(PART, "not checked", why)
        return
    try:
        # What it forgot is in no list of its own.
        view, nothing = replace(session.view, shape=record.image_shape), np.zeros(0, np.int64)
        past = sharded_past(replace(session, view=view, forget=nothing))
        if past is None:
            yield IntegrityFinding(PART, "not checked", "another method has changed its weights since")
            return
        if lost := len(past.forget):
            yield IntegrityFinding(PART, "not checked", f"the data source has lost {lost} of its samples")
            return
        retain, augment = session.splits.retain, shards.augment
        outcome = train_anew(
            load_module(session.version, None, len(view.classes)),
            past,
            retain if augment == "none" else Augmented(retain, augment),
            Training,
            hardware,
            begin=dict.fromkeys(range(shards.shards), 0),
        )
    except UnlearnError as error:
        yield IntegrityFinding(PART, "not checked", first_line(error))
        return
    message = f"{counted(outcome.trained, 'sample')} through {counted(shards.shards, 'sub-model')}, from scratch"
    yield same(PART, weights_digest(outcome.model), evidence.result.weights_sha256, message)
