"""The record of an audit: what each attack says of each model, and the verdict that follows from it."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from pydantic import Field, model_validator

from mlflow_unlearn.evidence.record import FrozenRecord, Person
from mlflow_unlearn.metrics.attacks.detection import Detection, holm
from mlflow_unlearn.metrics.attacks.suite import AUDITED, GOLD, ORIGINAL

AUDIT_FILE = "evidence/audit.json"
REFERENCE_FILE = "reference.npz"
"""Outputs of a model that an audit has trained, in its run; its weights are not kept."""
REFERENCE_TAG = "unlearn.reference.source_sha256"
"""Of its run: the weights of the version whose training samples it knows."""
CANARIES = "canaries"
LEVEL = 0.05
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
    def decision(self) -> tuple[Decision, str]:
        """The verdict, and why."""
        return decide(self.attacks, self.canaries)

    def to_json(self) -> str:
        """What is stored."""
        return self.model_dump_json(indent=1) + "\n"


def recorded(found: Mapping[str, Detection], canaries: CanaryRecord | None = None) -> dict[str, DetectionRecord]:
    """The attacks on one model, their chances corrected for their number, the test on canaries among them."""
    others = [] if canaries is None else [canaries.p_value]
    corrected = holm([*(one.p_value for one in found.values()), *others])[: len(found)]
    return {
        name: DetectionRecord(
            **{key: value for key, value in vars(one).items() if key not in ("tail", "curve")},
            corrected=p,
            tail=None if one.tail is None else TailRecord(**one.tail._asdict()),
        )
        for (name, one), p in zip(found.items(), corrected, strict=True)
    }


def decide(
    attacks: Mapping[str, Mapping[str, DetectionRecord]], canaries: Mapping[str, CanaryRecord] | None = None
) -> tuple[Decision, str]:
    """The verdict of an audit, never a pass without power or with a control that fails.

    The original must be told apart, else the attacks have no power here; no held-back gold standard may be, else they
    see something else than training. The chances of all golds and attacks are corrected together.

    Args:
        attacks: by model (``audited``, ``original``, ``gold 1``, …), then by attack; those on which no held-back gold
            standard was tried, for want of another one to calibrate by, are named.
        canaries: by model, ``audited`` and ``original``: a test that needs no control, since coins were fair.
    """
    coins = canaries or {}
    if not _powerful(attacks, coins):
        return "not decided", "the original shows no memory of these samples to these attacks"
    controls = [(name, attack) for name in attacks if name.startswith(GOLD) for attack in attacks[name]]
    corrected = holm([attacks[name][attack].p_value for name, attack in controls])
    failing = [f"{name} by {attack}" for (name, attack), p in zip(controls, corrected, strict=True) if p <= LEVEL]
    # With many golds no chance of a permutation is small enough for all together: then their number tells.
    alarms = [name for name in attacks if name.startswith(GOLD) and any(one.flagged for one in attacks[name].values())]
    golds = sum(name.startswith(GOLD) for name in attacks)
    if failing or (alarms and _chance_of_alarms(len(alarms), golds) <= LEVEL):
        failing = failing or alarms
        return "not decided", (
            f"a retrained model is told apart as well ({', '.join(failing)}): the forgotten samples differ from the "
            "unseen ones by more than training"
        )
    found = _flagged(attacks[AUDITED], coins.get(AUDITED))
    without = [attack for attack in attacks[AUDITED] if attack not in {each for _, each in controls}]
    control = f"; no gold control of {', '.join(without)}" if without else ""
    if found:
        return "told apart", f"{'; '.join(_in_words(attacks[AUDITED], found, coins.get(AUDITED)))}{control}"
    tried = [*attacks[AUDITED], *([CANARIES] if AUDITED in coins else [])]
    return "not told apart", f"by none of {', '.join(tried)}{control}"


def _powerful(attacks: Mapping[str, Mapping[str, DetectionRecord]], coins: Mapping[str, CanaryRecord]) -> bool:
    """Whether something that was tried on the audited model as well sees the original's memory."""
    tried = {*attacks[AUDITED], *([CANARIES] if AUDITED in coins else [])}
    before, own = attacks[ORIGINAL], coins.get(ORIGINAL)
    seen = [name for name in _flagged(before, own) if name in tried]
    return any(own is not None and own.advantage > 0 if name == CANARIES else before[name].auc > 0.5 for name in seen)


def _chance_of_alarms(count: int, golds: int) -> float:
    """That so many of the golds or more are told apart by chance, each in one case of twenty."""
    below = sum(math.comb(golds, k) * LEVEL**k * (1 - LEVEL) ** (golds - k) for k in range(count))
    return 1 - below


def _flagged(found: Mapping[str, DetectionRecord], coins: CanaryRecord | None) -> list[str]:
    """Of one model, in the light of all that was tried on it."""
    names = [*found, *([CANARIES] if coins is not None else [])]
    values = [*(one.p_value for one in found.values()), *([coins.p_value] if coins is not None else [])]
    return [name for name, corrected in zip(names, holm(values), strict=True) if corrected <= LEVEL]


def _in_words(found: Mapping[str, DetectionRecord], names: Sequence[str], coins: CanaryRecord | None) -> Iterator[str]:
    for name in names:
        if name in found:
            yield f"{name}: {found[name].side}, AUC {found[name].auc:.3f}, p {found[name].corrected:.3f}"
        elif coins is not None:
            yield f"{name}: {coins.larger} of {coins.pairs} trained twins are the surer ones, p {coins.p_value:.3g}"
