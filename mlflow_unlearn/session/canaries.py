"""The canaries that a version was trained with, as its record commits to them, and those that go with a request."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from mlflow.exceptions import MlflowException
from pydantic import ValidationError

from mlflow_unlearn.console import first_line
from mlflow_unlearn.data.canaries import Canaries
from mlflow_unlearn.data.source import Source
from mlflow_unlearn.errors import Refused, UnlearnError
from mlflow_unlearn.registry import forget_requests
from mlflow_unlearn.registry.versions import Version, read_artifact
from mlflow_unlearn.spelling import spelled

FILE = "canaries.json"
LEAST = 48
"""Pairs of a tranche: in so many a leak of 0.4 is seen."""


def canaries_of(version: Version) -> Canaries | None:
    """The canaries of a version's training; None where it had none.

    Raises:
        Refused: they are not those that the record commits to.
        UnlearnError: they cannot be read.
    """
    committed = version.record.canaries if version.record is not None else None
    if committed is None:
        return None
    where = f"the canaries of {version.uri}, in run {committed.run_id},"
    try:
        found = Canaries.model_validate_json(read_artifact(committed.run_id, FILE))
    except ValidationError as error:
        raise Refused(f"{where} were changed: {first_line(error)}") from error
    except (MlflowException, OSError) as error:
        raise UnlearnError(f"{where} cannot be read ({first_line(error)})") from error
    if (found.digest, len(found.pairs)) != (committed.sha256, committed.pairs):
        raise Refused(f"{where} are not those that the version committed to before it was trained")
    return found


def next_tranche(
    version: Version, source: Source, mask: npt.NDArray[np.bool_], forget: npt.NDArray[np.int64], wanted: int | None
) -> npt.NDArray[np.int64]:
    """Indices of the trained twins that join a request: the next ones that no request has taken.

    Args:
        version: that the request is about.
        source: of its data.
        mask: what of ``source.train`` it was trained on and has not forgotten ``[N]``.
        forget: what the request names ``[F]``.
        wanted: how many; None: a fifth of all pairs, at least 48, or what is left; 0 none.

    Raises:
        UnlearnError: some are wanted of a version that was trained without.
    """
    canaries = canaries_of(version) if wanted != 0 else None
    if canaries is None:
        if wanted:
            raise UnlearnError(
                f"{spelled('canaries', wanted)}: {version.uri} was trained without; `train` with "
                f"{spelled('canaries')} plants them"
            )
        return np.zeros(0, np.int64)
    places = {name: index for index, name in enumerate(source.train.ids)}
    known = [places[pair.twin] for pair in canaries.pairs if pair.twin in places]
    taken = set(forget.tolist()).union(*_requested(version, source, set(forget.tolist()), set(known)))
    free = [index for index in known if mask[index] and index not in taken]
    count = max(LEAST, len(canaries.pairs) // 5) if wanted is None else wanted
    return np.array(free[:count], np.int64)


def _requested(version: Version, source: Source, asked: set[int], twins: set[int]) -> Iterator[set[int]]:
    """What other requests on the version name; not the same one as it was filed before, which keeps its tranche."""
    own, _ = forget_requests.of_version(version)
    for request in own:
        named = forget_requests.read_filed(request).mask(source.train.ids)
        indices = set(np.flatnonzero(named).tolist())
        if indices - twins != asked - twins:
            yield indices
