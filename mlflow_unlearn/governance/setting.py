"""One method with its hyperparameters on an opened version: what `unlearn` runs, once or as one rung of several."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from mlflow_unlearn.api import Result
from mlflow_unlearn.engine.architectures import weights_digest
from mlflow_unlearn.engine.checkpoint import Checkpoint
from mlflow_unlearn.engine.loop import RunOptions
from mlflow_unlearn.engine.teacher import Teacher
from mlflow_unlearn.errors import NothingToUnlearn
from mlflow_unlearn.evidence.checkpoints import trained_as
from mlflow_unlearn.evidence.provenance import Provenance, Selection
from mlflow_unlearn.governance.publish import log_epoch, log_result, nothing_to_unlearn
from mlflow_unlearn.methods import get_method
from mlflow_unlearn.registry.checkpoints import mark_training
from mlflow_unlearn.session.ensemble import StageCheckpoints, sharded_past
from mlflow_unlearn.session.past import keep_of
from mlflow_unlearn.session.recipe import Recipe
from mlflow_unlearn.session.session import Session


@dataclass(frozen=True)
class Setting:
    """What decides the weights, beside the version and its data.

    Attributes:
        method: registered name.
        params: hyperparameters that differ from the method's own.
        seed: of everything random.
        teacher: the version, for every method but ``retrain``.
        recipe: of the version's training, for ``retrain`` alone.
    """

    method: str
    params: Mapping[str, Any]
    seed: int
    teacher: Teacher | None = None
    recipe: Recipe | None = None

    def run(self, session: Session, run_id: str) -> tuple[Result, Checkpoint | StageCheckpoints]:
        """Unlearn and log it on the active run, going on where this command was killed.

        The checkpoint is to be removed once what came of it is registered, or is known not to be.

        Args:
            session: the version opened for work.
            run_id: of the active run.

        Raises:
            UnlearnError: the method refuses the model or the hyperparameters, or fails.
            NothingToUnlearn: it left every weight as it was.
        """
        method, recipe, before = get_method(self.method), self.recipe, weights_digest(session.module)
        anew = {} if recipe is None else {"augment": recipe.augment, "architecture": recipe.architecture}
        identity, sharded = {**session.identity, **anew}, None
        single = Checkpoint("unlearn", run_id, identity, before)
        checkpoint: Checkpoint | StageCheckpoints = single
        if method.by_shards:
            stages = StageCheckpoints("unlearn", run_id, identity, before)
            sharded = sharded_past(session, run_id, stages, anew=method.needs is None)
            checkpoint = checkpoint if sharded is None else stages
        keep = keep_of(session, self.method, run_id, single)
        if keep is not None or sharded is not None:
            mark_training(run_id, self._trained_as(session))
        options = RunOptions(
            self.seed,
            teacher=self.teacher,
            model_factory=None if recipe is None else recipe.model_factory,
            on_epoch=partial(log_epoch, method),
            checkpoint=checkpoint if isinstance(checkpoint, Checkpoint) else None,
            sharded=sharded,
            keep=keep,
        )
        splits = None if recipe is None else recipe.splits(session.splits)
        result = session.unlearn(self.method, self.params, options, splits=splits)
        result = result if recipe is None else recipe.claimed(result)
        log_result(method, result)
        if weights_digest(result.model) == before:
            checkpoint.remove()
            raise NothingToUnlearn(nothing_to_unlearn(method, result))
        return result, checkpoint

    def _trained_as(self, session: Session) -> str:
        """What the new version's record will say, of a version whose training is run again.

        Raises:
            ValueError: it has no record.
        """
        if (record := session.version.record) is None:
            raise ValueError("nothing is recorded of the training")
        of = record.shards or record.provenance
        params = of.params if record.shards is not None else get_method(self.method)(self.params).params.model_dump()
        # Which list the new version will have depends on what can be claimed in the end. What goes back to a state of
        # one model may have seen what that has; stages of a shard have not.
        samples = {session.stored_manifest(session.retain).digest, session.known_after(None).digest}
        made = {trained_as(record.architecture, digest, params, of.seed) for digest in samples}
        if record.shards is None and record.trained_as is not None:
            made.add(record.trained_as)
        return " ".join(sorted(made))

    def provenance(self, result: Result, selection: Selection | None = None) -> Provenance:
        """How ``result`` came about."""
        return Provenance(
            method=self.method,
            params=dict(result.params),
            seed=self.seed,
            prefix=None if self.teacher is None else self.teacher.prefix,
            augment=None if self.recipe is None else self.recipe.augment,
            selection=selection,
        )
