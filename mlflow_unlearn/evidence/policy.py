"""Policy: what a version must show before it may replace another, and the verdict on one evidence record."""

import re
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)

from mlflow_unlearn.console import first_line, without_passwords
from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.evidence.audit import RELEARNING, AuditRecord
from mlflow_unlearn.evidence.record import Evidence, FrozenRecord, Measured, RequestRecord, sha256
from mlflow_unlearn.evidence.signing import Signature, fingerprint
from mlflow_unlearn.metrics.attacks.suite import AUDITED, CHEAT
from mlflow_unlearn.metrics.catalog import KEYS, MATCHED_BY_CLASS, READING, READING_OF_AUC
from mlflow_unlearn.metrics.collapse import COLLAPSED
from mlflow_unlearn.metrics.reading import NOT_MEASURED, Attack, samples_needed, tells_apart
from mlflow_unlearn.parsing import load_options, read_text

Number = Annotated[float, Field(allow_inf_nan=False)]
Model = Literal["original", "unlearned", "gold"]
Word = Literal["indistinguishable", "undecided"]
Required = Literal[
    "gold",
    "reason",
    "requester",
    "filed_request",
    "signature",
    "clean_commit",
    "no_code",
    "no_pickle",
    "no_frozen_layers",
    "exact",
]


SLACK = 1e-9
"""What rounding may take from a bound."""


class Rule(FrozenRecord):
    """A bound on one metric of the unlearned model, or on its difference to another model's.

    ``value(metric) − value(metric of relative_to)``, at least ``at_least`` and at most ``at_most``; both inclusive.
    """

    metric: str
    at_least: Number | None = None
    at_most: Number | None = None
    relative_to: Literal["original", "gold"] | None = None
    when: Literal["always", "classes"] = Field("always", description="classes: only where a class is wholly forgotten.")

    @field_validator("metric")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in KEYS:
            near = get_close_matches(value, KEYS, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else "."
            raise ValueError(f"there is no metric {value!r}{hint} The metrics are: {', '.join(KEYS)}")
        return value

    @model_validator(mode="after")
    def _bounded(self) -> "Rule":
        if self.at_least is None and self.at_most is None:
            raise ValueError(f"the rule on {self.metric} has no bound: give at_least or at_most")
        if self.at_least is not None and self.at_most is not None and self.at_least > self.at_most:
            raise ValueError(f"the rule on {self.metric} can never pass: at_least is above at_most")
        return self

    @property
    def name(self) -> str:
        """As people read it."""
        return self.metric if self.relative_to is None else f"{self.metric} − {self.relative_to}'s"

    @property
    def threshold(self) -> str:
        """As people read it."""
        bounds = [("≥", self.at_least), ("≤", self.at_most)]
        return " and ".join(f"{sign} {bound:g}" for sign, bound in bounds if bound is not None).replace("-", "−")


class Membership(FrozenRecord):
    """The membership test, read in a word: residual, over-forgotten and spread always fail."""

    attack: Attack = "mia_advantage"
    accept: list[Word] = Field(
        ["indistinguishable"], description="Of everything forgotten so far; and of each part, by schema 1."
    )
    accept_each: list[Word] = Field(
        ["indistinguishable", "undecided"],
        description="Of a part of that: each request, and what was forgotten now, where that is less.",
    )
    each_request: bool = Field(True, description="Each request has to pass by itself, and so has their union.")
    uninformative: Literal["fail", "accept"] = Field(
        "fail", description="Where the attack did not tell the samples from unseen ones in the original either."
    )
    exchangeable: Literal["required", "optional"] = Field(
        "optional", description="Whether forgotten samples must have been drawn as unseen ones were."
    )

    @model_validator(mode="before")
    @classmethod
    def _with_auc_as_it_was(cls, values: Any) -> Any:
        """By ``mia_auc`` what is accepted of all is accepted of each, as schema 1 had it."""
        if not isinstance(values, dict) or values.get("attack") != "mia_auc":
            return values
        if later := sorted(_SINCE_SCHEMA_2 & values.keys()):
            raise ValueError(f"{later[0]} goes with attack: mia_advantage, not with mia_auc")
        default = cls.model_fields["accept"].default
        return values | {"accept_each": values.get("accept", default)}

    @model_serializer(mode="wrap")
    def _as_its_schema_has_it(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Digests of policies of schema 1 are compared with those of earlier releases."""
        dumped: dict[str, Any] = handler(self)
        return {key: v for key, v in dumped.items() if self.attack != "mia_auc" or key not in _SINCE_SCHEMA_2}


_SINCE_SCHEMA_2 = {"accept_each", "exchangeable"}


class AtMost(FrozenRecord):
    """A bound, inclusive."""

    at_most: Number


class AuditRules(FrozenRecord):
    """What an audit of the version must have come to: `mlflow-unlearn audit`."""

    tier: Literal[0, 1, 2] = Field(
        1, description="The least: 0 needs no retrained model, 1 one that left each sample out, 2 two."
    )
    accept: list[Literal["not told apart", "told apart", "not decided"]] = ["not told apart"]
    share_remembered: AtMost | None = Field(None, description="The upper end of its interval.")
    canaries: AtMost | None = Field(None, description="The advantage that the pairs leave possible.")
    tpr_at_fpr_1: AtMost | None = Field(None, description="The upper end of every attack's rate at 1 % false alarms.")
    relearning: bool = Field(False, description="Relearning has to have been measured: `audit --relearn true`.")
    known_cheat: bool = Field(False, description="A known cheat has to have been tried: `audit --cheat true`.")


def _default_rules(acc_retain: float) -> list[Rule]:
    """Utility, and that a class which is forgotten is gone.

    Args:
        acc_retain: how much of the original's may be lost, negative. What a repair of a few epochs has not learned by
            heart again is no loss on unseen samples, which the first rule is about.
    """
    return [
        Rule(metric="acc_test", relative_to="original", at_least=-0.01),
        Rule(metric="acc_retain", relative_to="original", at_least=acc_retain),
        Rule(metric="acc_test_forgotten", at_most=0.05, when="classes"),
    ]


class Policy(FrozenRecord):
    """What must hold. Without a file these defaults apply.

    Those of schema 1 differ in the attack, ``mia_auc``, and in what ``acc_retain`` may lose, 0.02.
    """

    schema_version: Literal[1, 2] = 2
    name: str = "default"
    rules: list[Rule] = _default_rules(-0.05)
    membership: Membership | None = Membership()
    minimum: dict[Literal["forget", "retain", "val", "test"], Annotated[int, Field(ge=1)]] = {"forget": 10, "test": 100}
    audit: AuditRules | None = Field(None, description="Without it no audit is needed.")
    required: list[Required] = []
    signers: list[str] = Field(
        [], description="Public keys that a required signature may be by: PEM, the path of a PEM file, or fingerprint."
    )
    approvers: list[str] = Field([], description="Who may promote; empty: everybody.")
    two_person: bool = Field(
        False, description="Who promotes may not have asked for, filed, or carried out the unlearning."
    )
    authenticated: bool = Field(True, description="Names count only where the tracking server has checked them.")

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_its_schema(cls, values: Any) -> Any:
        """Schema 1, which is also that of a policy that names ``mia_auc``, knows no other attack."""
        if not isinstance(values, dict):
            return values
        membership = values.get("membership", {})
        attack = membership.get("attack") if isinstance(membership, dict) else None
        schema = values.get("schema_version", 1 if attack == "mia_auc" else 2)
        if schema == 1 and attack == "mia_advantage":
            raise ValueError("schema 1 knows no mia_advantage: write schema_version: 2")
        if schema == 2 and attack == "mia_auc":
            raise ValueError("by schema 2 mia_advantage decides: write schema_version: 1 to keep mia_auc")
        if schema == 1:
            values = {"rules": _default_rules(-0.02)} | values
        if schema == 1 and isinstance(membership, dict):
            values = values | {"membership": {"attack": "mia_auc"} | membership}
        return values | {"schema_version": schema}

    @model_serializer(mode="wrap")
    def _without_what_it_does_not_ask(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Digests of policies without an audit are compared with those of earlier releases."""
        dumped: dict[str, Any] = handler(self)
        return {key: value for key, value in dumped.items() if key != "audit" or value is not None}

    @field_validator("signers")
    @classmethod
    def _as_fingerprints(cls, values: list[str], info: ValidationInfo) -> list[str]:
        """What is stored does not depend on this machine's files."""
        return [_fingerprint(value, info.context) for value in values]

    @property
    def sha256(self) -> str:
        """Of the policy with all its defaults."""
        return sha256(self.model_dump_json().encode())


Outcome = Literal["pass", "fail", "not measured", "uninformative"]


class Check(FrozenRecord):
    """One line of a verdict."""

    rule: str
    value: str
    threshold: str
    outcome: Outcome
    note: str = ""

    def __str__(self) -> str:
        """As an error says it; what a number does not explain is explained."""
        why = f": {self.note}" if self.value in ("–", "false") and self.note else ""
        if self.value == "–":
            return f"{self.rule} was not measured{why}"
        if self.outcome == "uninformative":
            return f"{self.rule} is uninformative: {self.note}"
        return f"{self.rule} is {self.value}, but must be {self.threshold} ({self.outcome}{why})"


class Verdict(FrozenRecord):
    """What a policy says of an evidence record; what was not measured has not passed."""

    policy: str
    policy_sha256: str
    checks: list[Check]

    @property
    def passed(self) -> bool:
        """Whether there are checks, and every one has."""
        return bool(self.checks) and all(check.outcome == "pass" for check in self.checks)

    @property
    def in_short(self) -> str:
        """`failures`, in at most 200 characters."""
        text = "" if self.passed else self.failures
        return text if len(text) <= 200 else f"{text[:199]}…"

    @property
    def failures(self) -> str:
        """What has not passed and why, in words."""
        failed = [check for check in self.checks if check.outcome != "pass"]
        return "; ".join(map(str, failed)) or "none of its rules applies to this version"

    @property
    def word(self) -> Literal["pass", "fail"]:
        """As tags have it."""
        return "pass" if self.passed else "fail"


def read_policy(path: str | None, *, schema: Literal[1, 2] = 2) -> Policy:
    """The policy of a YAML file, or the default one.

    Args:
        path: of the file; None for the default policy.
        schema: of a policy that states none: that of the evidence which it is to judge (`Evidence.policy_schema`).

    Raises:
        UnlearnError: it cannot be read, or names what there is not.
    """
    if path is None:
        return Policy.model_validate({"schema_version": schema})
    try:
        values = load_options(read_text(path), yaml=True)
    except OSError as error:
        raise UnlearnError(f"the policy {path!r} cannot be read ({error.strerror}): give a YAML file") from error
    except ValueError as error:
        raise UnlearnError(f"the policy {path!r} is not YAML: {error}") from error
    if not isinstance(values, dict):
        raise UnlearnError(f"the policy {path!r} holds no names with values, such as rules: or two_person: true")
    # What people write is stored and shown. A user's name is no secret, though it may be the password as well.
    if isinstance(name := values.get("name"), str):
        values["name"] = without_passwords(name)
    if isinstance(names := values.get("approvers"), list):
        values["approvers"] = [without_passwords(each) if "://" in str(each) else each for each in names]
    if schema == 1:
        values.setdefault("schema_version", 1)
    try:
        policy = Policy.model_validate(values, context=Path(path).parent)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        reason = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            keys = [*Policy.model_fields, *Rule.model_fields, *Membership.model_fields]
            keys += [*AuditRules.model_fields, *AtMost.model_fields]
            near = get_close_matches(str(first["loc"][-1]), keys, cutoff=0.5)
            reason = "there is no such key" + (f"; did you mean {near[0]!r}?" if near else "")
        given = "" if first["type"] == "value_error" else f" = {first['input']!r}"
        at = f"{where}{given}: " if where else ""
        raise UnlearnError(f"the policy {path!r} is not usable: {at}{reason}") from error
    # Not by the model: such policies of earlier releases are stored in reviews.
    if not (policy.rules or policy.membership or policy.minimum or policy.audit or policy.required):
        raise UnlearnError(
            f"the policy {path!r} judges nothing: give it at least one of rules, membership, minimum, audit, required"
        )
    if policy.signers and "signature" not in policy.required:
        raise UnlearnError(f"the policy {path!r} names signers and requires no signature: add it to required")
    if policy.name == "default" and policy.sha256 != Policy(schema_version=policy.schema_version).sha256:
        return policy.model_copy(update={"name": Path(path).name})  # nothing else is called like the built-in one
    return policy


def _fingerprint(value: str, folder: Path | None) -> str:
    """Of a public key that is given as PEM, as a file relative to the policy's folder, or by its fingerprint already.

    Raises:
        ValueError: it is none of these.
    """
    if re.fullmatch("sha256:[0-9a-f]{64}", value.strip().lower()):
        return value.strip().lower()
    try:
        return fingerprint(value.encode() if "-----BEGIN" in value else ((folder or Path()) / value).read_bytes())
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{value[:80]!r} is not a public EC key ({first_line(error)}): give PEM, a PEM file's path relative to the "
            "policy, or sha256: and what `sha256sum public.pem` prints"
        ) from error


def judge(
    evidence: Evidence, policy: Policy, *, signature: Signature | None, audit: AuditRecord | None = None
) -> Verdict:
    """Every rule of the policy on the record.

    Args:
        evidence: the record.
        policy: the rules.
        signature: what came of checking the one that is stored beside it; None: there is none.
        audit: of the version, the one that counts; None: there is none.
    """
    checks = [
        *_collapses(evidence),
        *(bound(evidence.metrics, rule)[0] for rule in policy.rules if applies(evidence.metrics, rule)),
        *(_memberships(evidence, policy.membership) if policy.membership is not None else ()),
        *(_size(evidence, role, least) for role, least in policy.minimum.items()),
        *(_audits(evidence, policy.audit, audit) if policy.audit is not None else ()),
        *(_required(evidence, name, policy, signature) for name in policy.required),
    ]
    return Verdict(policy=policy.name, policy_sha256=policy.sha256, checks=checks)


def _collapses(evidence: Evidence) -> Iterator[Check]:
    """By no policy may a collapsed model pass: what was not measured of it looks harmless."""
    reason = evidence.metrics["unlearned"].collapsed
    if reason is not None:
        yield Check(rule="not collapsed", value="collapsed", threshold="not collapsed", outcome="fail", note=reason)


def applies(models: Mapping[str, Measured], rule: Rule) -> bool:
    """Whether a rule is about these models: some are about wholly forgotten classes alone."""
    return rule.when == "always" or models["unlearned"].counts.get("wholly_forgotten_classes", 0) > 0


def bound(models: Mapping[str, Measured], rule: Rule) -> tuple[Check, float]:
    """A rule on the metrics of ``unlearned`` and what it is compared with, and by how much it fails.

    By 0 where it passes, and by 1 where there is nothing to compare.
    """
    value, missing = _value(models, "unlearned", rule.metric)
    if value is not None and rule.relative_to is not None:
        other, missing = _value(models, rule.relative_to, rule.metric)
        value = None if other is None else value - other
    if value is None:
        check = Check(rule=rule.name, value="–", threshold=rule.threshold, outcome="not measured", note=missing)
        return check, 1.0
    shortfall = max(
        0.0 if rule.at_least is None else rule.at_least - value, 0.0 if rule.at_most is None else value - rule.at_most
    )
    passed = shortfall <= SLACK  # a difference such as 0.97 − 0.98 is a little below −0.01
    shown = f"{value:.4f}".replace("-", "−")
    check = Check(rule=rule.name, value=shown, threshold=rule.threshold, outcome="pass" if passed else "fail")
    return check, 0.0 if passed else shortfall


def _value(models: Mapping[str, Measured], model: str, metric: str) -> tuple[float | None, str]:
    """A metric of a model, or None and why."""
    measured = models.get(model)
    if measured is None:
        return None, f"there is no {model} model"
    return measured.values.get(metric), measured.not_computed.get(metric, f"not computed for {model}")


def _memberships(evidence: Evidence, rule: Membership) -> Iterator[Check]:
    """Of the set forgotten now, and of each request and all that was ever forgotten, where these are other sets."""
    own = [request for request in evidence.requests if request.id in evidence.request_ids]
    part = rule.each_request and "unlearned" in evidence.union
    if evidence.exactness.trained_without:
        yield _trained_without(evidence, rule)
        return
    yield _membership("membership", evidence.metrics, rule, own, part=part)
    if rule.each_request:
        for request in evidence.requests:
            if "unlearned" in request.metrics:
                # What an earlier step forgot has to look like unseen samples to the source already.
                models = request.metrics if request.id in evidence.request_ids else _unlearned(request.metrics)
                yield _membership(f"membership, request {request.id}", models, rule, [request], part=True)
        if part:
            union = _unlearned(evidence.union)
            yield _membership("membership, everything forgotten", union, rule, evidence.requests)


def _trained_without(evidence: Evidence, rule: Membership) -> Check:
    """Nothing has to be shown of samples that the weights never saw: what tells such a model apart is chance."""
    measured = evidence.metrics["unlearned"]
    word = measured.read_by(rule.attack)
    note = "trained without the samples: what the attack shows decides nothing"
    if tells_apart(word):
        note += "; by chance one of twenty such models is told apart, and so is one that retains others like them"
    shown = word if word in (NOT_MEASURED, COLLAPSED) else _shown(word, measured, rule)
    return Check(rule="membership", value=shown, threshold=evidence.exactness.kind, outcome="pass", note=note)


def _unlearned(models: Mapping[str, Measured]) -> dict[str, Measured]:
    return {"unlearned": models["unlearned"]}


def _membership(
    name: str,
    models: Mapping[str, Measured],
    rule: Membership,
    requests: Sequence[RequestRecord],
    *,
    part: bool = False,
) -> Check:
    """The unlearned model's reading; where the original's is given, a pass has to tell something.

    Args:
        name: of the line.
        models: metrics by model, of one set of forgotten samples.
        rule: of the policy.
        requests: that name these samples.
        part: they are not all that was forgotten.
    """
    measured, accepted = models["unlearned"], rule.accept_each if part else rule.accept
    word = measured.read_by(rule.attack)
    threshold = " or ".join(accepted)
    if word in (NOT_MEASURED, COLLAPSED):
        unknown = "" if rule.attack == "mia_auc" else f"{rule.attack} was not measured"
        note = measured.not_computed.get(rule.attack, unknown)
        shown = "–" if word == NOT_MEASURED else word
        return Check(rule=name, value=shown, threshold=threshold, outcome="not measured", note=note)
    outcome: Outcome = "pass" if word in accepted else "fail"
    notes = [READING_OF_AUC[word] if rule.attack == "mia_auc" else READING[word]]
    if word == "undecided" and rule.attack != "mia_auc":
        notes += [needed] if (needed := _needed(measured)) else []
    # Who accepts that too few samples decide nothing accepts it of the original as well; schema 1 did not.
    decided = word == "indistinguishable" or rule.attack == "mia_auc"
    if (
        outcome == "pass"
        and decided
        and "original" in models
        and not tells_apart(models["original"].read_by(rule.attack))
    ):
        notes = [READING["uninformative"]]
        outcome = "uninformative" if rule.uninformative == "fail" else "pass"
    if rule.attack != "mia_auc" and (kinds := {request.exchangeable for request in requests} - {True}):
        if False in kinds:
            notes.append(f"{MATCHED_BY_CLASS}: the null takes forgotten samples to be drawn as unseen ones were")
        if rule.exchangeable == "required":
            notes += ["how the samples were chosen is not recorded"] if False not in kinds else []
            outcome = "fail" if False in kinds else "not measured"
            threshold += ", of samples drawn as unseen ones"
    return Check(
        rule=name, value=_shown(word, measured, rule), threshold=threshold, outcome=outcome, note="; ".join(notes)
    )


def _shown(word: str, measured: Measured, rule: Membership) -> str:
    """The reading with what it is made from."""
    values = measured.values
    if rule.attack == "mia_auc":
        return f"{word}: {values['mia_auc']:.3f} [{values['mia_auc_low']:.3f}, {values['mia_auc_high']:.3f}]"
    return f"{word}: {values['mia_advantage']:.3f}, by chance up to {values['mia_advantage_null']:.3f}"


def _needed(measured: Measured) -> str:
    """How many forgotten samples would decide; empty where the record does not have their number."""
    forget, test = (measured.counts.get(f"n_{role}") for role in ("forget", "test"))
    if not forget or not test:
        return ""
    count = samples_needed(measured.values["mia_advantage_null"], forget, test)
    return f"about {count} forgotten samples would do" if count is not None else "more unseen samples would do"


def _size(evidence: Evidence, role: str, least: int) -> Check:
    samples = getattr(evidence.data, role).samples
    # So many are asked for to measure what is left of them: where nothing is to be measured, one may be forgotten.
    unneeded = role == "forget" and evidence.exactness.trained_without
    outcome: Literal["pass", "fail"] = "pass" if samples >= least or unneeded else "fail"
    note = "trained without the samples: none have to be measured" if unneeded and samples < least else ""
    return Check(rule=f"samples, {role} set", value=str(samples), threshold=f"≥ {least}", outcome=outcome, note=note)


def _audits(evidence: Evidence, rules: AuditRules, audit: AuditRecord | None) -> Iterator[Check]:
    """What an audit says; of one that is missing, or about something else, that it was not measured."""
    accepted = " or ".join(rules.accept)
    if audit is None or (foreign := _about_something_else(evidence, audit)):
        why = "this version was never audited: `mlflow-unlearn audit` does that" if audit is None else foreign
        yield Check(rule="audit", value="–", threshold=accepted, outcome="not measured", note=why)
        return
    decision, why = audit.decision
    outcome: Outcome = "pass" if decision in rules.accept else "not measured" if decision == "not decided" else "fail"
    yield Check(rule="audit", value=decision, threshold=accepted, outcome=outcome, note=why)
    tier = f"tier {audit.tier}"
    enough: Outcome = "pass" if audit.tier >= rules.tier else "fail"
    note = f"calibrated by {len(audit.references)} retrained models"
    yield Check(rule="audit: tier", value=tier, threshold=f"≥ {rules.tier}", outcome=enough, note=note)
    if rules.share_remembered is not None:
        yield _share_remembered(audit, rules.share_remembered.at_most)
    if rules.canaries is not None:
        yield _canaries(audit, rules.canaries.at_most)
    if rules.tpr_at_fpr_1 is not None:
        yield from _tails(audit, rules.tpr_at_fpr_1.at_most)
    if rules.relearning:
        missing = audit.not_measured.get(RELEARNING, "")
        yield _tried("relearning", AUDITED in audit.relearning and not missing, missing)
    if rules.known_cheat:
        yield _tried("known cheat", CHEAT in audit.attacks, "")


def _tried(rule: str, there: bool, why: str) -> Check:
    option = {"relearning": "relearn", "known cheat": "cheat"}[rule]
    return Check.model_validate(
        {
            "rule": f"audit: {rule}",
            "value": "tried" if there else "–",
            "threshold": "tried",
            "outcome": "pass" if there else "not measured",
            "note": "" if there else why or f"`mlflow-unlearn audit --{option} true` tries it",
        }
    )


def _about_something_else(evidence: Evidence, audit: AuditRecord) -> str:
    """What an audit is about, where that is not this version and its forget set; else nothing."""
    if (audit.uri, audit.weights_sha256) != (evidence.result.uri, evidence.result.weights_sha256):
        return f"it is about {audit.uri}, or about other weights"
    if audit.forget_sha256 != evidence.data.forget.sha256:
        return "it is about another forget set"
    if audit.original_sha256 != evidence.source.weights_sha256:
        return f"its original, {audit.original_uri}, is not the version that was unlearned"
    read = (audit.data_sha256, audit.transform), (evidence.data.digest, evidence.data.transform)
    return "" if read[0] == read[1] else "it has read other data, or by another transform"


def _share_remembered(audit: AuditRecord, most: float) -> Check:
    share, threshold = audit.share_remembered, f"upper end ≤ {most:g}"
    if share is None:
        value, outcome, note = "–", "not measured", audit.share_missing
    else:
        value = f"{share.value:.3f} [{share.low:.3f}, {share.high:.3f}]".replace("-", "−")
        outcome, note = "pass" if share.high <= most + SLACK else "fail", "1: as if nothing was done, 0: as retrained"
    return Check.model_validate(
        {"rule": "share remembered", "value": value, "threshold": threshold, "outcome": outcome, "note": note}
    )


def _canaries(audit: AuditRecord, most: float) -> Check:
    rule, threshold, found = "canaries", f"advantage ≤ {most:g}, with 95 % confidence", audit.canaries.get(AUDITED)
    if found is None:
        note = "no canary was planted, or none of the forgotten ones can decide anything"
        return Check(rule=rule, value="–", threshold=threshold, outcome="not measured", note=note)
    outcome: Outcome = "pass" if found.bound <= most + SLACK else "fail"
    note = f"in {found.larger} of {found.pairs} pairs the trained twin has the larger log odds, p {found.p_value:.3g}"
    return Check(rule=rule, value=f"≤ {found.bound:.3f}", threshold=threshold, outcome=outcome, note=note)


def _tails(audit: AuditRecord, most: float) -> Iterator[Check]:
    threshold = f"upper end ≤ {most:g}"
    resolved = {name: found.tail for name, found in audit.attacks[AUDITED].items() if found.tail is not None}
    if not resolved:
        note = "too few unseen samples to resolve 1 % false alarms"
        yield Check(rule="TPR at 1 % FPR", value="–", threshold=threshold, outcome="not measured", note=note)
    for name, tail in resolved.items():
        rule = f"TPR at 1 % FPR, {name}"
        value = f"{tail.tpr:.3f} [{tail.low:.3f}, {tail.high:.3f}]"
        outcome: Outcome = "pass" if tail.high <= most + SLACK else "fail"
        yield Check(rule=rule, value=value, threshold=threshold, outcome=outcome)


def _required(evidence: Evidence, name: Required, policy: Policy, signature: Signature | None) -> Check:
    now = [request for request in evidence.requests if request.id in evidence.request_ids]
    found: dict[str, tuple[bool | None, str]] = {
        "gold": ("gold" in evidence.metrics, "measured beside a model retrained without the forget set"),
        "reason": (all(request.reason for request in now), "every request says why"),
        "requester": (all(request.requester for request in now), "every request says who asks"),
        "filed_request": (not any(_ad_hoc(evidence, r.run_id) for r in now), "every request was filed with `request`"),
        "signature": signed_by(policy, signature),
        "clean_commit": (evidence.system.get("unlearn.git.dirty") == "false", "made by a committed state of this code"),
        "no_code": (not evidence.source.loading_ran_code, "loading the source version ran no code of its own"),
        "no_frozen_layers": (not (evidence.provenance.prefix or evidence.exactness.frozen), "every layer was trained"),
        "exact": (evidence.exactness.trained_without, "the weights come from training without the samples"),
    }
    found["no_pickle"] = found["no_code"]  # its name in earlier policies
    holds, meaning = found[name]
    outcome: Literal["pass", "fail", "not measured"] = "not measured" if holds is None else "pass" if holds else "fail"
    return Check(
        rule=f"required: {name}",
        value="–" if holds is None else str(holds).lower(),
        threshold="true",
        outcome=outcome,
        note=meaning,
    )


def signed_by(policy: Policy, signature: Signature | None) -> tuple[bool | None, str]:
    """Whether a version is signed by a key that the policy names, or else by one that the caller gave; and in words.

    None where that cannot be told: no one has named a key to trust, or there is none to check with.
    """
    if signature is None:
        return False, "the evidence is unsigned"
    if signature.broken is not None:
        return False, f"the signature does not hold: {signature.broken}"
    if signature.signer is None:
        return None, "the evidence is signed, and does not name its key: give it to check (--key)"
    if policy.signers:
        named = signature.signer in policy.signers
        return named, f"signed with the key {signature.signer}" + ("" if named else ", which the policy does not name")
    if signature.given:
        return True, f"signed with the given key {signature.signer}"
    return None, f"signed with the key {signature.signer}; signers: in the policy, or --key, says which keys to trust"


def _ad_hoc(evidence: Evidence, run_id: str) -> bool:
    """A set given with forget= is filed in the run that carried it out."""
    return run_id == evidence.run.id
