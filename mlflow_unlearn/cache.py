"""Arrays that can be computed again, stored by the digest of what they depend on and checked when they are read.

One file an entry, below ``$MLFLOW_UNLEARN_CACHE`` or the user's cache folder; "off" keeps nothing. An entry that a
killed process left half written, or that a disk has damaged, does not have its own digest: it is made again. Where the
folder is full or cannot be written the command goes on without it.
"""

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from mlflow_unlearn.console import note
from mlflow_unlearn.parsing import load_json

Arrays = dict[str, NDArray[Any]]

CHECKPOINTS = "checkpoints"
"""The kind of entries that `mlflow_unlearn.engine.checkpoint` makes."""

DAYS = 30
"""After which an entry that has not been read is dropped."""

PATIENCE = 600.0
"""Seconds to wait for another command that is making the same entry, before making it here as well."""


def off() -> bool:
    """Whether the user has switched the cache off."""
    return os.environ.get("MLFLOW_UNLEARN_CACHE") == "off"


def folder() -> Path:
    """Where entries are stored."""
    return Path(os.environ.get("MLFLOW_UNLEARN_CACHE") or platformdirs.user_cache_path("mlflow-unlearn")).absolute()


def arrays(kind: str, cache_key: Mapping[str, Any], make: Callable[[], Arrays]) -> Arrays:
    """The arrays that ``make`` gives, from the cache where they have been made before.

    Args:
        kind: a folder's name, such as ``outputs``.
        cache_key: all that the arrays depend on, as JSON; its digest is the entry's name.
        make: computes them. Two commands that need the same entry at once compute it once.
    """
    if off():
        return make()
    path = _path(kind, cache_key)
    with _locked(path):
        found = _read(path)
        if found is None:
            found = make()
            _write(path, found, cache_key)
        return found


def read(kind: str, cache_key: Mapping[str, Any]) -> Arrays | None:
    """The arrays of an entry; None where there is none."""
    return None if off() else _read(_path(kind, cache_key))


def write(kind: str, cache_key: Mapping[str, Any], content: Arrays, **facts: str) -> bool:
    """Put ``content`` in the place of an entry, whole or not at all; whether that was possible.

    Args:
        kind: a folder's name.
        cache_key: all that the arrays depend on.
        content: the arrays.
        facts: what `entries` is to tell beside the key.
    """
    path = _path(kind, cache_key)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        _cannot(path, error)
        return False
    return _write(path, content, {**cache_key, **facts})


def drop(kind: str, cache_key: Mapping[str, Any]) -> None:
    """Remove an entry, if there is one."""
    with suppress(OSError):
        _path(kind, cache_key).unlink()


def _path(kind: str, cache_key: Mapping[str, Any]) -> Path:
    name = hashlib.sha256(json.dumps(cache_key, sort_keys=True).encode()).hexdigest()
    return folder() / kind / f"{name}.safetensors"


def entries(kind: str) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    """The files of a kind, each with its cache key and what else is known; nothing of a file that cannot be read."""
    for path in sorted((folder() / kind).glob("*.safetensors")):
        try:
            with safe_open(path, framework="numpy") as file:
                yield path, load_json((file.metadata() or {}).get("facts", "{}"))
        except (SafetensorError, OSError, ValueError):
            yield path, {}


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    lock = FileLock(path.with_suffix(".lock"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=PATIENCE)
    except Timeout:
        note(
            f"Note: another process has been making the cache entry {path} for {PATIENCE:.0f} s: it is made here "
            "as well."
        )
    except OSError as error:
        _cannot(path, error)
    try:
        yield
    finally:
        lock.release()


def _read(path: Path) -> Arrays | None:
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="numpy") as file:
            expected = (file.metadata() or {}).get("sha256")
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        if expected == _digest(found):
            with suppress(OSError):
                os.utime(path)
            return found
        reason = "its content is not what was written"
    except (SafetensorError, OSError) as error:
        reason = str(error)
    note(f"Note: the cache entry {path} is damaged ({reason}): it is made again.")
    return None


def _write(path: Path, content: Arrays, facts: Mapping[str, Any]) -> bool:
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".part")
        os.close(handle)
        metadata = {"sha256": _digest(content), "facts": json.dumps(facts)}
        save_file({n: np.ascontiguousarray(a) for n, a in content.items()}, temporary, metadata)
        os.replace(temporary, path)
        _drop_unused(path.parent)
        return True
    except (OSError, SafetensorError) as error:  # the latter wraps a full disk
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        _cannot(path, error)
        return False


def _drop_unused(kind: Path) -> None:
    for file in kind.iterdir():
        with suppress(OSError):  # another process has dropped it
            if file.stat().st_mtime < time.time() - 86400 * DAYS:
                file.unlink()


def _cannot(path: Path, error: Exception) -> None:
    note(
        f"Note: the cache folder {path.parent} cannot be written ({error}): going on without it; "
        "MLFLOW_UNLEARN_CACHE names another."
    )


def _digest(content: Arrays) -> str:
    digest = hashlib.sha256()
    for name, array in sorted(content.items()):
        digest.update(f"{name} {array.dtype.str} {list(array.shape)}\n".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
