"""Models trained on halves of the training set: each leaves out half of whatever is to be forgotten, now or later."""

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal
from zipfile import BadZipFile

import mlflow
import numpy as np
import numpy.typing as npt
from mlflow.exceptions import MlflowException
from torch.utils.data import Dataset, Subset

from mlflow_unlearn.console import counted, note, track
from mlflow_unlearn.data.content import content_digest
from mlflow_unlearn.data.fingerprints import module_digest
from mlflow_unlearn.engine.architectures import weights_digest
from mlflow_unlearn.engine.loop import RunOptions
from mlflow_unlearn.engine.predictions import evaluate_split
from mlflow_unlearn.evidence.audit import REFERENCE_FILE, REFERENCE_TAG
from mlflow_unlearn.evidence.record import sha256
from mlflow_unlearn.evidence.review import MODEL_URI_TAG
from mlflow_unlearn.methods.retrain import RetrainParams
from mlflow_unlearn.metrics.arrays import Bools, Floats
from mlflow_unlearn.metrics.attacks.suite import References
from mlflow_unlearn.registry import tracking
from mlflow_unlearn.registry.dataset_inputs import log_manifests
from mlflow_unlearn.registry.versions import read_artifact
from mlflow_unlearn.session.recipe import Recipe
from mlflow_unlearn.session.reuse import code_digest
from mlflow_unlearn.session.session import Session

KEY_TAG = "unlearn.reference.key"
_UNREADABLE = (MlflowException, OSError, ValueError, KeyError, TypeError, BadZipFile)
SEED = 3000
"""Of the first reference; others count on from it. No original, gold or unlearning has such a seed by default."""
FAST = 1 / 3
"""Of the recorded epochs, by the fast recipe, but not below `FEWEST`."""
FEWEST = 5


@dataclass(frozen=True)
class Reference:
    """One of them, by its outputs: its weights are not kept.

    Attributes:
        run_id: that trained it.
        sha256: of the file of its outputs.
        trained_on: which training samples of the source it has seen ``[Ntrain]``.
        train: log odds of all training samples of the source ``[Ntrain]``.
        test: of its test set.
        epochs: that it was trained for.
    """

    run_id: str
    sha256: str
    trained_on: Bools
    train: Floats
    test: Floats
    epochs: int | None = None


def halves(count: int, number: int) -> Bools:
    """Which of ``count`` samples reference ``number`` is trained on ``[count]``.

    Of two that follow each other one has what the other has not: of K, an even number, every sample is in K / 2.
    """
    drawn = np.random.default_rng(SEED + number // 2).permutation(count) < count / 2
    return drawn if number % 2 == 0 else ~drawn


def fast_epochs(recorded: int) -> int:
    """Epochs of the fast recipe where the recorded one has so many.

    >>> fast_epochs(30), fast_epochs(9), fast_epochs(3)
    (10, 5, 3)
    """
    return max(min(FEWEST, recorded), round(FAST * recorded))


@dataclass(frozen=True)
class ReferenceTrainer:
    """Trains references of one original, or finds those that an earlier audit has trained.

    Attributes:
        session: with the original as its module, to be trained anew.
        recipe: with which each is trained.
        everything: the source's training set as the model reads it.
        trained: indices into it of what the original was trained on ``[N]``.
        experiment: id of the one whose finished runs are reused.
    """

    session: Session
    recipe: Recipe
    everything: Dataset[Any]
    trained: npt.NDArray[np.int64]
    experiment: str

    @property
    def training(self) -> RetrainParams:
        """All hyperparameters of the recipe."""
        return RetrainParams.parse(self.recipe.params, method="retrain")

    def by(self, recipe: Literal["recorded", "fast"]) -> "ReferenceTrainer":
        """One that trains by the recorded recipe, or in a third of its epochs, the schedule with them.

        What a reference says is how hard a sample is for who has not seen it; it need not be as good as the original
        (docs/benchmarks.md).
        """
        if recipe == "recorded":
            return self
        epochs = fast_epochs(self.training.epochs)
        return replace(self, recipe=replace(self.recipe, params={**self.recipe.params, "epochs": epochs}))

    def references(self, count: int) -> list[Reference]:
        """So many of them."""
        made, found = 0, []
        for number in track(list(range(count)), "references", enabled=self.session.hardware.progress):
            key = self._key(number)
            reference = self._finished(key, number)
            made += reference is None
            found.append(replace(reference or self._train(number, key), epochs=self.training.epochs))
        note(f"Note: trained now: {made} of {counted(count, 'reference')}.")
        return found

    def _half(self, number: int) -> Bools:
        """What of the source's training set reference ``number`` is trained on ``[Ntrain]``."""
        chosen = np.zeros(len(self.session.view.source.train), dtype=np.bool_)
        chosen[self.trained[halves(len(self.trained), number)]] = True
        return chosen

    def _train(self, number: int, key: str | None) -> Reference:
        session = self.session
        chosen = self._half(number)
        half = np.flatnonzero(chosen)
        splits = self.recipe.splits(replace(session.splits, retain=Subset(self.everything, half.tolist())))
        params = self.training.model_dump(mode="json")
        with tracking.nested_run(f"reference {number + 1}") as run_id:
            mlflow.set_tag("unlearn.method", "retrain")
            mlflow.log_params({"unlearn.seed": SEED + number, **{f"unlearn.params.{k}": v for k, v in params.items()}})
            log_manifests(session.view.source.spec, {"retain": session.manifest(half)})
            options = RunOptions(SEED + number, teacher=None, model_factory=self.recipe.model_factory)
            result = session.unlearn("retrain", params, options, splits=splits)
            model = session.hardware.place(result.model)
            sets = {"train": self.everything, "test": session.splits.test}
            odds = {
                name: evaluate_split(model, data, session.hardware, description=f"reference on {name}").log_odds
                for name, data in sets.items()
            }
            path = session.folder / REFERENCE_FILE
            with path.open("wb") as file:
                np.savez_compressed(file, allow_pickle=False, trained_on=chosen, **odds)
            mlflow.log_artifact(str(path))
            mlflow.log_metric("unlearn_seconds", result.seconds)
            mlflow.set_tags(
                {
                    "unlearn.weights_sha256": weights_digest(result.model),
                    REFERENCE_TAG: weights_digest(session.module),
                    MODEL_URI_TAG: session.version.uri,
                    **({KEY_TAG: key} if key is not None else {}),
                }
            )
            return _read(run_id, path.read_bytes())

    def _key(self, number: int) -> str | None:
        """Digest of what the outputs depend on, machine and library aside; None where a part cannot be told."""
        session, view = self.session, self.session.view
        digests = {
            "pixels": [content_digest(data) for data in (self.everything, session.splits.test)],
            "code": [module_digest(session.module), code_digest(["retrain"])],
        }
        if None in [part for parts in digests.values() for part in parts]:
            note("Note: references cannot be reused, since the code or the data of the model cannot be identified.")
            return None
        stated = {
            **digests,
            "source": weights_digest(session.module),
            "data": view.source.digest,
            "transform": view.transform,
            "classes": list(view.classes),
            "trained": session.manifest(self.trained).digest,
            "params": self.training.model_dump(mode="json"),
            "recipe": [self.recipe.augment, self.recipe.architecture],
            "number": number,
        }
        return hashlib.sha256(json.dumps(stated, sort_keys=True).encode()).hexdigest()

    def _finished(self, key: str | None, number: int) -> Reference | None:
        if key is None:
            return None
        where = f"attributes.status = 'FINISHED' and tags.`{KEY_TAG}` = '{key}'"
        for run in self.session.client.search_runs([self.experiment], where):
            try:
                found = _read(run.info.run_id, read_artifact(run.info.run_id, REFERENCE_FILE))
            except _UNREADABLE:  # deleted or changed since: it is trained again
                continue
            source = self.session.view.source
            sizes = (len(source.train), len(source.test))
            finite = all(np.isfinite(part).all() for part in (found.train, found.test))
            if (len(found.train), len(found.test)) == sizes and finite:
                if np.array_equal(found.trained_on, self._half(number)):  # else somebody says it was another one
                    return found
        return None


def _read(run_id: str, content: bytes) -> Reference:
    with np.load(io.BytesIO(content), allow_pickle=False) as stored:
        arrays = stored["trained_on"], stored["train"], stored["test"]
    return Reference(run_id, sha256(content), *arrays)


def as_references(references: Sequence[Reference], forget: npt.NDArray[np.int64]) -> References:
    """Their log odds of the forget set (indices ``[F]``) and the test set; of each sample those that it was not in.

    Unseen samples are drawn into imaginary halves by the same law, so that both sets are told by as many references.
    """
    test = np.stack([reference.test for reference in references])
    rng = np.random.default_rng(SEED)
    coins = rng.random((-(-len(references) // 2), test.shape[1])) < 0.5
    for number in range(len(references)):
        test[number, coins[number // 2] == (number % 2 == 0)] = np.nan
    left_out = np.stack([np.where(r.trained_on, np.nan, r.train)[forget] for r in references])
    return References(left_out, test)
