"""A policy's judgement of a setting before anything is registered: its rules, with the validation set as test set."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from mlflow_unlearn.evidence.policy import Check, Membership, Policy, applies, bound
from mlflow_unlearn.evidence.record import Measured

NULL = "mia_advantage_null_80"
"""What a candidate has to stay below. The 95 % quantile, by which a version is judged, would let one in twenty of those
that are looked at pass by luck; of those below the 80 % one nearly none is above the other on new samples by luck."""


@dataclass(frozen=True)
class Judgement:
    """What a policy says of a candidate.

    Attributes:
        checks: one a rule.
        shortfall: by how much they fail in all: what came nearest has the smallest.
    """

    checks: tuple[Check, ...]
    shortfall: float

    @property
    def passed(self) -> bool:
        """Whether there are checks, and every one has passed."""
        return bool(self.checks) and all(check.outcome == "pass" for check in self.checks)

    @property
    def failures(self) -> str:
        """What has not passed, in words."""
        return "; ".join(str(check) for check in self.checks if check.outcome != "pass")

    @property
    def unmeasured(self) -> list[Check]:
        """Rules that no validation set can decide."""
        return [check for check in self.checks if check.outcome == "not measured"]


def judge_candidate(models: Mapping[str, Measured], policy: Policy) -> Judgement:
    """The rules and the membership of a policy; what it requires of a record, and its sample sizes, come later.

    Args:
        models: metrics of ``original``, ``unlearned`` and, where there is one, ``gold``, with the validation set in
            the place of the test set.
        policy: the rules.
    """
    found = list(_judged(models, policy))
    checks = tuple(check.model_copy(update={"rule": f"{check.rule} (validation set)"}) for check, _ in found)
    return Judgement(checks, sum(shortfall for _, shortfall in found))


def _judged(models: Mapping[str, Measured], policy: Policy) -> Iterator[tuple[Check, float]]:
    reason = models["unlearned"].collapsed
    if reason is not None:
        yield (
            Check(rule="not collapsed", value="collapsed", threshold="not collapsed", outcome="fail", note=reason),
            1.0,
        )
        return
    yield from (bound(models, rule) for rule in policy.rules if applies(models, rule))
    if policy.membership is not None:
        yield _membership(models["unlearned"], policy.membership)


def _membership(measured: Measured, rule: Membership) -> tuple[Check, float]:
    """Whether the forget set stands out less than the null's 80 % quantile; by an earlier attack, as it was read."""
    value, null = measured.values.get(rule.attack), measured.values.get(NULL)
    if value is None or (rule.attack == "mia_advantage" and null is None):
        reason = measured.not_computed.get(rule.attack, "")
        return Check(rule=rule.attack, value="–", threshold="measured", outcome="not measured", note=reason), 1.0
    if rule.attack != "mia_advantage" or null is None:
        word = measured.read_by(rule.attack)
        passed, shown, threshold = word in rule.accept, f"{word}: {value:.3f}", " or ".join(rule.accept)
        shortfall = abs(value - 0.5)
    else:
        passed, shown, threshold = value <= null, f"{value:.3f}", f"≤ {null:.3f}, the 80 % quantile of its null"
        shortfall = value - null
    check = Check(rule=rule.attack, value=shown, threshold=threshold, outcome="pass" if passed else "fail")
    return check, 0.0 if passed else shortfall
