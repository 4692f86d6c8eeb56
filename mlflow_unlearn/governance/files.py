"""Digests of stored files: taken before anything in them is loaded."""

import hashlib
from pathlib import Path

from safetensors.torch import load_file

from mlflow_unlearn.governance.evidence import FOLDER
from mlflow_unlearn.models import state_digest
from mlflow_unlearn.registry import WEIGHTS_FILE

_LOCAL = "registered_model_meta"
"""MLflow writes it into a downloaded folder."""


def file_digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of a downloaded model but its evidence, by path in the folder."""
    digests = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name != _LOCAL and not name.startswith(f"{FOLDER}/"):
            with open(path, "rb") as file:
                digests[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


def stored_weights_digest(folder: Path) -> str:
    """The digest of the weights beside a downloaded model, which no code of its own has to be run for.

    Raises:
        OSError: the file is missing.
        SafetensorError: it is no such file any more.
    """
    return state_digest(load_file(folder / "extra_files" / WEIGHTS_FILE))
