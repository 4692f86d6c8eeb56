"""``unlearn --until pass``: one setting after the other, cheapest first, until a policy is content.

It judges on the validation set; the test set is read once, for the setting that is chosen. Looking at several costs
nothing there, and little on the validation set, where a candidate has to stay below a lower quantile of the null
(`mlflow_unlearn.evidence.candidate`).
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import mlflow
import numpy as np

from mlflow_unlearn import cache
from mlflow_unlearn.api import Result
from mlflow_unlearn.console import note, say
from mlflow_unlearn.distributed import ranks
from mlflow_unlearn.engine.architectures import model_family, weights_digest
from mlflow_unlearn.engine.checkpoint import Checkpoint
from mlflow_unlearn.engine.predictions import evaluate_splits
from mlflow_unlearn.engine.teacher import Teacher
from mlflow_unlearn.errors import NothingToUnlearn, UnlearnError
from mlflow_unlearn.evidence.candidate import judge_candidate
from mlflow_unlearn.evidence.policy import Policy
from mlflow_unlearn.evidence.provenance import Attempt, Provenance, Selection
from mlflow_unlearn.evidence.record import Measured
from mlflow_unlearn.governance.checkpoints import remove_of_dead
from mlflow_unlearn.governance.evidence_builder import measured
from mlflow_unlearn.governance.setting import Setting
from mlflow_unlearn.methods import get_method
from mlflow_unlearn.metrics.outputs import Outputs
from mlflow_unlearn.metrics.reading import LARGEST_DECIDED_NULL, samples_needed, tells_apart
from mlflow_unlearn.metrics.suite import Metrics
from mlflow_unlearn.registry import tracking
from mlflow_unlearn.registry.checkpoints import delete_checkpoints
from mlflow_unlearn.session.ensemble import StageCheckpoints
from mlflow_unlearn.session.recipe import Recipe
from mlflow_unlearn.session.reuse import code_digest, reuse_key
from mlflow_unlearn.session.session import Session
from mlflow_unlearn.spelling import spelled
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

    def climb(self) -> tuple[Result, Provenance, Checkpoint | StageCheckpoints]:
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
                note(f"Note: {described([rung])} would go beyond the budget of {self.budget:g} of retraining.")
                continue
            found = self._attempt(rung)
            if found is not None:
                return found
        raise self._nothing_passed()

    @cached_property
    def _retraining(self) -> int:
        """Samples that retraining trains on."""
        epochs = get_method("retrain")(self.recipe.params).params.model_dump()["epochs"]
        return int(epochs) * len(self.session.retain)

    def _check_measurable(self) -> None:
        """Before anything is trained: whether a pass could say something."""
        own = self._references["original"]
        before = judge_candidate({**self._references, "unlearned": own}, self.policy)
        if before.unmeasured:
            check = before.unmeasured[0]
            raise UnlearnError(
                f"the policy {self.policy.name!r} cannot be judged on the validation set: {check}; give a policy "
                f"without it, or {spelled('until', 'once')}"
            )
        rule = self.policy.membership
        if rule is None:
            return
        word = own.read_by(rule.attack)
        if word == "undecided" and "undecided" not in rule.accept and rule.attack == "mia_advantage":
            raise NothingToUnlearn(self._too_few(own))
        if rule.uninformative == "fail" and not tells_apart(word):
            raise NothingToUnlearn(
                f"{self.session.version.uri} does not show on the validation set that it knows these samples "
                f"({_value(own, rule.attack)}: {word}), so that no pass would say anything; a policy with membership: "
                f"{{uninformative: accept}} takes that, and {spelled('until', 'once')} registers without a judgement"
            )

    def _too_few(self, own: Measured) -> str:
        null, sizes = own.values["mia_advantage_null"], (own.counts["n_forget"], own.counts["n_test"])
        needed = samples_needed(null, *sizes)
        enough = "a larger validation set would do" if needed is None else f"about {needed} would do"
        return (
            f"{sizes[0]} forgotten samples are too few to be judged on {sizes[1]} validation samples (the null of "
            f"mia_advantage reaches {null:.3f}, above {LARGEST_DECIDED_NULL:g}): {enough}; batch requests, or "
            "give a policy whose membership accepts undecided"
        )

    def _attempt(self, rung: Rung) -> tuple[Result, Provenance, Checkpoint | StageCheckpoints] | None:
        """Run and judge one; what it made if it passes."""
        key = self._key(rung)
        known = None if key is None else _read(key)
        if known is not None and not known.passed:
            note(f"Note: tried before: {known}")
            self.attempts.append(known)
            return None
        number, retrains = len(self.attempts) + 1, rung.method == "retrain"
        setting = Setting(
            rung.method,
            self._params(rung),
            self.seed,
            teacher=None if retrains else self.teacher,
            recipe=self.recipe if retrains else None,
        )
        made: tuple[Result, Checkpoint | StageCheckpoints] | None = None
        attempt = Attempt(method=rung.method, params=dict(rung.params), passed=False, outcome="")
        try:
            with tracking.nested_run(f"attempt {number}: {rung.method}") as run_id:
                attempt = attempt.model_copy(update={"run_id": run_id})
                mlflow.set_tag("unlearn.method", rung.method)
                made = setting.run(self.session, run_id)
                attempt = self._judged(attempt, made[0])
        except UnlearnError as error:  # also where the method changed nothing: a result of the climb, not its end
            attempt = attempt.model_copy(update={"outcome": str(error)})
        self.attempts.append(attempt)
        # What failed may have failed by the data or the machine, which can be mended.
        if key is not None and attempt.shortfall is not None:
            _write(key, attempt)
        say(f"Attempt {number}: {attempt}")
        if made is None:
            return None
        if not attempt.passed:
            made[1].remove()
            if made[0].kept:
                delete_checkpoints(run_id)
                remove_of_dead(self.session.client, made[0].kept, stays=False)
            return None
        return made[0], setting.provenance(made[0], self._selection()), made[1]

    def _judged(self, attempt: Attempt, result: Result) -> Attempt:
        """The attempt with what the policy says of its result on the validation set, which its run records."""
        session = self.session
        metrics = self._metrics(evaluate_splits(result.model, session.splits, session.hardware, only=SELECTION_SPLITS))
        judgement = judge_candidate({**self._references, "unlearned": measured(metrics)}, self.policy)
        judged = attempt.model_copy(
            update={
                "passed": judgement.passed,
                "outcome": "passed" if judgement.passed else judgement.failures,
                "metrics": dict(metrics),
                "shortfall": judgement.shortfall,
                "trained": result.trained,
                "share": result.trained / self._retraining,
                "seconds": result.seconds,
                "weights_sha256": weights_digest(result.model),
            }
        )
        mlflow.log_metrics({**{f"validation.{name}": value for name, value in metrics.items()}, "share": judged.share})
        mlflow.set_tags({"unlearn.outcome": judged.outcome, "unlearn.weights_sha256": str(judged.weights_sha256)})
        return judged

    def _nothing_passed(self) -> UnlearnError:
        ran = [attempt for attempt in self.attempts if attempt.shortfall is not None]
        if not self.attempts:
            return UnlearnError(
                f"{spelled('budget', f'{self.budget:g}')} allows none of the rungs ({described(self.rungs)}): give a "
                f"larger one, or cheaper {spelled('rungs')}"
            )
        if not ran:
            return UnlearnError(f"none of the rungs can be used here; the first one: {self.attempts[0]}")
        nearest = min(ran, key=lambda attempt: attempt.shortfall or 0.0)
        spent = sum(attempt.share for attempt in ran)
        tried = len(self.attempts)
        none = "the one attempt did not pass" if tried == 1 else f"none of {tried} attempts passed"
        return NothingToUnlearn(
            f"{none} the policy {self.policy.name!r} on the validation set after {spent:.2f} of a retraining (budget "
            f"{self.budget:g}); the nearest was {nearest}; nothing was registered: give a larger {spelled('budget')} "
            f"(retraining is among the rungs from {RETRAIN_FROM:g}), other {spelled('rungs')}, or another "
            f"{spelled('policy')}"
        )

    def _params(self, rung: Rung) -> dict[str, Any]:
        """With what the method takes of the recorded training."""
        params, method = self.recipe.params, get_method(rung.method)
        recorded = params if rung.method == "retrain" else method.recorded(params, model_family(self.session.module))
        return {**recorded, **rung.params}

    def _key(self, rung: Rung) -> dict[str, Any] | None:
        """All that an attempt's outcome depends on; None where a part of it cannot be told."""
        params = get_method(rung.method)(self._params(rung), family=model_family(self.session.module)).params
        key = {
            **self._common_key,
            "code_sha256": code_digest([rung.method]),
            "method": rung.method,
            "params": params.model_dump(mode="json"),
        }
        return None if cache.off() or None in key.values() else key

    def _metrics(self, outputs: Outputs) -> Metrics:
        return as_if_tested(outputs, self.original, gold=self.gold, seed=self.seed)

    @cached_property
    def _references(self) -> dict[str, Measured]:
        """Metrics of the models that every attempt is compared with."""
        models = {"original": self.original, **({} if self.gold is None else {"gold": self.gold})}
        return {name: measured(self._metrics(outputs)) for name, outputs in models.items()}

    @cached_property
    def _common_key(self) -> dict[str, Any]:
        """What the outcomes of all attempts depend on; a part that cannot be told is None."""
        session = self.session
        return {
            **reuse_key(session, SELECTION_SPLITS),
            **session.identity,
            "gold_sha256": "" if self.gold is None else _outputs_digest(self.gold),
            "source": weights_digest(session.module),
            "recipe": [dict(self.recipe.params), self.recipe.augment, self.recipe.architecture],
            "seed": self.seed,
            "policy": self.policy.sha256,
            "prefix": self.teacher.prefix or "",
            "compile": session.hardware.compile,
            "ranks": ranks.world(),
        }

    def _selection(self) -> Selection:
        rule = (
            f"the first of {len(self.rungs)} settings, in their order, that passes the policy {self.policy.name!r} on "
            "the validation set"
        )
        return Selection(by="until", rule=rule, attempts=self.attempts)


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
