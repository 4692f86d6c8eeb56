"""Whether the training of a version can be gone back on for a request; if not, why, before anything is trained."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mlflow_unlearn.data.splits import labels_of
from mlflow_unlearn.engine.ensemble import Ensemble
from mlflow_unlearn.engine.past import Point
from mlflow_unlearn.engine.shards import ShardedPast
from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.methods.exact import ExactParams, not_an_ensemble
from mlflow_unlearn.methods.rewind import RewindParams
from mlflow_unlearn.registry.versions import open_version
from mlflow_unlearn.session.ensemble import sharded_past
from mlflow_unlearn.session.lineage import lineage, previous
from mlflow_unlearn.session.past import unmet
from mlflow_unlearn.session.session import Session
from mlflow_unlearn.spelling import spelled


@dataclass(frozen=True)
class Rewinding:
    """What ``rewind`` does by default.

    Attributes:
        point: where it goes back to.
        share: what is run again, as a fraction of a retraining.
    """

    point: Point
    share: float

    @property
    def exact(self) -> bool:
        """Whether nothing of the samples can be left."""
        return not self.point.seen and self.point.doubt is None

    @property
    def why(self) -> str:
        """What may be claimed of the result."""
        if self.point.seen:
            return "the end of the training runs again without the samples, on weights that saw them: evidence, no more"
        if self.point.doubt is not None:
            doubt = self.point.doubt.removesuffix(".")
            return (
                f"the training goes on without the samples from {self.point.name}, which is evidence and no more: "
                f"{doubt[0].lower()}{doubt[1:]}"
            )
        if self.point.anew:
            return "the whole training runs again without the samples, from random weights"
        return f"the training goes on without the samples from {self.point.name}, which had not seen them"


def rewinding(session: Session, params: Mapping[str, Any] | None = None) -> Rewinding:
    """What `rewind` does, once what it goes back to has been read.

    Args:
        session: the version opened for work.
        params: hyperparameters that differ from the method's own.

    Raises:
        UnlearnError: the version keeps nothing to go back to, or that was lost or changed.
    """
    record = session.version.record
    if (reason := unmet("rewind", session.version)) is not None:
        if record is not None and record.shards is not None:
            raise UnlearnError(reason)
        raise UnlearnError(
            f"this version keeps no checkpoint from before these samples: `train` with {spelled('keep_checkpoints', 4)}"
        )
    own = RewindParams.parse(params or {}, method="rewind")
    training, retain = session.own_training, len(session.retain)
    past = training.past
    point, _ = past.go_back(own.share, fall_back=own.fall_back)
    read = retain if training.late is None else len(training.late)
    return Rewinding(point, (past.epochs - point.epochs) * read / (past.epochs * retain))


def shards_back(session: Session, params: Mapping[str, Any] | None = None) -> ShardedPast:
    """What `exact` trains again, once the checkpoints that it begins with have been read.

    Args:
        session: the version opened for work.
        params: hyperparameters that differ from the method's own.

    Raises:
        UnlearnError: why it would be refused, and the way out.
    """
    record, module = session.version.record, session.module
    if record is None or record.shards is None:
        raise UnlearnError(
            f"this version is one model: `train` with {spelled('ensemble', 8)} and {spelled('slices', 4)}"
        )
    past = sharded_past(session)
    if past is None:
        raise UnlearnError(_before_it_ended(session, str(record.shards.ended_by)))
    if not isinstance(module, Ensemble):
        raise UnlearnError(not_an_ensemble())
    own = ExactParams.parse(params or {}, method="exact")
    past.check(labels_of(session.splits.retain))
    for shard, stage in past.begin().items():
        past.start(copy.deepcopy(module.members[shard]), shard, stage, fall_back=own.fall_back)
    return past


def _before_it_ended(session: Session, ended_by: str) -> str:
    """Why an ensemble is no longer exact, with the version before that, which still is, as far as it is there."""
    changed = f"{ended_by} has changed the weights of this ensemble"
    since, gone = list[str](), ""
    for step in reversed(lineage(previous(session.version))):
        since += [request for request in step.request_ids if request not in since]
        try:
            before = open_version(session.client, step.source_uri, session.folder).record
        except UnlearnError as error:
            gone = f", and {error}"
            continue
        if before is not None and before.shards is not None and before.shards.ended_by is None:
            named = f"request{'' if len(since) == 1 else 's'} {', '.join(since)}"
            return (
                f"{changed}; {step.source_uri} is from before that: file these samples and those of {named} there, and "
                f"use {spelled('method', 'exact')}"
            )
    return f"{changed}{gone}"
