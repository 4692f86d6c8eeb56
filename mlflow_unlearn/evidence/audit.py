"""The record of an audit: what each attack says of each model, and the verdict that follows from it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from pydantic import Field, model_validator

from mlflow_unlearn.evidence.record import FrozenRecord, Person
from mlflow_unlearn.metrics.attacks.detection import Detection, holm
from mlflow_unlearn.metrics.attacks.suite import AUDITED, CHEAT, GOLD, ORIGINAL

AUDIT_FILE = "evidence/audit.json"
REFERENCE_FILE = "reference.npz"
"""Outputs of a model that an audit has trained, in its run; its weights are not kept."""
REFERENCE_TAG = "unlearn.reference.source_sha256"
"""Of its run: the weights of the version whose training samples it knows."""
CANARIES, RELEARNING = "canaries", "relearning"
LEVEL = 0.05
FLAT = 0.01
"""Of the width of the original's log odds, below which those of a version tell nothing of single samples."""
CENSORED = 0.5
"""Of the parts: where more of them are not learned again in time, relearning says nothing."""
Decision = Literal["told apart", "not told apart", "not decided"]


class TailRecord(FrozenRecord):
    """True positive rate at 1 % false alarms, with Clopper's and Pearson's interval."""

    tpr: float
    low: float
    high: float


class DetectionRecord(FrozenRecord):
    """What one attack says of one model."""

    n_forget: int
    n_unseen: int
    auc: float
    auc_low: float
    auc_high: float
    advantage: float
    p_value: float = Field(ge=0, le=1, description="Of this attack alone, by permutation within classes.")
    corrected: float = Field(ge=0, le=1, description="By Holm, for the attacks on this model.")
    half_width: float = Field(1.0, ge=0, description="Of the shortest interval that holds half of the scores.")
    tail: TailRecord | None = Field(description="None: too few unseen samples to resolve 1 % false alarms.")

    @property
    def flagged(self) -> bool:
        """Whether it tells the samples apart, in the light of the other attacks on the model."""
        return self.corrected <= LEVEL

    @property
    def side(self) -> str:
        """How the forgotten samples stand out."""
        if self.auc_low > 0.5:
            return "residual"
        return "over-forgotten" if self.auc_high < 0.5 else "spread"


class ShareRecord(FrozenRecord):
    """Share remembered, with what it is made from."""

    value: float
    low: float
    high: float
    tpr: float
    fpr: float
    golds: int


class SampleRecord(FrozenRecord):
    """How far one sample lies from never seen (0) to trained on (1)."""

    id: str = Field(description="Hashed where the request hides it.")
    remembered: float


class CanaryRecord(FrozenRecord):
    """The exact test on twins, of which a coin had one trained."""

    pairs: int = Field(description="Whose trained twin was forgotten, ties left out.")
    larger: int = Field(description="In how many the trained twin has the larger log odds.")
    p_value: float = Field(ge=0, le=1, description="Two-sided, exact.")
    advantage: float = Field(description="2 p − 1 for the fraction p of these.")
    bound: float = Field(description="The largest advantage that the pairs leave possible, with 95 % confidence.")
    e_value: float = Field(description="Evidence against fair coins; those of a chain of requests multiply.")

    @property
    def residual(self) -> bool:
        """Whether it is the trained twins that the model is surer of."""
        return self.advantage > 0

    @property
    def words(self) -> str:
        """What they say, in a clause."""
        return f"{self.larger} of {self.pairs} trained twins have the larger log odds, p {self.p_value:.3g}"


class RelearnRecord(FrozenRecord):
    """How fast forgotten samples are learned again, beside as many unseen ones."""

    forget: list[float] = Field(description="Epochs by part of the forget set, until it is known as the original does.")
    unseen: list[float] = Field(description="By part of the unseen set.")
    ratio: float = Field(description="Of these, in the geometric mean: below 1 forgotten samples are learned faster.")
    p_value: float = Field(ge=0, le=1, description="Two-sided, over all ways to draw the parts.")
    censored: float = Field(description="Share of the parts that had not got there when the audit stopped.")

    @property
    def residual(self) -> bool:
        """Whether forgotten samples are learned faster."""
        return self.ratio < 1

    @property
    def words(self) -> str:
        """What it says, in a clause."""
        how = "faster" if self.residual else "slower"
        return (
            f"forgotten samples are learned again {how} than unseen ones, ratio {self.ratio:.2f}, p {self.p_value:.3f}"
        )


class ExposedRecord(FrozenRecord):
    """A retained sample that the model is surer of than before."""

    id: str = Field(description="Hashed where the request hides it.")
    rise: float = Field(description="Of its log odds over the original's.")


class RetainedRecord(FrozenRecord):
    """What becomes of those who stay; no part of the verdict, since they are members."""

    samples: int = Field(description="Of the retain set, drawn at random.")
    attacks: dict[str, DetectionRecord] = Field(description="By model: the margin, against unseen samples.")
    rise_p95: float = Field(description="95 % quantile of the log odds' rise over the original's.")
    worst: list[ExposedRecord]


class ManyRecord(FrozenRecord):
    """What many models made in the same way give away: about their method, and no part of the verdict."""

    unlearned: int = Field(description="Models, the audited one among them.")
    golds: int
    u_lira: float = Field(description="AUC: 0.5 where unlearned and retrained models are alike on a forgotten sample.")
    u_lira_low: float = Field(description="What it is in 95 % of the ways to call as many of all models unlearned.")
    u_lira_high: float
    klom_p95: float = Field(description="95 % quantile over the forgotten samples, nats.")
    klom_p95_null: float = Field(description="Below which it is in 95 % of these ways.")


class WithinRecord(FrozenRecord):
    """A metric of the audited model, and where one more retrained model would lie with a chance of 95 %."""

    value: float
    low: float
    high: float

    @property
    def inside(self) -> bool:
        """Whether it could be a retrained model's."""
        return self.low <= self.value <= self.high


class AuditFigures(FrozenRecord):
    """What the report draws."""

    attack: str = Field(description="Of the curves: the one that tells the original apart best.")
    curves: dict[str, list[float]] = Field(description="By model, true positive rates at the false alarms of `rates`.")
    rates: list[float]
    remembered: dict[str, list[float]] = Field(
        description="By model, shares of the forget set by how far a sample is remembered, in equal bins from 0 to 1."
    )


class ReferenceRecord(FrozenRecord):
    """A model that an attack is calibrated by."""

    uri: str
    sha256: str = Field(description="Of its weights, or of the file of its outputs.")
    kind: Literal["gold", "reference"]
    epochs: int | None = Field(None, description="Of a reference's training.")


class AuditRecord(FrozenRecord):
    """One audit of one version."""

    schema_version: Literal[1] = 1
    run_id: str
    at: str
    by: Person
    uri: str
    weights_sha256: str
    original_uri: str
    original_sha256: str = Field(description="Of its weights.")
    transform: str
    forget_sha256: str
    data_sha256: str
    seed: int = Field(description="By the weights and the forget set: nobody chooses it.")
    tier: int = Field(description="0: no retrained model; 1: one that left each sample out; 2: two or more.")
    references: list[ReferenceRecord]
    unusable: dict[str, str] = Field(description="Models that were named and are no reference, and why.")
    attacks: dict[str, dict[str, DetectionRecord]] = Field(description="By model, then by attack.")
    not_measured: dict[str, str] = Field(description="By attack.")
    share_remembered: ShareRecord | None
    share_missing: str = Field(description="Why there is none; empty where there is one.")
    completeness: float | None = Field(description="1 − the mean of remembered, by IAM; None without a reference.")
    remembered_p95: float | None
    canaries: dict[str, CanaryRecord] = Field(description="By model, audited and original; empty without canaries.")
    many: ManyRecord | None = Field(None, description="With 16 models of each kind.")
    retained: RetainedRecord | None = Field(None, description="None: no class of them is in the unseen set.")
    relearning: dict[str, RelearnRecord] = Field(
        default_factory=dict, description="By model that could be measured; empty if not asked for."
    )
    within_golds: dict[str, WithinRecord] = Field(description="By metric; empty with fewer than four golds.")
    worst: list[SampleRecord]
    drawn: AuditFigures
    two_versions_auc: float | None = Field(
        description="What someone reads who has both versions: of the difference of log odds; no part of the verdict."
    )
    seconds: float

    @model_validator(mode="after")
    def _of_two_models(self) -> "AuditRecord":
        """What decides is there."""
        if not {AUDITED, ORIGINAL} <= self.attacks.keys():
            raise ValueError("an audit is of the audited version and of the original")
        return self

    @property
    def golds(self) -> list[str]:
        """Names of the held-back gold standards among the models."""
        return [name for name in self.attacks if name.startswith(GOLD)]

    @property
    def strength(self) -> tuple[int, int, int]:
        """By which one audit counts before another: tier, what was asked for besides, models that calibrate it."""
        besides = (bool(self.relearning) or RELEARNING in self.not_measured) + (CHEAT in self.attacks)
        return self.tier, besides, len(self.references)

    @property
    def decision(self) -> tuple[Decision, str]:
        """The verdict, and why."""
        return decide(self.attacks, self.canaries, self.relearning, self.not_measured.get(RELEARNING, ""))

    def to_json(self) -> str:
        """What is stored."""
        return self.model_dump_json(indent=1) + "\n"


def recorded(found: Mapping[str, Detection], others: Sequence[float] = ()) -> dict[str, DetectionRecord]:
    """The attacks on one model, their chances corrected for their number.

    Args:
        found: by attack.
        others: chances of further tests of the model, on canaries and by relearning, which count as well.
    """
    corrected = holm([*(one.p_value for one in found.values()), *others])[: len(found)]
    return {
        name: DetectionRecord(
            **{key: value for key, value in vars(one).items() if key not in ("tail", "curve")},
            corrected=p,
            tail=None if one.tail is None else TailRecord(**one.tail._asdict()),
        )
        for (name, one), p in zip(found.items(), corrected, strict=True)
    }


Attacks = Mapping[str, Mapping[str, DetectionRecord]]
"""By model (``audited``, ``original``, ``gold 1``, …), then by attack."""


def decide(
    attacks: Attacks,
    canaries: Mapping[str, CanaryRecord] | None = None,
    relearning: Mapping[str, RelearnRecord] | None = None,
    unmeasured: str = "",
) -> tuple[Decision, str]:
    """The verdict of an audit, never a pass without power or with a control that fails.

    The original must be told apart, else the attacks have no power here, and so must the known cheat, where it was
    asked for; no held-back gold standard may be, else they see something else than training. The chances of all golds
    and attacks are corrected together. Where the log odds were made flat, so that half of the samples have nearly the
    same ones, attacks on single samples are blind. What was asked for and could not be measured is no pass either.

    Args:
        attacks: those on which no held-back gold standard was tried, for want of another one to calibrate by, are
            named.
        canaries: by model: a test that needs no control, since coins were fair.
        relearning: by model.
        unmeasured: what was asked for and could not be measured on the audited model, and why.
    """
    tests = _Tests(attacks, {CANARIES: canaries or {}, RELEARNING: relearning or {}})
    if not tests.powerful():
        return "not decided", "the original shows no memory of these samples to these attacks"
    if CHEAT in tests.models and not tests.flagged(CHEAT):
        return (
            "not decided",
            "a known cheat, the original with a new last layer, is told apart by nothing that was tried",
        )
    golds = [name for name in tests.models if name.startswith(GOLD)]
    controls = [(name, test, tested.p_value) for name in golds for test, tested in tests.of(name).items()]
    corrected = holm([p for _, _, p in controls])
    failing = [f"{name} by {test}" for (name, test, _), p in zip(controls, corrected, strict=True) if p <= LEVEL]
    # With many golds no chance of a permutation is small enough for all together: then their number tells.
    alarms = [name for name in golds if tests.flagged(name)]
    if failing or (alarms and _chance_of_alarms(len(alarms), len(golds)) <= LEVEL):
        failing = failing or alarms
        return "not decided", (
            f"a retrained model is told apart as well ({', '.join(failing)}): the forgotten samples differ from the "
            "unseen ones by more than training"
        )
    own = tests.of(AUDITED)
    without = [test for test in own if test != CANARIES and test not in {each for _, each, _ in controls}]
    control = f"; no gold control of {', '.join(without)}" if without else ""
    found = tests.flagged(AUDITED)
    if found:
        return "told apart", f"{'; '.join(f'{test}: {own[test].words}' for test in found)}{control}"
    if (flat := _flat(attacks)) is not None:
        return "not decided", flat
    if unmeasured:
        return "not decided", f"relearning was asked for and not measured: {unmeasured}"
    return "not told apart", f"by none of {', '.join(own)}{control}"


class _Tested(NamedTuple):
    p_value: float
    residual: bool
    words: str


@dataclass(frozen=True)
class _Tests:
    """Attacks and further tests of every model, as the decision reads them."""

    attacks: Attacks
    others: Mapping[str, Mapping[str, CanaryRecord] | Mapping[str, RelearnRecord]]

    @property
    def models(self) -> list[str]:
        return list(self.attacks)

    def of(self, model: str) -> dict[str, _Tested]:
        found = {
            name: _Tested(one.p_value, one.auc > 0.5, f"{one.side}, AUC {one.auc:.3f}, p {one.corrected:.3f}")
            for name, one in self.attacks[model].items()
        }
        for test, by_model in self.others.items():
            other = by_model.get(model)
            if other is not None and not (isinstance(other, RelearnRecord) and other.censored > CENSORED):
                found[test] = _Tested(other.p_value, other.residual, other.words)
        return found

    def flagged(self, model: str) -> list[str]:
        """What tells a model apart, in the light of all that was tried on it."""
        tested = self.of(model)
        corrected = holm([one.p_value for one in tested.values()])
        return [name for name, p in zip(tested, corrected, strict=True) if p <= LEVEL]

    def powerful(self) -> bool:
        """Whether something that was tried on the audited model as well sees the original's memory."""
        tried, original = self.of(AUDITED), self.of(ORIGINAL)
        return any(original[name].residual for name in self.flagged(ORIGINAL) if name in tried)


def _flat(attacks: Attacks) -> str | None:
    """Why attacks on single samples are blind; None where they are not."""
    widths = [one.half_width for model in (AUDITED, ORIGINAL) if (one := attacks[model].get("margin")) is not None]
    if len(widths) < 2 or widths[0] >= FLAT * widths[1]:
        return None
    return (
        f"the outputs of the audited version are flat: the log odds of half of the samples lie within {widths[0]:.2g}, "
        f"under the original within {widths[1]:.2g}, which hides what single samples give away"
    )


def _chance_of_alarms(count: int, golds: int) -> float:
    """That so many of the golds or more are told apart by chance, each in one case of twenty."""
    below = sum(math.comb(golds, k) * LEVEL**k * (1 - LEVEL) ** (golds - k) for k in range(count))
    return 1 - below
