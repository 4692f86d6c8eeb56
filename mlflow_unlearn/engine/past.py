"""The training that a version came out of: which of its states are kept, and from which one it can be run again."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.evidence.checkpoints import Kept, Origin
from mlflow_unlearn.evidence.record import Exactness

ANEW = "The model was trained anew from random weights on what is retained alone."
CHOSEN = "What recipe and seed were chosen by, while the samples were there."
"""What no claim of exactness covers."""
State = Mapping[str, Any]
"""What training goes on from: ``model``, tensors ``[…]`` by name, and but for a beginning optimisers and generators."""


def passed_over(error: UnlearnError) -> str:
    """What is said of a lost state where ``fall_back`` lets an earlier one serve."""
    return f"{error}: it was passed over for an earlier one, since fall_back = true"


@dataclass(frozen=True)
class Keep:
    """Which states of a training are kept.

    Attributes:
        count: how many.
        epochs: of the whole schedule.
        store: called with a state and the epochs that are done.
    """

    count: int
    epochs: int
    store: Callable[[State, int], Kept]

    def after(self, start: int) -> list[int]:
        """The epochs after which a training that goes on from epoch ``start`` is kept: evenly spread, the end excluded.

        >>> Keep(4, 15, print).after(0), Keep(4, 15, print).after(12)
        ([3, 6, 9, 12], [13, 14])
        """
        left = self.epochs - start
        count = min(self.count, left - 1)
        return [start + number * left // (count + 1) for number in range(1, count + 1)]


@dataclass(frozen=True, eq=False)
class Point:
    """A state of the training.

    Attributes:
        epochs: of the schedule that are done there.
        name: for people.
        load: gives the state; an `UnlearnError` where it is lost.
        seen: how many of the samples that are not to be known it was trained on.
        anew: whether its weights are random.
        origin: the version that these weights are, where that is another one.
        doubt: why nothing exact may be claimed of what is made of it, in a sentence; None: nothing speaks against it.
    """

    epochs: int
    name: str
    load: Callable[[], State]
    seen: int
    anew: bool = False
    origin: Origin | None = None
    doubt: str | None = None


@dataclass(frozen=True)
class Past:
    """What a version keeps of its training.

    Attributes:
        points: its states.
        epochs: of the whole schedule.
        seed: with which it began.
        differences: between the machine of the training and this one, in words.
    """

    points: tuple[Point, ...]
    epochs: int
    seed: int
    differences: tuple[str, ...] = ()

    def candidates(self, share: float) -> list[Point]:
        """Where to go back to, the best first.

        That is the last kept state which has seen nothing of what is to be forgotten. Behind it, or where there is
        none, comes the last one that leaves ``share`` of the schedule, then all before; random weights are the last.
        """
        latest = sorted(self.points, key=lambda point: (not point.anew, point.epochs), reverse=True)
        unseen = [point for point in latest if not point.seen and not point.anew]
        left = [point for point in latest if self.epochs - point.epochs >= share * self.epochs - 1e-9]
        return list(dict.fromkeys([*unseen, *left]))

    def go_back(
        self, share: float, *, fall_back: bool, warn: Callable[[str], None] | None = None
    ) -> tuple[Point, State]:
        """The first of the `candidates`, loaded; with ``fall_back`` the first one that can be.

        Args:
            share: of the schedule.
            fall_back: whether a lost one is passed over.
            warn: called with a sentence about each that was.

        Raises:
            UnlearnError: it is lost.
        """
        candidates = self.candidates(share)
        while True:
            point, *candidates = candidates
            try:
                return point, point.load()
            except UnlearnError as error:
                if not candidates:
                    raise UnlearnError(f"{error}, and nothing is left before it: use the method retrain") from error
                if not fall_back:
                    raise UnlearnError(
                        f"{error}: restore it, or give params with fall_back = true to go back to "
                        f"{candidates[0].name} instead"
                    ) from error
                if warn is not None:
                    warn(passed_over(error))

    def exactness(self, point: Point, steps_per_epoch: int) -> Exactness:
        """What may be claimed once the schedule has been run again from ``point`` without the forgotten samples."""
        again = self.epochs - point.epochs
        excludes = [CHOSEN]
        if point.anew:
            covers = ANEW
        elif not point.seen:
            covers = (
                f"The training was run again from {point.name}, which has seen none of the forgotten samples, on what "
                "is retained alone."
            )
        else:
            covers = (
                f"The last {again} of {self.epochs} epochs were run again on what is retained alone, from "
                f"{point.name}, which has seen {point.seen} of the forgotten samples."
            )
            excludes = ["What these weights had learned of the samples, as far as the epochs since have left it there."]
        if not point.seen and self.differences:
            excludes.append(
                f"The same bits as on the machine of the training, which had {', '.join(self.differences)}."
            )
        if point.doubt is not None:
            excludes.append(point.doubt)
        exact = "exact up to numerics" if self.differences else "exact"
        return Exactness(
            kind="approximate" if point.seen or point.doubt else exact,
            covers=covers,
            excludes=excludes,
            steps=again * steps_per_epoch,
            steps_from_scratch=self.epochs * steps_per_epoch,
        )
