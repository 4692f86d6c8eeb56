"""Digests of stored files: taken before anything in them is loaded."""

import hashlib
from pathlib import Path

from safetensors import deserialize

from mlflow_unlearn.evidence.record import FOLDER
from mlflow_unlearn.registry.versions import WEIGHTS_FILE

_LOCAL = "registered_model_meta"
"""MLflow writes it into a downloaded folder."""
_TORCH_NAMES = {
    **{f"F{bits}": f"float{bits}" for bits in (16, 32, 64)},
    **{f"I{bits}": f"int{bits}" for bits in (8, 16, 32, 64)},
    **{f"U{bits}": f"uint{bits}" for bits in (8, 16, 32, 64)},
    **{"BF16": "bfloat16", "BOOL": "bool", "C64": "complex64"},
    **{"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"},
    **{"F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2FNUZ": "float8_e5m2fnuz"},
}
"""The names of the types of safetensors in torch."""


def file_digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of a downloaded model but its evidence, by path in the folder."""
    digests = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name != _LOCAL and not name.startswith(f"{FOLDER}/"):
            digests[name] = file_digest(path)
    return digests


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def stored_weights_digest(folder: Path, prefix: str = "") -> str:
    """`engine.architectures.weights_digest` of the weights beside a downloaded model, read without torch.

    Args:
        folder: of the model.
        prefix: of the names of one part of it, which it does not have by itself.

    Raises:
        OSError: the file is missing, or has values of a type that torch does not have.
        SafetensorError: it is not such a file any more.
    """
    digest = hashlib.sha256()
    stored = deserialize((folder / "extra_files" / WEIGHTS_FILE).read_bytes())  # type: ignore[no-untyped-call]
    for whole, tensor in sorted(stored):
        if not whole.startswith(prefix):
            continue
        name = whole.removeprefix(prefix)
        if tensor["dtype"] not in _TORCH_NAMES:
            raise OSError(f"{WEIGHTS_FILE} holds values of type {tensor['dtype']}, which torch does not have")
        digest.update(f"{name} torch.{_TORCH_NAMES[tensor['dtype']]} {list(tensor['shape'])}\n".encode())
        digest.update(tensor["data"])
    return digest.hexdigest()
