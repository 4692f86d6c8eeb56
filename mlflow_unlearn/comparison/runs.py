"""What `compare` shares between methods and seeds, and how it reuses finished runs."""

import copy
import hashlib
import json
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import mlflow
import torch
from mlflow.entities import Run
from torch import nn

from mlflow_unlearn.api import Result
from mlflow_unlearn.auditing.audit import check_auditable
from mlflow_unlearn.comparison.audits import ComparisonAudit
from mlflow_unlearn.console import note
from mlflow_unlearn.data.splits import Splits
from mlflow_unlearn.distributed import ranks
from mlflow_unlearn.engine.architectures import weights_digest
from mlflow_unlearn.engine.hardware import processor
from mlflow_unlearn.engine.loop import RunOptions
from mlflow_unlearn.engine.output_cache import fingerprint
from mlflow_unlearn.engine.predictions import SPLIT_NAMES, attack_target, evaluate_splits
from mlflow_unlearn.engine.shards import ShardedPast
from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.governance.publish import log_history
from mlflow_unlearn.methods import get_method
from mlflow_unlearn.metrics.outputs import Outputs
from mlflow_unlearn.metrics.suite import Metrics, compute_metrics
from mlflow_unlearn.registry import tracking
from mlflow_unlearn.session.ensemble import sharded_past
from mlflow_unlearn.session.recipe import Recipe
from mlflow_unlearn.session.reuse import Part, code_digest, reuse_key
from mlflow_unlearn.session.session import Session
from mlflow_unlearn.spelling import spelled
from mlflow_unlearn.tuning.selection import SELECTION_SPLITS, on_validation
from mlflow_unlearn.tuning.trials import weight_change

KEY_TAG = "unlearn.compare.key"
RESULT, WEIGHTS = "result.json", "weights.pt"


@dataclass(frozen=True)
class Gold:
    """A model retrained on the retain set, with its outputs on the four splits; ``seconds`` where it was made here."""

    module: nn.Module
    outputs: Outputs
    digest: str
    seconds: float | None


@dataclass(frozen=True)
class Trial:
    """The result of one method with one seed.

    Attributes:
        method: registered name.
        params: all its hyperparameters.
        seed: of the unlearning and of the metrics.
        metrics: on the test set; none of a candidate.
        selection_metrics: on the validation set.
        seconds: of the unlearning.
        digest: of the weights.
        moved: whether a weight changed.
        warnings: of the method.
        weight_change: how far the weights moved, relative to their size.
    """

    method: str
    params: Mapping[str, Any]
    seed: int
    metrics: Metrics
    selection_metrics: Metrics
    seconds: float
    digest: str
    moved: bool
    warnings: tuple[str, ...]
    weight_change: float


class ComparisonRunner:
    """What all methods and seeds share: the session, the original's outputs, the teacher's logits, finished runs."""

    def __init__(self, session: Session, recipe: Recipe, experiment: str, *, force: bool, prefix: str = "none") -> None:
        """Evaluate the original.

        Args:
            session: the version opened for work.
            recipe: with which it is retrained.
            experiment: id of the one whose finished runs are reused.
            force: go on where the original's accuracy is implausibly low.
            prefix: split point before which layers stay frozen.
        """
        self.teacher = session.teacher(prefix)
        self.original = session.evaluate_original(force=force, teacher=self.teacher)
        # From here on the progress bar is that of the whole comparison.
        self.session = replace(session, hardware=replace(session.hardware, progress=False))
        self.recipe, self._experiment = recipe, experiment
        self._deterministic: dict[str, tuple[Mapping[str, Any], Result]] = {}
        self._source = weights_digest(session.module)
        self._sets = [session.manifest(split).digest for split in (session.forget, session.retain)]
        self._reused: dict[str, Part] = {
            **reuse_key(session),
            "processor": processor(session.hardware.device),
            "answers_sha256": fingerprint(self.teacher.model, session.splits.test, session.hardware),
        }
        self._untold: set[str] = set()
        self.audit: ComparisonAudit | None = None
        self._audited_by: list[str] = []

    @cached_property
    def before(self) -> Metrics:
        """The original on the validation set, by which the constraints are judged."""
        return on_validation(self.original, self.original, seed=0)

    def audit_by(self, golds: Sequence[Gold]) -> None:
        """From now on attack each model that is measured as well, by means of these golds.

        Args:
            golds: that are there.

        Raises:
            UnlearnError: they are all alike, or there is too little to audit by.
        """
        check_auditable(self.session)
        if len(golds) < 2:
            raise UnlearnError(
                f"{spelled('by', 'audit')} needs two gold standards with different weights, to attack each by means of "
                f"the other: give another {spelled('gold_uri')}, or leave it out"
            )
        modules = [self.session.module, *(gold.module for gold in golds)]
        original, *others = (attack_target(m, self.session.splits, self.session.hardware) for m in modules)
        self.audit = ComparisonAudit(original, others)
        self._audited_by = [gold.digest for gold in golds]

    def teacher_logits(self) -> None:
        """Compute them before any method is timed: the first one would pay for all."""
        start = time.perf_counter()
        self.teacher.fill(("forget", "retain", "val"))
        mlflow.log_metric("teacher_seconds", time.perf_counter() - start)

    def gold(self, seed: int) -> Gold:
        """Retrain with the version's recipe, or load the weights of a finished run."""
        recipe = self.recipe
        params = get_method("retrain")(recipe.params).params.model_dump(mode="json")
        start = {"augment": recipe.augment, "architecture": recipe.architecture}
        key = self._key("retrain", {**params, **start}, seed, None)
        found = self._finished(key)
        if found is not None:
            uri = f"runs:/{found.info.run_id}/{WEIGHTS}"
            with tempfile.TemporaryDirectory(dir=self.session.folder) as folder:
                path = mlflow.artifacts.download_artifacts(uri, dst_path=folder)
                state = torch.load(path, map_location="cpu", weights_only=True)
            module = copy.deepcopy(self.session.module)
            module.load_state_dict(state)
            seconds = float(found.data.metrics["unlearn_seconds"])
        else:
            with self._run(f"retrain, seed {seed}", "retrain", seed, key, params):
                result = self._unlearn("retrain", params, seed, recipe.splits(self.session.splits))
                with tempfile.TemporaryDirectory(dir=self.session.folder) as folder:
                    torch.save(result.model.state_dict(), Path(folder) / WEIGHTS)
                    mlflow.log_artifact(str(Path(folder) / WEIGHTS))
                log_history(get_method("retrain"), result)
                module, seconds = result.model, result.seconds
        outputs = evaluate_splits(module, self.session.splits, self.session.hardware, cached=True)
        return Gold(module, outputs, weights_digest(module), seconds)

    def trial(self, method: str, params: Mapping[str, Any], seed: int, gold: Gold, row: str = "") -> Trial | None:
        """Unlearn and measure, or reuse what a finished run has measured; None where the method failed.

        Args:
            method: a registered name.
            params: all its hyperparameters.
            seed: of the unlearning and of the metrics.
            gold: the model that is compared with.
            row: of the table that this belongs to; default: that of the method.
        """
        name = f"{row or method}, seed {seed}"
        try:
            return self._trial(name, method, params, seed, gold)
        except UnlearnError as error:
            # Hyperparameters that diverge are a row's result, not the end of the comparison.
            note(f"Note: {row or method} with seed {seed} failed: {error}")
            return None

    def candidate(self, method: str, params: Mapping[str, Any], seed: int, number: int) -> Trial:
        """The same for a trial of tuning: measured on the validation set, without test set and gold.

        Args:
            method: a registered name.
            params: all its hyperparameters.
            seed: of the unlearning and of the metrics.
            number: of the trial.

        Raises:
            UnlearnError: the method failed, or left every weight as it was.
        """
        found = self._trial(f"{method}, trial {number}", method, params, seed, None)
        if not found.moved:
            raise UnlearnError("; ".join(found.warnings))
        return found

    def _trial(self, name: str, method: str, params: Mapping[str, Any], seed: int, gold: Gold | None) -> Trial:
        key = self._key(method, params, seed, gold)
        found = self._finished(key)
        if found is not None:
            uri = f"runs:/{found.info.run_id}/{RESULT}"
            stored = mlflow.artifacts.load_dict(uri)
            return _from_json(mlflow.artifacts.load_dict(uri), method, params, seed, self._source)
        splits, hardware = self.session.splits, self.session.hardware
        with self._run(name, method, seed, key, params):
            result = self._result(method, params, seed)
            attacked = None if self.audit is None or gold is None else attack_target(result.model, splits, hardware)
            seen = {} if attacked is None else dict(attacked.outputs)
            wanted = SELECTION_SPLITS if gold is None else SPLIT_NAMES
            rest = evaluate_splits(result.model, splits, hardware, only=tuple(s for s in wanted if s not in seen))
            outputs = {**seen, **rest}
            metrics = Metrics() if gold is None else self.measure(outputs, gold, seed)
            # Of a collapsed model only accuracies count.
            if self.audit is not None and attacked is not None and metrics.collapsed is None:
                metrics.update(self.audit.of_model(attacked, seed))
            selection = on_validation(outputs, self.original, gold=None if gold is None else gold.outputs, seed=seed)
            digest = weights_digest(result.model)
            warnings = result.warnings if digest != self._source else (*result.warnings, "left every weight as it was")
            stored = {
                "metrics": _to_json(metrics),
                "judged": _to_json(selection),
                "seconds": result.seconds,
                "weight_change": weight_change(self.session.module, result.model),
                "weights_sha256": digest,
                "warnings": list(warnings),
            }
            mlflow.log_dict(stored, RESULT)
            mlflow.set_tag("unlearn.weights_sha256", digest)
            mlflow.log_metrics({**metrics, **selection})
            log_history(get_method(method), result)
            return _from_json(stored, method, params, seed, self._source)

    def _result(self, method: str, params: Mapping[str, Any], seed: int) -> Result:
        """A deterministic method runs once for all seeds."""
        if get_method(method).stochastic:
            return self._unlearn(method, params, seed)
        if method not in self._deterministic or self._deterministic[method][0] != params:
            self._deterministic[method] = params, self._unlearn(method, params, seed)
        return self._deterministic[method][1]

    def measure(self, outputs: Outputs, gold: Gold, seed: int) -> Metrics:
        """Every metric of a model, against the original and a gold."""
        return compute_metrics(outputs, original_test=self.original["test"], gold=gold.outputs, seed=seed)

    def unlearned(self, trial: Trial) -> Result:
        """The trial's model, made again: same seed, same machine, same weights.

        Raises:
            UnlearnError: they come out otherwise.
        """
        result = self._unlearn(trial.method, trial.params, trial.seed)
        if weights_digest(result.model) != trial.digest:
            raise UnlearnError(
                f"{trial.method} with seed {trial.seed} ran elsewhere or with other versions, and its weights do not "
                "come out the same here: compare again in a new experiment"
            )
        return result

    def _unlearn(self, method: str, params: Mapping[str, Any], seed: int, training: Splits | None = None) -> Result:
        """Retraining gets its splits as the original was trained on them, and needs no teacher."""
        options = RunOptions(
            seed,
            teacher=None if training else self.teacher,
            model_factory=self.recipe.model_factory,
            sharded=self._sharded(method),
        )
        return self.session.unlearn(method, params, options, splits=training)

    def _sharded(self, method: str) -> ShardedPast | None:
        known = get_method(method)
        return sharded_past(self.session, anew=known.needs is None) if known.by_shards else None

    @contextmanager
    def _run(self, name: str, method: str, seed: int, key: str | None, params: Mapping[str, Any]) -> Iterator[None]:
        with tracking.nested_run(name):
            mlflow.set_tags({"unlearn.method": method, **({} if key is None else {KEY_TAG: key})})
            mlflow.log_params({"unlearn.seed": seed, **{f"unlearn.params.{k}": v for k, v in params.items()}})
            yield

    def _key(self, method: str, params: Mapping[str, Any], seed: int, gold: Gold | None) -> str | None:
        """Digest of all that the weights and metrics of a run depend on; None where a part cannot be told."""
        view, machine = self.session.view, self.session.hardware
        code = code_digest([method], *([] if gold is None else [gold.module]))
        reused = {**self._reused, f"code_sha256 of {method}": code}
        untold = {part for part, value in reused.items() if value is None}
        if new := sorted(untold - self._untold):
            self._untold |= untold
            note(f"Note: finished runs are not reused, nor will these be later: {', '.join(new)} cannot be identified.")
        if untold:
            return None
        cache_key = {
            **reused,
            "source": self._source,
            "data": view.source.digest,
            "transform": view.transform,
            "classes": list(view.classes),
            "sets": self._sets,
            "gold": None if gold is None else gold.digest,
            "audit": None if gold is None else self._audited_by,
            "method": method,
            "params": dict(params),
            "seed": seed,
            "prefix": None if method == "retrain" else self.teacher.prefix,
            "hardware": [machine.channels_last, machine.compile, ranks.world()],
        }
        return hashlib.sha256(json.dumps(cache_key, sort_keys=True).encode()).hexdigest()

    def _finished(self, key: str | None) -> Run | None:
        if key is None:
            return None
        where = f"attributes.status = 'FINISHED' and tags.`{KEY_TAG}` = '{key}'"
        found = self.session.client.search_runs([self._experiment], where, max_results=1)
        return found[0] if found else None


def _to_json(metrics: Metrics) -> dict[str, Any]:
    return {"values": dict(metrics), "not_computed": metrics.missing, "counts": metrics.counts}


def _from_json(
    stored: Mapping[str, Any], method: str, params: Mapping[str, Any], seed: int, source_digest: str
) -> Trial:
    digest = stored["weights_sha256"]
    return Trial(
        method,
        params,
        seed,
        metrics=_metrics(stored["metrics"]),
        selection_metrics=_metrics(stored["judged"]),
        seconds=stored["seconds"],
        digest=digest,
        moved=digest != source_digest,
        warnings=tuple(stored["warnings"]),
        weight_change=stored["weight_change"],
    )


def _metrics(stored: Mapping[str, Any]) -> Metrics:
    metrics = Metrics()
    metrics.update(stored["values"])
    metrics.missing.update(stored["not_computed"])
    metrics.counts.update(stored["counts"])
    return metrics
