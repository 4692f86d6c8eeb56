"""Listings of folders and shards, cached between commands: a scan takes minutes, asking what changed does not."""

import hashlib
import os
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mlflow_unlearn import cache
from mlflow_unlearn.errors import UnlearnError

SETTLED = 2.0
"""Seconds without a change after which a scan is kept: a second change in the tick of the first would not show."""


def pack(texts: Iterable[str]) -> NDArray[np.uint8]:
    """Texts without NUL, such as names of files, as one array ``[bytes]``."""
    return np.frombuffer("".join(f"{text}\0" for text in texts).encode("utf-8", "surrogateescape"), np.uint8)


def unpack(packed: NDArray[np.uint8]) -> list[str]:
    """The texts that `pack` joined.

    >>> unpack(pack(["a", "", "ä b"]))
    ['a', '', 'ä b']
    """
    return packed.tobytes().decode("utf-8", "surrogateescape").split("\0")[:-1]


def indexed(folder: Path, what: str, names: Sequence[str], scan: Callable[[], cache.Arrays]) -> cache.Arrays:
    """What ``scan`` finds in the folders or files ``names`` of ``folder``, from the cache while none of them changed.

    A folder changes when entries come or go. The change time counts too: unlike the modification time it cannot be set.
    Of each ``what`` of a folder one state is cached: the names of deleted files are dropped with the next.

    Args:
        folder: where they are.
        what: the name of this listing among those of the folder.
        names: relative to ``folder``.
        scan: lists them.

    Raises:
        UnlearnError: one of them can't be read.
    """
    try:
        stats = [os.stat(folder / name) for name in names]
        states = [
            [name, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
            for name, stat in zip(names, stats, strict=True)
        ]
        if any(time.time_ns() - stat.st_ctime_ns < SETTLED * 1e9 for stat in stats):
            return scan()
        kind = f"listings/{hashlib.sha256(os.fsencode(folder / what)).hexdigest()[:16]}"

        def fresh() -> cache.Arrays:
            with suppress(OSError):
                for old in (cache.folder() / kind).glob("*.safetensors"):
                    old.unlink(missing_ok=True)
            return scan()

        return cache.arrays(kind, {"place": str(folder), "entries": states}, fresh)
    except OSError as error:
        raise UnlearnError(f"can't list {error.filename!r} ({error.strerror}): make it readable") from error
