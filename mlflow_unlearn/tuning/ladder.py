"""``unlearn --until pass``: one setting after the other, cheapest first, until a policy is content.

It judges on the validation set; the test set is read once, for the setting that is chosen. Looking at several costs
nothing there, and little on the validation set, where a candidate has to stay below a lower quantile of the null
(`mlflow_unlearn.evidence.candidate`).
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import mlflow
import numpy as np
from rich.table import Table

from mlflow_unlearn import cache, config
from mlflow_unlearn.api import Result
from mlflow_unlearn.console import note, stdout
from mlflow_unlearn.distributed import ranks
from mlflow_unlearn.engine.architectures import model_family, weights_digest
from mlflow_unlearn.engine.checkpoint import Checkpoint
from mlflow_unlearn.engine.loop import RunOptions
from mlflow_unlearn.engine.predictions import evaluate_splits
from mlflow_unlearn.engine.teacher import Teacher
from mlflow_unlearn.errors import NothingToUnlearn, UnlearnError
from mlflow_unlearn.evidence.candidate import judge_candidate
from mlflow_unlearn.evidence.policy import Policy
from mlflow_unlearn.evidence.provenance import Attempt, Provenance, Selection
from mlflow_unlearn.evidence.record import Measured
from mlflow_unlearn.governance.evidence_builder import measured
from mlflow_unlearn.governance.publish import log_epoch, log_final, nothing_to_unlearn
from mlflow_unlearn.methods import get_method
from mlflow_unlearn.metrics.outputs import Outputs
from mlflow_unlearn.metrics.reading import LARGEST_DECIDED_NULL, samples_needed, tells_apart
from mlflow_unlearn.metrics.suite import Metrics
from mlflow_unlearn.registry import tracking
from mlflow_unlearn.session import dry_run
from mlflow_unlearn.session.recipe import Recipe
from mlflow_unlearn.session.reuse import code_digest, reuse_key
from mlflow_unlearn.session.session import Session
from mlflow_unlearn.tuning.rungs import RETRAIN_FROM, Rung, described
from mlflow_unlearn.tuning.selection import SELECTION_SPLITS, as_if_tested

ATTEMPTS = "attempts"
"""The kind of cache entries by which a command that was killed knows what it has tried."""


@dataclass
class Ladder:
    """What the rungs share, and how far the climb is.

    Attributes:
        session: the version opened for work.
        policy: that judges.
        rungs: in their order.
        recipe: by which retraining would train; the budget is a fraction of what it trains on.
        budget: how much all rungs may train on, in retrainings.
        seed: of every rung and of the metrics.
        teacher: the version, for the methods.
        original: outputs of the version.
        gold: outputs of the gold standard, where there is one.
        attempts: what was tried.
    """

    session: Session
    policy: Policy
    rungs: Sequence[Rung]
    recipe: Recipe
    budget: float
    seed: int
    teacher: Teacher
    original: Outputs
    gold: Outputs | None = None
    attempts: list[Attempt] = field(default_factory=list)

    def climb(self) -> tuple[Result, Provenance, Checkpoint]:
        """Try the rungs until one passes: what it made, how, and the checkpoint to remove once that is registered.

        Raises:
            UnlearnError: the policy has a rule that the validation set cannot decide, or no rung can run here.
            NothingToUnlearn: nothing that the measure sees is to be forgotten, or too little to be judged; or nothing
                passes within the budget, and the nearest attempt is named.
        """
        self._check_measurable()
        for rung in self.rungs:
            spent = sum(attempt.share for attempt in self.attempts)
            if spent + (rung.share or 0.0) > self.budget + 1e-9:
                note(f"Note: {described([rung])} would go beyond the budget of {self.budget:g} retrainings.")
                continue
            found = self._attempt(rung)
            if found is not None:
                return found[0], self._provenance(rung, found[0]), found[1]
        raise self._nothing_passed()

    @property
    def retraining(self) -> int:
        """Samples that retraining trains on."""
        epochs = get_method("retrain")(self.recipe.params).params.model_dump()["epochs"]
        return int(epochs) * len(self.session.retain)

    def _check_measurable(self) -> None:
        """Before anything is trained: whether a pass could say something."""
        before = judge_candidate(self._models(self.original), self.policy)
        own = measured(self._metrics(self.original))
        if before.unmeasured:
            check = before.unmeasured[0]
            raise UnlearnError(
                f"the policy {self.policy.name!r} cannot be judged on the validation set: {check}; give a policy "
                "without it, or until=once"
            )
        rule = self.policy.membership
        if rule is None:
            return
        word = own.read_by(rule.attack)
        if word == "undecided" and "undecided" not in rule.accept:
            raise NothingToUnlearn(self._too_few(own))
        if rule.uninformative == "fail" and not tells_apart(word):
            raise NothingToUnlearn(
                f"{self.session.version.uri} does not show on the validation set that it knows these samples "
                f"({_value(own, rule.attack)}: {word}), so that no pass would say anything; a policy with "
                "membership: {uninformative: accept} takes that, and until=once registers without a judgement"
            )

    def _too_few(self, own: Measured) -> str:
        null, sizes = own.values["mia_advantage_null"], (own.counts["n_forget"], own.counts["n_test"])
        needed = samples_needed(null, *sizes)
        enough = "a larger validation set is" if needed is None else f"about {needed} are"
        return (
            f"{sizes[0]} forgotten samples are too few to be judged on {sizes[1]} validation samples (the null of "
            f"mia_advantage reaches {null:.3f}, above {LARGEST_DECIDED_NULL:g}): {enough} needed; batch requests, or "
            "give a policy whose membership accepts undecided"
        )

    def _attempt(self, rung: Rung) -> tuple[Result, Checkpoint] | None:
        """Run and judge one; what it made if it passes."""
        key = self._key(rung)
        known = None if key is None else _read(key)
        if known is not None and not known.passed:
            note(f"Note: tried before this command was killed: {known}")
            self.attempts.append(known)
            return None
        made: tuple[Result, Checkpoint] | None = None
        number = len(self.attempts) + 1
        try:
            with tracking.nested_run(f"attempt {number}: {rung.method}") as run_id:
                made, attempt = self._run(rung, run_id)
        except UnlearnError as error:  # also where the method changed nothing: a result of the climb, not its end
            attempt = self._failed(rung, error)
        self.attempts.append(attempt)
        if key is not None:
            _write(key, attempt)
        print(f"Attempt {number}: {attempt}")
        return made if attempt.passed else None

    def _run(self, rung: Rung, run_id: str) -> tuple[tuple[Result, Checkpoint], Attempt]:
        method = get_method(rung.method)
        mlflow.set_tags({"unlearn.method": rung.method})
        retrains = rung.method == "retrain"
        params = self._params(rung)
        checkpoint = Checkpoint("unlearn", run_id, {**self.session.identity, "augment": self.recipe.augment})
        options = RunOptions(
            self.seed,
            teacher=None if retrains else self.teacher,
            model_factory=self.recipe.model_factory if retrains else None,
            on_epoch=partial(log_epoch, method),
            checkpoint=checkpoint,
        )
        splits = self.recipe.splits(self.session.splits) if retrains else None
        result = self.session.unlearn(rung.method, params, options, splits=splits)
        mlflow.log_params({f"unlearn.params.{key}": value for key, value in result.params.items()})
        log_final(method, result)
        digest = weights_digest(result.model)
        if digest == weights_digest(self.session.module):
            checkpoint.remove()
            raise NothingToUnlearn(nothing_to_unlearn(method, result))
        outputs = evaluate_splits(result.model, self.session.splits, self.session.hardware, only=SELECTION_SPLITS)
        metrics = self._metrics(outputs)
        judgement = judge_candidate(self._models(outputs), self.policy)
        attempt = Attempt(
            method=rung.method,
            params=dict(rung.params),
            passed=judgement.passed,
            outcome="passed" if judgement.passed else judgement.failures,
            metrics=dict(metrics),
            shortfall=judgement.shortfall,
            trained=result.trained,
            share=result.trained / self.retraining,
            seconds=result.seconds,
            run_id=run_id,
            weights_sha256=digest,
        )
        mlflow.log_metrics({**{f"validation.{name}": value for name, value in metrics.items()}, "share": attempt.share})
        mlflow.set_tags({"unlearn.outcome": attempt.outcome, "unlearn.weights_sha256": digest})
        if not judgement.passed:
            checkpoint.remove()
        return (result, checkpoint), attempt

    def _nothing_passed(self) -> UnlearnError:
        ran = [attempt for attempt in self.attempts if attempt.shortfall is not None]
        if not self.attempts:
            return UnlearnError(
                f"budget = {self.budget:g} allows none of the rungs ({described(self.rungs)}): give a larger one, or "
                "cheaper rungs="
            )
        if not ran:
            return UnlearnError(f"none of the rungs can be used here; the first one: {self.attempts[0]}")
        nearest = min(ran, key=lambda attempt: attempt.shortfall or 0.0)
        spent = sum(attempt.share for attempt in ran)
        return NothingToUnlearn(
            f"none of {len(self.attempts)} attempts passed the policy {self.policy.name!r} on the validation set after "
            f"{spent:.2f} of a retraining (budget {self.budget:g}); the nearest was {nearest}; nothing was registered: "
            f"give a larger budget= (retraining is among the rungs from {RETRAIN_FROM:g}), other rungs=, or another "
            "policy="
        )

    def _params(self, rung: Rung) -> dict[str, Any]:
        """With what the method takes of the recorded training."""
        recorded = (
            self.recipe.params if rung.method == "retrain" else get_method(rung.method).recorded(self.recipe.params)
        )
        return {**recorded, **rung.params}

    def _key(self, rung: Rung) -> dict[str, Any] | None:
        """All that an attempt's outcome depends on; None where a part of it cannot be told."""
        session = self.session
        params = get_method(rung.method)(self._params(rung), family=model_family(session.module)).params
        parts = {
            **reuse_key(session, SELECTION_SPLITS),
            "code_sha256": code_digest([rung.method]),
            **({} if self.gold is None else {"gold_sha256": _outputs_digest(self.gold)}),
        }
        if cache.off() or None in parts.values():
            return None
        return {
            **parts,
            **session.identity,
            "source": weights_digest(session.module),
            "method": rung.method,
            "params": params.model_dump(mode="json"),
            "recipe": [dict(self.recipe.params), self.recipe.augment, self.recipe.architecture],
            "seed": self.seed,
            "policy": self.policy.sha256,
            "prefix": self.teacher.prefix,
            "compile": session.hardware.compile,
            "ranks": ranks.world(),
        }

    def _failed(self, rung: Rung, error: UnlearnError) -> Attempt:
        return Attempt(method=rung.method, params=dict(rung.params), passed=False, outcome=str(error))

    def _metrics(self, outputs: Outputs) -> Metrics:
        return as_if_tested(outputs, self.original, gold=self.gold, seed=self.seed)

    def _models(self, outputs: Outputs) -> dict[str, Measured]:
        models = {"original": self.original, "unlearned": outputs}
        if self.gold is not None:
            models["gold"] = self.gold
        return {name: measured(self._metrics(own)) for name, own in models.items()}

    def _provenance(self, rung: Rung, result: Result) -> Provenance:
        rule = (
            f"the first of {len(self.rungs)} settings, cheapest first, that passes the policy {self.policy.name!r} on "
            "the validation set"
        )
        retrains = rung.method == "retrain"
        return Provenance(
            method=rung.method,
            params=dict(result.params),
            seed=self.seed,
            prefix=None if retrains else self.teacher.prefix,
            augment=self.recipe.augment if retrains else None,
            selection=Selection(by="until", rule=rule, attempts=self.attempts),
        )


def show_plan(session: Session, recipe: Recipe, rungs: Sequence[Rung], options: config.Unlearn) -> None:
    """Print what LoTUS, the ladder up to its likely end, and retraining would take: seconds, and in retrainings.

    The likely end is the first rung that disturbs the weights: LoTUS alone seldom passes.

    Args:
        session: the version opened for work.
        recipe: by which retraining would train.
        rungs: of the ladder.
        options: of the command.
    """
    trained_as = get_method("retrain")(recipe.params).params.model_dump()
    retraining = dry_run.method_seconds(session, dry_run.Workload("retrain", trained_as, options.seed, recipe))
    lotus = dry_run.method_seconds(session, dry_run.Workload("lotus", {}, options.seed))
    end = next((n for n, rung in enumerate(rungs) if rung.method not in ("lotus", "retrain")), len(rungs) - 1)
    climbed = rungs[: end + 1]
    seconds = sum(
        rung.share * retraining
        if rung.share is not None
        else dry_run.method_seconds(session, dry_run.Workload(rung.method, rung.params, options.seed))
        for rung in climbed
    )
    rows = [
        ("LoTUS, published setting", lotus),
        (f"until=pass, as far as {described(climbed[-1:])}", seconds),
        ("retraining", retraining),
    ]
    table = Table(title="ways", title_justify="left")
    for name in ("way", "seconds", "of retraining"):
        table.add_column(name, justify="left" if name == "way" else "right")
    for way, taken in rows:
        table.add_row(way, f"{taken:.1f}", f"{taken / retraining:.2f}")
    stdout().print(table)
    mlflow.log_metrics({"plan.lotus": lotus, "plan.until_pass": seconds, "plan.retraining": retraining})


def _value(own: Measured, attack: str) -> str:
    value = own.values.get(attack)
    return f"{attack} {value:.3f}" if value is not None else f"{attack} was not measured"


def _outputs_digest(outputs: Outputs) -> str:
    digest = hashlib.sha256()
    for name in SELECTION_SPLITS:
        digest.update(outputs[name].predictions.tobytes() + outputs[name].entropies.tobytes())
    return digest.hexdigest()


def _read(key: Mapping[str, Any]) -> Attempt | None:
    found = cache.read(ATTEMPTS, key)
    return None if found is None else Attempt.model_validate_json(found["attempt"].tobytes())


def _write(key: Mapping[str, Any], attempt: Attempt) -> None:
    content = np.frombuffer(attempt.model_dump_json().encode(), np.uint8)
    cache.write(ATTEMPTS, key, {"attempt": content})
