"""Policy: what a version must show before it may replace another, and the verdict on one evidence record."""

from collections.abc import Iterator
from difflib import get_close_matches
from typing import Annotated, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.evidence.record import Evidence, FrozenRecord, Measured, sha256
from mlflow_unlearn.metrics.catalog import KEYS, READING
from mlflow_unlearn.parsing import load_options, read_text

Number = Annotated[float, Field(allow_inf_nan=False)]
Model = Literal["original", "unlearned", "gold"]
Word = Literal["indistinguishable", "undecided"]
Required = Literal[
    "gold", "reason", "requester", "filed_request", "signature", "clean_commit", "no_pickle", "no_frozen_layers"
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
    """The two-sided membership test, read by its interval: residual and over-forgotten always fail."""

    attack: Literal["mia_auc"] = "mia_auc"
    accept: list[Word] = ["indistinguishable"]
    each_request: bool = Field(True, description="Each request has to pass by itself, and so has their union.")


class Policy(FrozenRecord):
    """What must hold. Without a file these defaults apply."""

    schema_version: Literal[1] = 1
    name: str = "default"
    rules: list[Rule] = [
        Rule(metric="acc_test", relative_to="original", at_least=-0.01),
        Rule(metric="acc_retain", relative_to="original", at_least=-0.02),
        Rule(metric="acc_test_forgotten", at_most=0.05, when="classes"),
    ]
    membership: Membership | None = Membership()
    minimum: dict[Literal["forget", "retain", "val", "test"], Annotated[int, Field(ge=1)]] = {"forget": 10, "test": 100}
    required: list[Required] = []
    approvers: list[str] = Field([], description="Who may promote; empty: everybody.")
    two_person: bool = Field(
        False, description="Who promotes may not have asked for, filed, or carried out the unlearning."
    )

    @property
    def sha256(self) -> str:
        """Of the policy with all its defaults."""
        return sha256(self.model_dump_json().encode())


class Check(FrozenRecord):
    """One line of a verdict."""

    rule: str
    value: str
    threshold: str
    outcome: Literal["pass", "fail", "not measured"]
    note: str = ""


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
    def word(self) -> Literal["pass", "fail"]:
        """As tags have it."""
        return "pass" if self.passed else "fail"


def read_policy(path: str | None) -> Policy:
    """The policy of a YAML file, or the default one.

    Raises:
        UnlearnError: it cannot be read, or names what there is not.
    """
    if path is None:
        return Policy()
    try:
        values = load_options(read_text(path), yaml=True)
    except OSError as error:
        raise UnlearnError(f"the policy {path!r} cannot be read ({error.strerror}): give a YAML file") from error
    except ValueError as error:
        raise UnlearnError(f"the policy {path!r} is not YAML: {error}") from error
    if not isinstance(values, dict):
        raise UnlearnError(f"the policy {path!r} holds no names with values, such as rules: or two_person: true")
    try:
        return Policy.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        reason = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            keys = [*Policy.model_fields, *Rule.model_fields, *Membership.model_fields]
            near = get_close_matches(str(first["loc"][-1]), keys, cutoff=0.5)
            reason = "there is no such key" + (f"; did you mean {near[0]!r}?" if near else "")
        given = "" if first["type"] == "value_error" else f" = {first['input']!r}"
        raise UnlearnError(f"the policy {path!r} is not usable: {where}{given}: {reason}") from error


def judge(evidence: Evidence, policy: Policy, *, signed: bool | None) -> Verdict:
    """Every rule of the policy on the record.

    Args:
        evidence: the record.
        policy: the rules.
        signed: whether the signature was verified; None: there is one, and no key to verify it with.
    """
    checks = [
        *(_bound(evidence, rule) for rule in policy.rules if _applies(evidence, rule)),
        *(_memberships(evidence, policy.membership) if policy.membership is not None else ()),
        *(_size(evidence, role, least) for role, least in policy.minimum.items()),
        *(_required(evidence, name, signed) for name in policy.required),
    ]
    return Verdict(policy=policy.name, policy_sha256=policy.sha256, checks=checks)


def _applies(evidence: Evidence, rule: Rule) -> bool:
    return rule.when == "always" or evidence.metrics["unlearned"].counts.get("wholly_forgotten_classes", 0) > 0


def _bound(evidence: Evidence, rule: Rule) -> Check:
    value, missing = _value(evidence, "unlearned", rule.metric)
    if value is not None and rule.relative_to is not None:
        other, missing = _value(evidence, rule.relative_to, rule.metric)
        value = None if other is None else value - other
    if value is None:
        return Check(rule=rule.name, value="–", threshold=rule.threshold, outcome="not measured", note=missing)
    # A difference such as 0.97 − 0.98 is a little below −0.01.
    passed = (rule.at_least is None or value + SLACK >= rule.at_least) and (
        rule.at_most is None or value - SLACK <= rule.at_most
    )
    shown = f"{value:.4f}".replace("-", "−")
    return Check(rule=rule.name, value=shown, threshold=rule.threshold, outcome="pass" if passed else "fail")


def _value(evidence: Evidence, model: str, metric: str) -> tuple[float | None, str]:
    """A metric of a model, or None and why."""
    measured = evidence.metrics.get(model)
    if measured is None:
        return None, f"there is no {model} model"
    return measured.values.get(metric), measured.not_computed.get(metric, f"not computed for {model}")


def _memberships(evidence: Evidence, rule: Membership) -> Iterator[Check]:
    now, before = (evidence.metrics[model].membership for model in ("unlearned", "original"))
    check = _membership("membership", evidence.metrics["unlearned"], rule)
    if now == before == "indistinguishable":
        check = check.model_copy(update={"note": f"{check.note}; but so they did to the original: this tells nothing"})
    yield check
    if rule.each_request:
        for request in evidence.requests:
            if "unlearned" in request.metrics:
                yield _membership(f"membership, request {request.id}", request.metrics["unlearned"], rule)
        if "unlearned" in evidence.union:
            yield _membership("membership, everything forgotten", evidence.union["unlearned"], rule)


def _membership(name: str, measured: Measured, rule: Membership) -> Check:
    word = measured.membership
    threshold = " or ".join(rule.accept)
    if word == "not measured":
        note = measured.not_computed.get(rule.attack, "")
        return Check(rule=name, value="–", threshold=threshold, outcome="not measured", note=note)
    values = measured.values
    shown = f"{word}: {values['mia_auc']:.3f} [{values['mia_auc_low']:.3f}, {values['mia_auc_high']:.3f}]"
    outcome: Literal["pass", "fail"] = "pass" if word in rule.accept else "fail"
    return Check(rule=name, value=shown, threshold=threshold, outcome=outcome, note=READING[word])


def _size(evidence: Evidence, role: str, least: int) -> Check:
    samples = getattr(evidence.data, role).samples
    outcome: Literal["pass", "fail"] = "pass" if samples >= least else "fail"
    return Check(rule=f"samples, {role} set", value=str(samples), threshold=f"≥ {least}", outcome=outcome)


def _required(evidence: Evidence, name: Required, signed: bool | None) -> Check:
    now = [request for request in evidence.requests if request.id in evidence.request_ids]
    found: dict[str, tuple[bool | None, str]] = {
        "gold": ("gold" in evidence.metrics, "measured beside a model retrained without the forget set"),
        "reason": (all(request.reason for request in now), "every request says why"),
        "requester": (all(request.requester for request in now), "every request says who asks"),
        "filed_request": (not any(_ad_hoc(evidence, r.run_id) for r in now), "every request was filed with `request`"),
        "signature": (signed, "the evidence is signed; give key= to check it" if signed is None else "signed"),
        "clean_commit": (evidence.system.get("unlearn.git.dirty") == "false", "made by a committed state of this code"),
        "no_pickle": (not evidence.source.loading_ran_code, "loading the source version ran no code of its own"),
        "no_frozen_layers": (evidence.provenance.prefix is None, "every layer was trained"),
    }
    holds, meaning = found[name]
    outcome: Literal["pass", "fail", "not measured"] = "not measured" if holds is None else "pass" if holds else "fail"
    return Check(
        rule=f"required: {name}",
        value="–" if holds is None else str(holds).lower(),
        threshold="true",
        outcome=outcome,
        note=meaning,
    )


def _ad_hoc(evidence: Evidence, run_id: str) -> bool:
    """A set given with forget= is filed in the run that carried it out."""
    return run_id == evidence.run.id
