"""Which checkpoints have seen samples: of the versions that contain these, and those that no version lists."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from pydantic import Field
from pydantic.json_schema import SkipJsonSchema

from mlflow_unlearn.answer import CommandResult
from mlflow_unlearn.data.manifest import Manifest
from mlflow_unlearn.data.placement import read_placement
from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.evidence.checkpoints import CHECKPOINTS_TAG, Kept
from mlflow_unlearn.governance.checkpoints import record_at
from mlflow_unlearn.governance.locating import Found, Located, Wanted
from mlflow_unlearn.registry.artifacts import remember, stored_file
from mlflow_unlearn.registry.checkpoints import stored_checkpoints
from mlflow_unlearn.registry.versions import PLACEMENT_FILE, Record
from mlflow_unlearn.registry.walk import Registry, runs_of


class RunCheckpoints(CommandResult):
    """Checkpoints in one run's artifacts that have seen some of the samples."""

    run_id: str
    shards: dict[str, list[int]] = Field(description="Shard → slices after which they were kept; of one model, epochs.")
    listed_by: list[str] = Field(description="Versions and LoggedModels that contain the samples.")
    # For people: programs have `shards`.
    of_one_model: SkipJsonSchema[bool] = Field(False, exclude=True)

    def __str__(self) -> str:
        """As it is printed."""
        count = sum(map(len, self.shards.values()))
        stages = {shard: ", ".join(map(str, after)) for shard, after in self.shards.items()}
        if self.of_one_model:
            after = f"epochs {', '.join(stages.values())}"
        else:
            after = f"slices of {'; '.join(f'shard {shard}: {of}' for shard, of in stages.items())}"
        return f"runs:/{self.run_id}/checkpoints: {count} (after {after})"


@dataclass(frozen=True)
class Seen:
    """What came of a search.

    Attributes:
        runs: with checkpoints that have seen some of the samples.
        counts: how many of these each version lists, by URI.
        unlisted: checkpoints of no version that can be read, and runs whose store does not tell.
    """

    runs: Sequence[RunCheckpoints] = ()
    counts: Mapping[str, int] = field(default_factory=dict)
    unlisted: Sequence[str] = ()


def checkpoints_seen(client: MlflowClient, registry: Registry, found: Found, wanted: Sequence[Wanted]) -> Seen:
    """Look at all checkpoints that runs keep.

    Args:
        client: of the tracking server.
        registry: all that is there.
        found: what each version is to the samples.
        wanted: the samples.
    """
    runs = list(runs_of(client, registry.experiments, f"tags.`{CHECKPOINTS_TAG}` LIKE '%'"))
    remember(runs)
    stored, hidden = set[tuple[str, str]](), list[str]()
    for run_id in (run.info.run_id for run in runs):
        try:
            stored |= {(run_id, path) for path in stored_checkpoints(run_id)}
        except UnlearnError as error:  # it hides no other run
            hidden.append(str(error))
    if not stored:
        return Seen(unlisted=hidden)
    known: set[tuple[str, str]] = set()
    shards: dict[str, dict[str, set[int]]] = {}
    users: dict[str, list[str]] = {}
    of_one = set[str]()
    counts: dict[str, int] = {}
    for entry in (*found.versions, *found.models):
        if CHECKPOINTS_TAG not in entry.registered.tags or entry.state == "retired" or entry.location.doubt:
            continue
        try:
            record = record_at(entry.location.uri)
        except UnlearnError:  # what it lists is named below, as listed by none that can be read
            continue
        known |= {(one.run_id, one.path) for one in record.checkpoints}
        if entry.state != "contains":
            continue
        seen = [one for one in _seen(entry, record, wanted) if (one.run_id, one.path) in stored]
        counts[entry.uri] = len(seen)
        of_one |= {one.run_id for one in seen if record.shards is None}
        for one in seen:
            shards.setdefault(one.run_id, {}).setdefault(str(one.shard), set()).add(one.stage)
        for run_id in dict.fromkeys(one.run_id for one in seen):
            users.setdefault(run_id, []).append(entry.uri)
    return Seen(
        [
            RunCheckpoints(
                run_id=run_id,
                shards={shard: sorted(stages) for shard, stages in sorted(of.items())},
                listed_by=users[run_id],
                of_one_model=run_id in of_one,
            )
            for run_id, of in shards.items()
        ],
        counts,
        [*(f"runs:/{run_id}/{path}" for run_id, path in sorted(stored - known)), *hidden],
    )


def _seen(entry: Located, record: Record, wanted: Sequence[Wanted]) -> list[Kept]:
    """Which of its checkpoints have seen some of the samples: of one model all, of shards as its list says."""
    if record.shards is None:
        return list(record.checkpoints)
    slices = _first_slices(entry, wanted)
    if slices is None:
        return list(record.checkpoints)
    return [one for one in record.checkpoints if one.stage > slices.get(one.shard, one.stage)]


def _first_slices(entry: Located, wanted: Sequence[Wanted]) -> dict[int, int] | None:
    """Shard → the first slice with one of the samples; None where that cannot be told."""
    try:
        with tempfile.TemporaryDirectory(prefix="mlflow-unlearn-") as folder:
            path = stored_file(entry.location.uri, f"extra_files/{PLACEMENT_FILE}", Path(folder))
            placed, salt = read_placement(path, entry.uri), Manifest.from_csv(path).salt
    except (MlflowException, OSError, UnlearnError):
        return None
    key = Manifest((), salt).key
    first: dict[int, int] = {}
    for one in wanted:
        if one.samples.salt not in (None, salt):
            return None
        for sample in one.samples.ids:
            place = placed.get(sample if one.samples.salt is not None else key(sample))
            if place is not None:
                shard, slice_ = place
                first[shard] = min(slice_, first.get(shard, slice_))
    return first or None  # it contains them by a request's word, or as a copy
