"""Where a sample lies in an ensemble: its shard and its slice, by its id or its group alone."""

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]


def placements(keys: Sequence[str], shards: int, slices: int) -> tuple[Indices, Indices]:
    """The shard and the slice of each sample, both ``[N]`` and from 0.

    No other sample has a say in it, so that forgetting one moves none.

    Args:
        keys: id or group of each sample ``[N]``.
        shards: S.
        slices: R of each shard.
    """
    return _hashed("shard", keys, shards), _hashed("slice", keys, slices)


def _hashed(what: str, keys: Sequence[str], count: int) -> Indices:
    return np.array([int(hashlib.sha256(f"{what}\n{key}".encode()).hexdigest(), 16) % count for key in keys], np.int64)
