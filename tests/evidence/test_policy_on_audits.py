"""What a policy asks of an audit: its decision, its tier, the share remembered and the tails."""

import pytest
from records import attack, audit, digest, evidence

from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.evidence.audit import AuditRecord, CanaryRecord, RelearnRecord
from mlflow_unlearn.evidence.policy import AuditRules, Policy, judge, read_policy

RECORD = evidence()


def checks(record, **rules):
    policy = Policy(rules=[], membership=None, minimum={}, audit=AuditRules(**rules))
    return {c.rule: c for c in judge(RECORD, policy, signature=None, audit=record).checks}


def outcomes(record, **rules):
    return {rule: check.outcome for rule, check in checks(record, **rules).items()}


def test_what_has_passed():
    assert outcomes(audit()) == {"audit": "pass", "audit: tier": "pass"}


def test_what_was_told_apart_or_not_decided():
    assert outcomes(audit(found=0.001))["audit"] == "fail"
    assert outcomes(audit(before=0.5))["audit"] == "not measured"
    assert outcomes(audit(before=0.5), accept=["not told apart", "not decided"])["audit"] == "pass"
    assert "shows no memory" in checks(audit(before=0.5))["audit"].note


def test_no_audit_is_no_pass():
    [check] = checks(None).values()
    assert (check.outcome, check.value) == ("not measured", "–")
    assert "`mlflow-unlearn audit` does that" in check.note


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"uri": "models:/clf/9"}, "it is about models:/clf/9, or about other weights"),
        ({"weights_sha256": digest(9)}, "or about other weights"),
        ({"forget_sha256": digest(9)}, "it is about another forget set"),
        ({"original_sha256": digest(9)}, "is not the version that was unlearned"),
        ({"data_sha256": digest(9)}, "it has read other data, or by another transform"),
        ({"transform": "imagenet"}, "it has read other data, or by another transform"),
    ],
)
def test_an_audit_of_something_else_is_none(changes, why):
    [check] = checks(audit(**changes)).values()
    assert check.outcome == "not measured" and why in check.note


def test_no_one_passes_for_having_no_reference():
    assert outcomes(audit(tier=0))["audit: tier"] == "fail"
    assert outcomes(audit(tier=0), tier=0)["audit: tier"] == "pass"
    assert outcomes(audit(tier=1), tier=2)["audit: tier"] == "fail"


def test_the_share_is_judged_by_the_upper_end():
    for most, outcome in ((0.09, "pass"), (0.08, "fail")):
        assert outcomes(audit(), share_remembered={"at_most": most})["share remembered"] == outcome
    missing = audit(share_remembered=None, share_missing="needs a gold standard")
    check = checks(missing, share_remembered={"at_most": 0.1})["share remembered"]
    assert (check.outcome, check.note) == ("not measured", "needs a gold standard")
    assert checks(audit(), share_remembered={"at_most": 0.1})["share remembered"].value == "0.010 [−0.070, 0.090]"


def test_so_is_the_tail_of_every_attack():
    for most, outcome in ((0.05, "pass"), (0.04, "fail")):
        assert outcomes(audit(), tpr_at_fpr_1={"at_most": most})["TPR at 1 % FPR, rmia"] == outcome
    unresolved = audit(attacks={"audited": {"margin": attack(0.5)}, "original": {"margin": attack(0.001)}})
    assert outcomes(unresolved, tpr_at_fpr_1={"at_most": 0.1})["TPR at 1 % FPR"] == "not measured"


def test_canaries_are_judged_by_what_the_pairs_leave_possible():
    coins = CanaryRecord(pairs=60, larger=31, p_value=0.9, advantage=0.03, bound=0.29, e_value=0.2)
    audited = audit(canaries={"audited": coins, "original": coins})
    for most, outcome in ((0.29, "pass"), (0.28, "fail")):
        assert outcomes(audited, canaries={"at_most": most})["canaries"] == outcome
    assert "in 31 of 60 pairs" in checks(audited, canaries={"at_most": 0.3})["canaries"].note
    assert outcomes(audit(), canaries={"at_most": 0.3})["canaries"] == "not measured"


def test_what_has_to_have_been_tried():
    rules = {"relearning": True, "known_cheat": True}
    found = checks(audit(), **rules)
    for rule, option in (("audit: relearning", "relearn"), ("audit: known cheat", "cheat")):
        assert found[rule].outcome == "not measured" and f"audit --{option} true` tries it" in found[rule].note
    again = RelearnRecord(forget=[1.0], unseen=[1.0], ratio=1.0, p_value=1.0, censored=0.0)
    tried = audit(relearning={"audited": again})
    tried = tried.model_copy(update={"attacks": {**tried.attacks, "known cheat": {"rmia": attack(0.001)}}})
    assert set(outcomes(tried, **rules).values()) == {"pass"}
    refused = audit(not_measured={"relearning": "audited cannot be trained on (it is stubborn)"})
    assert "it is stubborn" in checks(refused, **rules)["audit: relearning"].note
    assert outcomes(refused)["audit"] == "not measured", "what was asked for and not measured decides nothing"


def test_canaries_alone_may_tell_it_apart():
    fair = CanaryRecord(pairs=60, larger=31, p_value=0.9, advantage=0.03, bound=0.29, e_value=0.2)
    leak = CanaryRecord(pairs=60, larger=50, p_value=1e-7, advantage=0.67, bound=0.85, e_value=1e5)
    word, why = audit(canaries={"audited": leak, "original": leak}).decision
    assert word == "told apart" and "canaries: 50 of 60 trained twins have the larger log odds, p 1e-07" in why
    assert audit(canaries={"audited": fair, "original": leak}).decision[0] == "not told apart"
    assert audit(before=0.5, canaries={"audited": fair, "original": leak}).decision[0] == "not told apart", "has power"
    assert audit(before=0.5, canaries={"audited": fair, "original": fair}).decision[0] == "not decided"


def test_a_policy_without_it_has_the_digest_of_before():
    """By which reviews of earlier releases name theirs."""
    assert "audit" not in Policy().model_dump() and "audit" in Policy(audit=AuditRules()).model_dump()
    assert Policy().sha256 != Policy(audit=AuditRules()).sha256
    assert Policy.model_validate(Policy(audit=AuditRules(tier=2)).model_dump()).audit.tier == 2


def test_from_a_file(tmp_path):
    path = tmp_path / "policy.yaml"
    path.write_text("rules: []\nmembership: null\nminimum: {}\naudit: {tier: 2, share_remembered: {at_most: 0.1}}\n")
    rules = read_policy(str(path)).audit
    assert rules.tier == 2 and rules.share_remembered.at_most == 0.1 and rules.accept == ["not told apart"]
    path.write_text("audit: {tier: 1, share_remembred: 0.1}\n")
    with pytest.raises(UnlearnError, match="there is no such key; did you mean 'share_remembered'"):
        read_policy(str(path))


def test_a_record_that_lacks_what_decides_is_none():
    for attacks in ({}, {"audited": {}}):
        with pytest.raises(ValueError, match="of the audited version and of the original"):
            audit(attacks=attacks)
    text = audit().to_json().replace('"p_value": 0.5', '"p_value": 2')
    with pytest.raises(ValueError, match="p_value"):
        AuditRecord.model_validate_json(text)


def test_it_is_stored_and_read():
    record = audit()
    assert AuditRecord.model_validate_json(record.to_json()) == record
    assert record.decision == ("not told apart", "by none of rmia; no gold control of rmia")
