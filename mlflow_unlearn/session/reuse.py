"""What results depend on beside the settings of a command: a later command takes over those that have all of it."""

import hashlib
import json
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from mlflow_unlearn.data.content import content_digest
from mlflow_unlearn.data.fingerprints import module_digest, value_digest
from mlflow_unlearn.methods import get_method
from mlflow_unlearn.session.session import Session

Part = str | int | None
"""A part of a key; None where it cannot be told."""


def reuse_key(session: Session, splits: Sequence[str] = ("forget", "retain", "val", "test")) -> dict[str, Part]:
    """By part: what the samples look like to the model, the code of the model and of this package, where they run.

    The code of a method is another part, by `code_digest`. The source stands for this package's code, since development
    goes on between two versions.

    Args:
        session: the version opened for work.
        splits: that are read.
    """
    pixels = {name: content_digest(getattr(session.splits, name)) for name in splits}
    hardware = session.hardware
    return {
        "pixels_sha256": None if None in pixels.values() else _sha256(pixels),
        "model_code_sha256": module_digest(session.module),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "device": f"{hardware.device.type}, {hardware.precision}",
    }


def code_digest(methods: Sequence[str], *models: nn.Module) -> str | None:
    """SHA-256 of the source of methods and what it imports (of installed packages the version), and of models' code.

    None where a part of it cannot be told.
    """
    found = {name: value_digest(get_method(name)) for name in methods}
    found |= {f"model {number}": module_digest(model) for number, model in enumerate(models)}
    return None if None in found.values() else _sha256(found)


def _sha256(parts: Mapping[str, Part]) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
