"""``unlearn --plan true``: the ways to fulfil a request, what each takes and may claim, and which one to go."""

import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, get_args

import mlflow
from pydantic import Field
from rich.table import Table

from mlflow_unlearn import config
from mlflow_unlearn.auditing.references import fast_epochs
from mlflow_unlearn.console import counted, say, say_command
from mlflow_unlearn.data.splits import labels_of
from mlflow_unlearn.engine.shards import ShardedPast
from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.evidence.record import FrozenRecord
from mlflow_unlearn.methods.retrain import RetrainParams
from mlflow_unlearn.report.fit import show_table
from mlflow_unlearn.session import dry_run
from mlflow_unlearn.session.ensemble import sharded_past
from mlflow_unlearn.session.recipe import Recipe
from mlflow_unlearn.session.session import Session
from mlflow_unlearn.spelling import spelled
from mlflow_unlearn.tuning.going_back import Rewinding, rewinding, shards_back
from mlflow_unlearn.tuning.rungs import Rung, described

_BACK: Mapping[str, Callable[[Session, Mapping[str, Any]], Any]] = {"rewind": rewinding, "exact": shards_back}
"""What reads all that a method goes back to."""
Claim = Literal["hidden", "approximate", "unseen", "exact"]
"""What may be said of the samples afterwards, the weakest first."""
Kind = Literal["lotus", "until_pass", "rewind", "shards", "fast_retraining", "retraining"]
TIE = 1.1
"""Ways that take up to so many times the cheapest's seconds count as equally cheap: a calibration is no closer."""
_HOW = (
    "method",
    "params",
    "preset",
    "until",
    "policy",
    "rungs",
    "budget",
    "prefix",
    "claim",
    "plan",
    "format",
    "debug",
)
"""Options that say how to unlearn and how to answer, and not what."""


class Way(FrozenRecord):
    """One way to fulfil a request on a version."""

    kind: Kind
    name: str = Field(description="For people.")
    command: str | None = Field(description="Ready to paste; null where the way is not possible here.")
    seconds: float | None = Field(description="Of the training alone; null where the way is not possible here.")
    of_retraining: float | None = Field(description="The same as a fraction of retraining by the recorded recipe.")
    claim: Claim = Field(
        description="hidden: the outputs are on average like those of unseen samples; approximate: may pass a review "
        "and an audit; unseen: trained without the samples, but not as the version was; exact: as if never trained on "
        "them."
    )
    why: str = Field(description="What may be claimed and what not; or what would make the way possible.")

    @property
    def retrains(self) -> bool:
        """Whether it trains on the whole retain set from random weights."""
        return self.kind in ("fast_retraining", "retraining")

    def meets(self, claim: Claim) -> bool:
        """Whether it is possible and may claim so much."""
        return self.seconds is not None and _strength(self.claim) >= _strength(claim)


def _strength(claim: Claim) -> int:
    return get_args(Claim).index(claim)


def _seconds(way: Way) -> float:
    return float("inf") if way.seconds is None else way.seconds


def recommend(ways: Sequence[Way], claim: Claim) -> Way | None:
    """The cheapest way that meets a claim; of equally cheap ones, that with the strongest. None where none meets it."""
    meeting = [way for way in ways if way.meets(claim)]
    bound = TIE * min(map(_seconds, meeting), default=0.0)
    equal = [way for way in meeting if _seconds(way) <= bound]
    return max(equal, key=lambda way: (_strength(way.claim), -_seconds(way)), default=None)


def on_retraining(ways: Sequence[Way], claim: Claim) -> str | None:
    """A sentence where unlearning does not pay: retraining is cheaper, or alone meets the claim; else None."""
    retraining, unlearning = (
        min((_seconds(way) for way in ways if way.meets(claim) and way.retrains == retrains), default=None)
        for retrains in (True, False)
    )
    if retraining is None:
        return None
    if unlearning is None:
        return f"Only retraining meets {spelled('claim', claim)} here."
    return "Retraining is cheaper than unlearning here." if retraining < unlearning else None


@dataclass
class Comparison:
    """Measures LoTUS and retraining, and computes the other ways from the samples that they train on.

    Neglected is what a way does once (reading checkpoints, building a model), that the last batches of shards are
    smaller, and that a frozen backbone needs no gradient.

    Attributes:
        session: the version opened for work.
        options: of the command.
        recipe: by which retraining would train.
        known: seconds of methods with their own settings, as far as they are measured already.
    """

    session: Session
    options: config.Unlearn
    recipe: Recipe
    known: dict[str, float]

    def ways(self, rungs: Sequence[Rung]) -> list[Way]:
        """All of them, also those that are not possible here; ``rungs`` are the ladder's."""
        return [self._lotus(), self._ladder(rungs), self._rewind(), self._shards(), self._fast(), self._retraining()]

    def _lotus(self) -> Way:
        why = "the outputs are on average like those of unseen samples; it seldom passes a review"
        return self._way("lotus", "LoTUS, published setting", "hidden", why, self._share("lotus"))

    def _ladder(self, rungs: Sequence[Rung]) -> Way:
        """Up to its likely end, the first rung that disturbs the weights: LoTUS alone seldom passes."""
        options = self.options
        if not rungs:
            why = f"{spelled('budget', f'{options.budget:g}')} allows none of the rungs: give a larger one"
            return _impossible("until_pass", "until pass", "approximate", why)
        refused = [self._refused(rung) for rung in rungs]
        if all(refused):
            return _impossible("until_pass", "until pass", "approximate", f"no rung can be used: {refused[0]}")
        rungs = [rung for rung, reason in zip(rungs, refused, strict=True) if reason is None]
        end = next((n for n, rung in enumerate(rungs) if rung.method not in ("lotus", "retrain")), len(rungs) - 1)
        last = rungs[end]
        share = sum(
            self._share(rung.method, rung.params) if rung.share is None else rung.share for rung in rungs[: end + 1]
        )
        claim: Claim = "approximate"
        why = f"what passes with {described([last])} may pass a review and an audit: evidence, no more"
        if last.method in ("lotus", "retrain"):
            same = self._lotus() if last.method == "lotus" else self._retraining()
            claim, why = same.claim, same.why
        given = {name: getattr(options, name) for name in ("policy", "rungs", "budget")}
        return self._way("until_pass", f"until pass, up to {last.method}", claim, why, share, until="pass", **given)

    def _refused(self, rung: Rung) -> str | None:
        """Why a rung cannot go back on the version's training, or train its shards anew."""
        if rung.method == "retrain":
            return self._retraining_refused
        try:
            if rung.method in _BACK:
                _BACK[rung.method](self.session, rung.params)
        except UnlearnError as error:
            return str(error)
        return None

    def _rewind(self) -> Way:
        found = self._rewinding
        if isinstance(found, UnlearnError):
            return _impossible("rewind", "rewind", "approximate", str(found))
        claim: Claim = "exact" if found.exact else "approximate"
        return self._way("rewind", "rewind", claim, found.why, found.share, method="rewind", processes=1)

    def _shards(self) -> Way:
        name, past = "shards, trained again", self._shards_back
        if isinstance(past, UnlearnError):
            return _impossible("shards", name, "exact", str(past))
        own, anew = past.cost()
        why = (
            f"{len(past.begin())} of {past.shards.shards} sub-models are trained again from before they saw the "
            f"samples, in {own.steps} of {anew.steps} steps"
        )
        if past.shards.prefix is not None:
            why += f"; the frozen layers before {past.shards.prefix} stay as they are"
        return self._way("shards", name, "exact", why, self._share("exact"), method="exact")

    def _fast(self) -> Way:
        name, epochs = "retraining, fast recipe", fast_epochs(self._epochs)
        if self._retraining_refused is not None:
            return _impossible("fast_retraining", name, "unseen", self._retraining_refused)
        if epochs == self._epochs:
            return _impossible(
                "fast_retraining", name, "unseen", f"the recipe has no more than {counted(epochs, 'epoch')}"
            )
        why = f"trained without the samples, in {counted(epochs, 'epoch')}, not {self._epochs}: the accuracy is open"
        share, params = epochs / self._epochs, json.dumps({"epochs": epochs})
        return self._way("fast_retraining", name, "unseen", why, share, method="retrain", params=params)

    def _retraining(self) -> Way:
        recipe, name = self.recipe, "retraining, recorded recipe"
        claim: Claim = "unseen"
        if not recipe.params:
            name, why = "retraining, default recipe", "trained without the samples; the version records no recipe"
        elif recipe.origin is not None:
            why = f"trained without the samples in one go, where the version was trained on from {recipe.origin.uri}"
        elif self._ensemble and self._anew is None:
            why = "trained without the samples, all sub-models as one: another method has changed the frozen layers"
        else:
            claim, why = "exact", "trained as the version was, without the samples"
        if self._retraining_refused is not None:
            return _impossible("retraining", name, claim, self._retraining_refused)
        return self._way("retraining", name, claim, why, 1.0, method="retrain")

    @cached_property
    def _rewinding(self) -> Rewinding | UnlearnError:
        """What `rewind` goes back to, or why it cannot."""
        try:
            return rewinding(self.session)
        except UnlearnError as error:
            return error

    @cached_property
    def _shards_back(self) -> ShardedPast | UnlearnError:
        """What `exact` trains again, or why it cannot."""
        try:
            return shards_back(self.session)
        except UnlearnError as error:
            return error

    @cached_property
    def _retraining_refused(self) -> str | None:
        """Why an ensemble cannot be trained anew by shards."""
        try:
            if self._anew is not None:
                self._anew.check(labels_of(self.session.splits.retain))
        except UnlearnError as error:
            return str(error)
        return None

    @cached_property
    def _anew(self) -> ShardedPast | None:
        """Of an ensemble the shards that retraining trains, whatever the version keeps of its training."""
        return sharded_past(self.session, anew=True)

    @property
    def _ensemble(self) -> bool:
        record = self.session.version.record
        return record is not None and record.shards is not None

    @cached_property
    def _by_shards(self) -> Mapping[str, float]:
        """Of an ensemble the seconds of `exact` and `retrain`, from one calibration: its noise changes both alike."""
        back = self._shards_back
        past = self._anew if isinstance(back, UnlearnError) else back
        if past is None:
            return {}
        found = dict(zip(("exact", "retrain"), dry_run.sharded_seconds(self.session, past), strict=True))
        known = [self.known[method] / seconds for method, seconds in found.items() if method in self.known and seconds]
        return {method: seconds * (known[0] if known else 1.0) for method, seconds in found.items()}

    @cached_property
    def _epochs(self) -> int:
        return RetrainParams.parse(self.recipe.params, method="retrain").epochs

    def _share(self, method: str, params: Mapping[str, Any] | None = None) -> float:
        """What a method takes, in retrainings."""
        return self._measured(method, params or {}) / self._measured("retrain", {})

    def _measured(self, method: str, params: Mapping[str, Any]) -> float:
        """Seconds of a method."""
        if not params and method in self.known:
            return self.known[method]
        if not params and method in ("exact", "retrain") and method in self._by_shards:
            return self._by_shards[method]
        own = self.recipe if method == "retrain" else None
        given = {**own.params, **params} if own is not None else params
        seconds = dry_run.method_seconds(self.session, dry_run.Workload(method, given, self.options.seed, own))
        if not params:
            self.known[method] = seconds
        return seconds

    def _way(self, kind: Kind, name: str, claim: Claim, why: str, share: float, **options: Any) -> Way:
        """One that is possible.

        Args:
            kind: which one.
            name: in the table.
            claim: what may be claimed.
            why: in words.
            share: of retraining's seconds.
            options: of the command.
        """
        seconds = share * self._measured("retrain", {})
        command = self._command(**options)
        return Way(kind=kind, name=name, command=command, seconds=seconds, of_retraining=share, claim=claim, why=why)

    def _command(self, **options: Any) -> str:
        """This command, with other options of how to unlearn."""
        fields = config.Unlearn.model_fields
        own = {name: fields[name].default for name in _HOW}
        changed = self.options.model_copy(update={**own, "model_uri": self.session.version.uri, **options})
        return shlex.join(("mlflow-unlearn", "unlearn", *config.as_arguments(changed)))


def _impossible(kind: Kind, name: str, claim: Claim, why: str) -> Way:
    return Way(kind=kind, name=name, command=None, seconds=None, of_retraining=None, claim=claim, why=why)


def show(ways: Sequence[Way], claim: Claim) -> Way | None:
    """Print the ways, log their seconds, and return the one that is recommended; None where none meets ``claim``."""
    table = Table(title="ways")
    for column in ("way", "seconds", "of retraining", "may be claimed"):
        table.add_column(column, justify="right" if column in ("seconds", "of retraining") else "left")
    for way in ways:
        if way.seconds is not None and way.of_retraining is not None:
            table.add_row(way.name, f"{way.seconds:.1f}", f"{way.of_retraining:.2f}", way.claim)
            mlflow.log_metric(f"plan.{way.kind}", way.seconds)
    show_table(table)
    for way in ways:
        if way.seconds is None:
            say(f"Not possible here: {way.name} ({way.why}).")
    if (sentence := on_retraining(ways, claim)) is not None:
        say(sentence)
    chosen = recommend(ways, claim)
    if chosen is None:
        say(f"No way here meets {spelled('claim', claim)}.")
        return None
    taken = f"{chosen.seconds:.1f} s, {chosen.of_retraining:.2f} of retraining"
    say(f"Recommended for {spelled('claim', claim)}: {chosen.name} ({taken}):")
    say_command(str(chosen.command))
    say(f"Then the claim is {chosen.claim}: {chosen.why}.")
    return chosen
