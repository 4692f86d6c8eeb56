"""Canaries: pairs of training samples of one class, of which a coin had one trained and the other left out."""

import secrets
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from mlflow_unlearn.data.manifest import Manifest
from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.metrics.attacks.canaries import commitment
from mlflow_unlearn.spelling import spelled


class CanaryPair(BaseModel):
    """Ids of two samples of one class."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    twin: str
    """Was trained on."""
    ghost: str
    """Was left out of training, validation and test set."""


class Canaries(BaseModel):
    """All pairs of a training; what was committed to is `digest`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    salt: str
    pairs: tuple[CanaryPair, ...]

    @property
    def digest(self) -> str:
        """SHA-256 over the salt and the pairs, with which twin was trained."""
        return commitment([pair.model_dump() for pair in self.pairs], self.salt)

    def ghosts_among(self, ids: Sequence[str]) -> npt.NDArray[np.bool_]:
        """Which of these ids are ghosts ``[N]``."""
        return Manifest(tuple(pair.ghost for pair in self.pairs)).mask(ids)


def draw_canaries(
    ids: Sequence[str], labels: npt.NDArray[np.int64], pool: npt.NDArray[np.int64], pairs: int
) -> Canaries:
    """Draw pairs and their coins by the system's randomness, which no seed repeats.

    Args:
        ids: of all samples ``[N]``.
        labels: of all samples ``[N]``.
        pool: indices of those that may be drawn ``[P]``.
        pairs: how many.

    Raises:
        UnlearnError: more than half of the pool would be needed, or the classes do not have so many pairs.
    """
    random = secrets.SystemRandom()
    drawn: list[CanaryPair] = []
    by_class = [pool[labels[pool] == label].tolist() for label in np.unique(labels[pool])]
    for members in by_class:
        random.shuffle(members)
        # The coin: which of two that were shuffled comes first.
        drawn += [CanaryPair(twin=ids[a], ghost=ids[b]) for a, b in zip(members[::2], members[1::2], strict=False)]
    random.shuffle(drawn)
    if not 4 * pairs <= len(pool) or pairs > len(drawn):
        raise UnlearnError(
            f"{spelled('canaries', pairs)} is too many for {len(pool)} training samples, of which as many would be "
            f"left out: give {min(len(pool) // 4, len(drawn))} at most"
        )
    return Canaries(salt=secrets.token_hex(16), pairs=tuple(drawn[:pairs]))
