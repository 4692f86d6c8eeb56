"""Policies on records: bounds, the two-sided membership test, sizes, and what evidence is required."""

import logging
from pathlib import Path

import pytest
import yaml
from records import APART, COLLAPSED, UNMATCHED, collapsed, evidence, measured, of_before, request, sequence, unmeasured

from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.evidence.policy import Check, Policy, Rule, Verdict, judge, read_policy
from mlflow_unlearn.evidence.record import Evidence, Measured
from mlflow_unlearn.evidence.signing import Signature, fingerprint
from mlflow_unlearn.metrics.catalog import KEYS

PROJECT = Path(__file__).parents[2]


def checks(record: Evidence, signature: Signature | None = None, **policy) -> list[Check]:
    chosen = Policy(**{"rules": [], "membership": None, "minimum": {}} | policy)
    return judge(record, chosen, signature=signature).checks


def outcomes(record: Evidence, **policy) -> dict[str, str]:
    return {check.rule: check.outcome for check in checks(record, **policy)}


def as_told(record: Evidence, **policy) -> list[tuple[str, ...]]:
    """Rule, value, threshold, outcome and note of each line, as reports and commands show them."""
    return [tuple(check.model_dump().values()) for check in checks(record, **policy)]


AUC = {"attack": "mia_auc"}


def of_schema_1(record: Evidence) -> Evidence:
    """With what an earlier release measured."""
    columns = {model: of_before(one) for model, one in record.metrics.items()}
    apart = {"metrics": columns, "union": {model: of_before(one) for model, one in record.union.items()}}
    requests = [
        one.model_copy(update={"metrics": {model: of_before(each) for model, each in one.metrics.items()}})
        for one in record.requests
    ]
    return record.model_copy(update=apart | {"requests": requests})


def with_unlearned(**values: float) -> Evidence:
    plain = evidence()
    return plain.model_copy(update={"metrics": plain.metrics | {"unlearned": measured(**values)}})


def test_a_collapsed_version_passes_no_policy():
    """Not even one that bounds nothing of what has suffered; others have no such line."""
    lenient = {"rules": [Rule(metric="acc_forget", at_most=0.5)]}
    assert outcomes(collapsed(), **lenient) == {"not collapsed": "fail", "acc_forget": "pass"}
    assert not judge(collapsed(), Policy(membership=None, minimum={}, **lenient), signature=None).passed
    [line, _] = as_told(collapsed(), **lenient)
    assert line == ("not collapsed", "collapsed", "not collapsed", "fail", COLLAPSED)
    assert outcomes(evidence(), rules=[Rule(metric="acc_forget", at_most=1.0)]) == {"acc_forget": "pass"}
    assert ("membership", "collapsed", "indistinguishable", "not measured", COLLAPSED) in as_told(
        collapsed(), membership={}
    )


@pytest.mark.parametrize(
    ("rule", "value", "outcome"),
    [
        ({"at_least": 0.95}, 0.95, "pass"),
        ({"at_least": 0.95}, 0.9499, "fail"),
        ({"at_most": 0.5}, 0.5, "pass"),
        ({"at_most": 0.5}, 0.5001, "fail"),
        ({"at_least": 0.4, "at_most": 0.6}, 0.5, "pass"),
        # The original has 0.9556: a loss of exactly 0.01 is allowed, though 0.9456 − 0.9556 is a little below −0.01.
        ({"at_least": -0.01, "relative_to": "original"}, 0.9456, "pass"),
        ({"at_least": -0.01, "relative_to": "original"}, 0.9455, "fail"),
        ({"at_most": 0.0, "relative_to": "gold"}, 0.9512, "fail"),
    ],
)
def test_bounds(rule, value, outcome):
    found = outcomes(with_unlearned(acc_test=value), rules=[Rule(metric="acc_test", **rule)])
    assert list(found.values()) == [outcome]


@pytest.mark.parametrize(
    ("rule", "told"),
    [
        ({"metric": "acc_test", "at_least": 0.95}, ("acc_test", "0.9511", "≥ 0.95", "pass", "")),
        # 0.9511 − 0.9556 and 0.9511 − 0.9511: with the signs of print, not of programs.
        (
            {"metric": "acc_test", "relative_to": "original", "at_least": -0.01, "at_most": 0.01},
            ("acc_test − original's", "−0.0045", "≥ −0.01 and ≤ 0.01", "pass", ""),
        ),
        (
            {"metric": "acc_test", "relative_to": "gold", "at_least": 0.1},
            ("acc_test − gold's", "0.0000", "≥ 0.1", "fail", ""),
        ),
    ],
)
def test_bounds_as_they_are_told(rule, told):
    assert as_told(evidence(), rules=[rule]) == [told]


@pytest.mark.parametrize(
    ("rule", "told"),
    [
        # The first reason counts: the unlearned model's own, and then that of the other one.
        ({"metric": "jsd", "at_most": 1}, ("jsd", "–", "≤ 1", "not measured", "no gold model was given")),
        (
            {"metric": "acc_test", "relative_to": "gold", "at_least": -1},
            ("acc_test − gold's", "–", "≥ −1", "not measured", "there is no gold model"),
        ),
        (
            {"metric": "avg_gap", "relative_to": "original", "at_most": 1},
            ("avg_gap − original's", "–", "≤ 1", "not measured", "not computed for unlearned"),
        ),
        (
            {"metric": "acc_val", "relative_to": "original", "at_most": 1},
            ("acc_val − original's", "–", "≤ 1", "not measured", "the validation set is gone"),
        ),
    ],
)
def test_why_a_bound_was_not_measured(rule, told):
    plain = evidence(gold=False)
    mine, before = plain.metrics["unlearned"], plain.metrics["original"]
    known = {key: reason for key, reason in mine.not_computed.items() if key != "avg_gap"}
    values = {key: value for key, value in before.values.items() if key != "acc_val"}
    metrics = {
        "unlearned": mine.model_copy(update={"not_computed": known}),
        "original": before.model_copy(
            update={"values": values, "not_computed": {"acc_val": "the validation set is gone", "avg_gap": "no gold"}}
        ),
    }
    assert as_told(plain.model_copy(update={"metrics": metrics}), rules=[rule]) == [told]


def test_judging_is_silent_and_leaves_mlflows_logger_as_it_was(caplog):
    """MLflow's validation tells its progress at INFO; a verdict is told once, by us."""
    logger = logging.getLogger("mlflow.models.evaluation.validation")
    with caplog.at_level(logging.DEBUG, logger.name):
        outcomes(evidence(), rules=[Rule(metric="acc_test", at_least=0.5, at_most=0.6)])
        assert not caplog.records
        assert logger.level == logging.DEBUG


def test_what_was_not_measured_has_not_passed():
    record = evidence(gold=False)
    for rule in (Rule(metric="jsd", at_most=1), Rule(metric="acc_test", relative_to="gold", at_least=-1)):
        verdict = judge(record, Policy(rules=[rule], membership=None), signature=None)
        [check] = [check for check in verdict.checks if check.outcome == "not measured"]
        assert check.value == "–" and check.note
        assert not verdict.passed and verdict.word == "fail"


@pytest.mark.parametrize(
    ("low", "high", "word", "strict", "lenient"),
    [
        (0.45, 0.52, "indistinguishable", "pass", "pass"),
        (0.53, 0.60, "residual", "fail", "fail"),
        (0.38, 0.44, "over-forgotten", "fail", "fail"),
        (0.30, 0.70, "undecided", "fail", "pass"),
    ],
)
def test_membership_is_read_by_its_interval(low, high, word, strict, lenient):
    record = with_unlearned(mia_auc=(low + high) / 2, mia_auc_low=low, mia_auc_high=high)
    assert of_schema_1(record).metrics["unlearned"].membership == word
    assert outcomes(record, membership=AUC)["membership"] == strict
    accepting = {"accept": ["indistinguishable", "undecided"]}
    assert outcomes(record, membership=AUC | accepting)["membership"] == lenient


@pytest.mark.parametrize(
    ("values", "accept", "told"),
    [
        (
            {"mia_auc": 0.485, "mia_auc_low": 0.45, "mia_auc_high": 0.52},
            ["indistinguishable"],
            (
                "0.485 [0.450, 0.520]",
                "indistinguishable",
                "pass",
                "forgotten and unseen samples look alike to the attack",
            ),
        ),
        (
            {"mia_auc": 0.5656, "mia_auc_low": 0.5312, "mia_auc_high": 0.6},
            ["indistinguishable", "undecided"],
            ("0.566 [0.531, 0.600]", "indistinguishable or undecided", "fail", "the forget set is still recognised"),
        ),
    ],
)
def test_membership_as_it_is_told(values, accept, told):
    interval, threshold, outcome, note = told
    word = "indistinguishable" if outcome == "pass" else "residual"
    assert as_told(with_unlearned(**values), membership=AUC | {"accept": accept}) == [
        ("membership", f"{word}: {interval}", threshold, outcome, note)
    ]


def test_membership_that_was_not_measured_says_why():
    plain = evidence()
    for few, note in (
        (unmeasured(), UNMATCHED),
        (of_before(measured()), "mia_advantage was not measured"),
    ):
        record = plain.model_copy(update={"metrics": plain.metrics | {"unlearned": few}})
        assert as_told(record, membership={}) == [("membership", "–", "indistinguishable", "not measured", note)]
    record = plain.model_copy(update={"metrics": plain.metrics | {"unlearned": unmeasured()}})
    assert as_told(record, membership=AUC) == [("membership", "–", "indistinguishable", "not measured", UNMATCHED)]


RESIDUAL, OVER, WIDE, ALIKE = (0.6, 0.7), (0.3, 0.4), (0.35, 0.65), (0.46, 0.53)


def columns(before: tuple[float, float] | None, now: tuple[float, float]) -> dict[str, Measured]:
    """The two models by the ends of their intervals; None: not measured."""

    def of(ends: tuple[float, float] | None) -> Measured:
        found = measured(mia_auc=sum(ends) / 2, mia_auc_low=ends[0], mia_auc_high=ends[1]) if ends else unmeasured()
        return of_before(found)

    return {"original": of(before), "unlearned": of(now)}


@pytest.mark.parametrize(
    ("before", "now", "outcome"),
    [
        (ALIKE, ALIKE, "uninformative"),
        (WIDE, ALIKE, "uninformative"),
        (None, ALIKE, "uninformative"),
        (RESIDUAL, ALIKE, "pass"),
        (OVER, ALIKE, "pass"),
        (ALIKE, RESIDUAL, "fail"),
        (ALIKE, OVER, "fail"),
        (ALIKE, WIDE, "fail"),
        (RESIDUAL, RESIDUAL, "fail"),
    ],
)
def test_a_pass_that_tells_nothing_is_none(before, now, outcome):
    """Where the attack could not tell the original's forget set from unseen samples either, a pass is no evidence."""
    plain = evidence()
    record = plain.model_copy(update={"metrics": plain.metrics | columns(before, now)})
    verdict = judge(record, Policy(schema_version=1, rules=[], minimum={}), signature=None)
    [check] = verdict.checks
    assert check.outcome == outcome and verdict.passed is (outcome == "pass")
    alone = record.metrics["unlearned"].membership
    assert record.membership == ("uninformative" if outcome == "uninformative" else alone)
    assert ("the original already passed" in check.note) is (outcome == "uninformative")
    # By choice, and with the words of before, so that a review of then leads to the same outcomes.
    [accepted] = checks(record, membership=AUC | {"uninformative": "accept"})
    assert accepted.outcome == ("pass" if outcome == "uninformative" else outcome) and accepted.value == check.value


def test_the_requests_of_earlier_steps_need_not_be_told_apart_in_the_source():
    """The source has forgotten them: only its own requests have to be news, and the union is old and new."""
    own, earlier = "2026-11-20-withdrawal", "2026-08-01-licence"
    both = columns(ALIKE, ALIKE)
    record = evidence(
        requests=[request(earlier, metrics=both), request(own, metrics=both)], request_ids=[own], union=both
    )
    found = outcomes(record, membership=AUC)
    assert found[f"membership, request {own}"] == "uninformative"
    assert found[f"membership, request {earlier}"] == found["membership, everything forgotten"] == "pass"


def test_over_forgetting_cannot_be_accepted():
    with pytest.raises(ValueError, match="accept"):
        Policy(membership={"accept": ["over-forgotten"]})


def test_each_request_has_to_pass():
    record = sequence()
    found = outcomes(record, membership=AUC | {"accept": ["indistinguishable", "undecided"]})
    assert found["membership, request 2026-11-22-mislabelled"] == "not measured"
    assert found["membership, everything forgotten"] == "pass"
    assert set(outcomes(record, membership=AUC | {"each_request": False})) == {"membership"}


def test_requests_are_judged_by_their_own_figures():
    """The first one's interval is [0.440, 0.580], the second's [0.471, 0.544], the third has three samples."""
    assert [(rule, value) for rule, value, *_ in as_told(sequence(), membership=AUC)] == [
        ("membership", "indistinguishable: 0.507 [0.471, 0.544]"),
        ("membership, request 2026-08-01-licence", "undecided: 0.512 [0.440, 0.580]"),
        ("membership, request 2026-11-20-withdrawal", "indistinguishable: 0.507 [0.471, 0.544]"),
        ("membership, request 2026-11-22-mislabelled", "–"),
        ("membership, everything forgotten", "undecided: 0.512 [0.440, 0.580]"),
    ]


ALIKE_NOW, FEW = {}, {"mia_advantage": 0.12, "mia_advantage_null": 0.21}
SPREAD = {"mia_advantage": 0.2, "mia_margin_auc": 0.5}
UNDER = {"mia_advantage": 0.2, "mia_margin_auc": 0.4}


@pytest.mark.parametrize(
    ("before", "now", "word", "strict", "lenient"),
    [
        (APART, ALIKE_NOW, "indistinguishable", "pass", "pass"),
        (SPREAD, ALIKE_NOW, "indistinguishable", "pass", "pass"),
        (APART, APART, "residual", "fail", "fail"),
        (APART, UNDER, "over-forgotten", "fail", "fail"),
        (APART, SPREAD, "spread", "fail", "fail"),
        (APART, FEW, "undecided", "fail", "pass"),
        (ALIKE_NOW, ALIKE_NOW, "indistinguishable", "uninformative", "uninformative"),
        (FEW, ALIKE_NOW, "indistinguishable", "uninformative", "uninformative"),
        (FEW, FEW, "undecided", "fail", "pass"),
    ],
)
def test_membership_by_the_advantage(before, now, word, strict, lenient):
    """Alone it is all that was forgotten; one of several requests may be undecided, and so is its original."""
    both = {"original": measured(**before), "unlearned": measured(**now)}
    plain = evidence()
    record = plain.model_copy(update={"metrics": plain.metrics | both})
    [check] = checks(record, membership={})
    assert (check.outcome, check.threshold) == (strict, "indistinguishable")
    assert check.value == f"{word}: {both['unlearned'].values['mia_advantage']:.3f}, by chance up to " + (
        "0.210" if now is FEW else "0.081"
    )
    own, earlier = "2026-11-20-withdrawal", "2026-08-01-licence"
    decided = {"original": measured(**APART), "unlearned": measured()}
    requests = [request(earlier, metrics=decided), request(own, metrics=both)]
    chain = record.model_copy(update={"requests": requests, "request_ids": [own], "union": decided})
    found = outcomes(chain, membership={})
    assert found["membership"] == found[f"membership, request {own}"] == lenient
    assert found["membership, everything forgotten"] == "pass"
    undecided = chain.model_copy(update={"union": {"unlearned": measured(**FEW)}})
    assert outcomes(undecided, membership={})["membership, everything forgotten"] == "fail"


def test_undecided_says_how_many_samples_would_decide():
    [check] = checks(with_unlearned(**FEW), membership={})
    assert check.note == (
        "too few samples to tell; a larger forget or test set would; about 1492 forgotten samples would do"
    )
    plain = measured(**FEW)
    bare = plain.model_copy(update={"counts": {}})
    record = evidence().model_copy(update={"metrics": evidence().metrics | {"unlearned": bare}})
    assert checks(record, membership={})[0].note == "too few samples to tell; a larger forget or test set would"


@pytest.mark.parametrize(
    ("kind", "outcome", "note"),
    [
        (True, "pass", ""),
        (False, "fail", "; matched by class only: the null takes forgotten samples to be drawn as unseen ones were"),
        (None, "not measured", "; how the samples were chosen is not recorded"),
    ],
)
def test_samples_that_were_not_drawn_as_unseen_ones(kind, outcome, note):
    """A group or a list passes with a note, and not where the policy wants them drawn alike."""
    record = evidence(requests=[request("2026-11-20-withdrawal", exchangeable=kind)])
    [refused] = checks(record, membership={"exchangeable": "required"})
    assert refused.outcome == outcome and refused.note.endswith(note)
    [noted] = checks(record, membership={})
    assert noted.outcome == "pass" and ("matched by class only" in noted.note) is (kind is False)
    assert record.matched_by_class_only is (kind is False)


def test_a_forget_set_of_one_sample():
    plain = evidence()
    record = plain.model_copy(update={"metrics": plain.metrics | {"unlearned": unmeasured()}})
    found = judge(record, Policy(), signature=None)
    assert {check.rule: check.outcome for check in found.checks}["membership"] == "not measured"
    assert "nan" not in found.model_dump_json().lower()


def test_rules_for_wholly_forgotten_classes():
    plain = measured(acc_test_forgotten=0.2)
    rule = Rule(metric="acc_test_forgotten", at_most=0.05, when="classes")
    assert outcomes(evidence(), rules=[rule]) == {}
    whole = plain.model_copy(update={"counts": plain.counts | {"wholly_forgotten_classes": 1}})
    record = evidence().model_copy(update={"metrics": evidence().metrics | {"unlearned": whole}})
    assert outcomes(record, rules=[rule]) == {"acc_test_forgotten": "fail"}


def test_sizes():
    assert outcomes(evidence(), minimum={"forget": 420, "test": 901}) == {
        "samples, forget set": "pass",
        "samples, test set": "fail",
    }
    assert as_told(evidence(), minimum={"retain": 2581, "val": 300}) == [
        ("samples, retain set", "2580", "≥ 2581", "fail", ""),
        ("samples, val set", "300", "≥ 300", "pass", ""),
    ]


ANOTHER = request("2026-08-01-licence", reason=None, requester=None, run_id=evidence().run.id)


@pytest.mark.parametrize(
    ("name", "note", "good", "bad"),
    [
        ("gold", "measured beside a model retrained without the forget set", evidence(), evidence(gold=False)),
        (
            "reason",
            "every request says why",
            evidence(),
            evidence(requests=[request("2026-11-20-withdrawal", reason=None)]),
        ),
        (
            "requester",
            "every request says who asks",
            evidence(),
            evidence(requests=[request("2026-11-20-withdrawal", requester=None)]),
        ),
        (
            "filed_request",
            "every request was filed with `request`",
            evidence(),
            evidence(requests=[request("2026-11-20-withdrawal", run_id=evidence().run.id)]),
        ),
        (
            "clean_commit",
            "made by a committed state of this code",
            evidence(system={"unlearn.git.dirty": "false"}),
            evidence(),
        ),
        (
            "clean_commit",
            "made by a committed state of this code",
            evidence(system={"unlearn.git.dirty": "false"}),
            evidence(system={}),
        ),
        ("no_code", "loading the source version ran no code of its own", evidence(), sequence()),
        ("no_pickle", "loading the source version ran no code of its own", evidence(), sequence()),
        ("no_frozen_layers", "every layer was trained", evidence(), sequence()),
    ],
)
def test_required_evidence(name, note, good, bad):
    assert as_told(good, required=[name]) == [(f"required: {name}", "true", "true", "pass", note)]
    assert as_told(bad, required=[name]) == [(f"required: {name}", "false", "true", "fail", note)]


@pytest.mark.parametrize("name", ["reason", "requester", "filed_request"])
def test_only_the_versions_own_requests_are_asked_for(name):
    """An earlier version carried out another one, which lacks it all; its own evidence says so."""
    assert outcomes(evidence(requests=[ANOTHER, *evidence().requests]), required=[name]) == {
        f"required: {name}": "pass"
    }


OURS, THEIRS = f"sha256:{'a' * 64}", f"sha256:{'b' * 64}"
FOREIGN = f"signed with the key {THEIRS}, which the policy does not name"


@pytest.mark.parametrize(
    ("signature", "signers", "outcome", "note"),
    [
        (None, [], "fail", "the evidence is unsigned"),
        (None, [OURS], "fail", "the evidence is unsigned"),
        (Signature(OURS, broken="changed"), [OURS], "fail", "the signature does not hold: changed"),
        (
            Signature(),
            [OURS],
            "not measured",
            "the evidence is signed, and does not name its key: give it to check (--key)",
        ),
        (Signature(OURS), [THEIRS, OURS], "pass", f"signed with the key {OURS}"),
        (Signature(THEIRS), [OURS], "fail", FOREIGN),
        # The policy's word counts, whatever key the caller gives.
        (
            Signature(THEIRS, given=True),
            [OURS],
            "fail",
            FOREIGN,
        ),
        (Signature(OURS, given=True), [], "pass", f"signed with the given key {OURS}"),
        (
            Signature(THEIRS),
            [],
            "not measured",
            f"signed with the key {THEIRS}; signers: in the policy, or --key, says which keys to trust",
        ),
    ],
)
def test_a_signature_counts_by_a_key_that_someone_trusts(signature, signers, outcome, note):
    value = {"pass": "true", "fail": "false", "not measured": "–"}[outcome]
    [check] = checks(evidence(), signature, required=["signature"], signers=signers)
    assert tuple(check.model_dump().values()) == ("required: signature", value, "true", outcome, note)


def test_a_failed_check_is_explained():
    [check] = checks(evidence(), Signature(THEIRS), required=["signature"], signers=[OURS])
    assert str(check) == (f"required: signature is false, but must be true (fail: {FOREIGN})")
    verdict = Verdict(policy="p", policy_sha256="", checks=[])
    assert not verdict.passed and verdict.failures == "none of its rules applies to this version"


def test_a_verdict_names_its_policy():
    """Rules first, then membership, sizes, and what is required: one check a line."""
    policy = Policy(name="ours", required=["gold"])
    verdict = judge(evidence(), policy, signature=None)
    assert (verdict.policy, verdict.policy_sha256) == ("ours", policy.sha256)
    assert [check.rule for check in verdict.checks] == [
        "acc_test − original's",
        "acc_retain − original's",
        "membership",
        "samples, forget set",
        "samples, test set",
        "required: gold",
    ]


def test_a_verdict_passes_where_every_check_does_and_there_are_some():
    good = Check(rule="a", value="1", threshold="≥ 1", outcome="pass")
    bad, unknown = (good.model_copy(update={"outcome": outcome}) for outcome in ("fail", "not measured"))
    for found, passed in (([good], True), ([good, bad], False), ([unknown, good], False), ([], False)):
        verdict = Verdict(policy="default", policy_sha256="", checks=found)
        assert verdict.passed is passed and verdict.word == ("pass" if passed else "fail")


class TestTheFile:
    @pytest.fixture
    def policy(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)

        def write(content):
            tmp_path.joinpath("policy.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
            return read_policy("policy.yaml")

        return write

    def test_without_one_the_defaults_apply(self):
        assert read_policy(None) == Policy()

    def test_what_it_leaves_out_is_as_by_default(self, policy):
        assert policy("name: Prüfung\ntwo_person: true") == Policy(name="Prüfung", two_person=True)

    def test_none_there(self, policy):
        with pytest.raises(UnlearnError) as error:
            read_policy("none.yaml")
        assert str(error.value) == "the policy 'none.yaml' cannot be read (No such file or directory): give a YAML file"

    @pytest.mark.parametrize("content", ["- 1", "", "default"])
    def test_one_without_names(self, content, policy):
        with pytest.raises(UnlearnError) as error:
            policy(content)
        assert str(error.value) == (
            "the policy 'policy.yaml' holds no names with values, such as rules: or two_person: true"
        )

    @pytest.mark.parametrize(
        ("content", "what"),
        [
            ("two_person: perhaps\nname: 1", "name = 1: Input should be a valid string"),
            ("minimum: {forget: 0}", "minimum.forget = 0: Input should be greater than or equal to 1"),
            ("two_persons: true", "two_persons = True: there is no such key; did you mean 'two_person'?"),
            (
                "rules: [{metric: acc_test, at_mst: 1}]",
                "rules.0.at_mst = 1: there is no such key; did you mean 'at_most'?",
            ),
            (
                "membership: {each_req: 1}",
                "membership.each_req = 1: there is no such key; did you mean 'each_request'?",
            ),
            (
                "membership: {attack: mia_auc, exchangeable: required}",
                "membership: exchangeable goes with attack: mia_advantage, not with mia_auc",
            ),
            (
                "{schema_version: 1, membership: {attack: mia_advantage}}",
                "schema 1 knows no mia_advantage: write schema_version: 2",
            ),
            (
                "{schema_version: 2, membership: {attack: mia_auc}}",
                "by schema 2 mia_advantage decides: write schema_version: 1 to keep mia_auc",
            ),
            ("must: 1", "must = 1: there is no such key; did you mean 'at_most'?"),
            ("zzz: 1", "zzz = 1: there is no such key"),
            (
                "rules: [{metric: acc_test}]",
                "rules.0: the rule on acc_test has no bound: give at_least or at_most",
            ),
            (
                "rules: [{metric: acc_test, at_least: 1, at_most: 0}]",
                "rules.0: the rule on acc_test can never pass: at_least is above at_most",
            ),
            (
                "rules: [{metric: acc_tset, at_most: 1}]",
                "rules.0.metric: there is no metric 'acc_tset'; did you mean 'acc_test'? The metrics are: "
                + ", ".join(KEYS),
            ),
            (
                "rules: [{metric: zzz, at_most: 1}]",
                f"rules.0.metric: there is no metric 'zzz'. The metrics are: {', '.join(KEYS)}",
            ),
        ],
    )
    def test_one_that_cannot_be_used(self, content, what, policy):
        with pytest.raises(UnlearnError) as error:
            policy(content)
        assert str(error.value) == f"the policy 'policy.yaml' is not usable: {what}"

    @pytest.mark.parametrize(
        "content",
        ["rules: []\nmembership: null\nminimum: {}", "{rules: [], membership: null, minimum: {}, approvers: [ann]}"],
    )
    def test_one_that_judges_nothing(self, content, policy):
        with pytest.raises(UnlearnError) as error:
            policy(content)
        assert str(error.value) == (
            "the policy 'policy.yaml' judges nothing: give it at least one of rules, membership, minimum, audit, "
            "required"
        )
        for more in ({"membership": {}}, {"minimum": {"test": 1}}, {"required": ["gold"]}):
            policy(yaml.safe_dump({"rules": [], "membership": None, "minimum": {}} | more))

    def test_its_texts_are_stored_without_passwords(self, policy, monkeypatch):
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "admin")
        read = policy("{name: 'postgresql://me:secret@db/x', approvers: ['mysql://u:secret@h', admin]}")
        assert (read.name, read.approvers) == ("postgresql://me:***@db/x", ["mysql://u:***@h", "admin"])

    def test_signers_in_three_spellings_are_one_policy(self, policy, keys, tmp_path):
        (tmp_path / "keys").mkdir()
        (tmp_path / "keys" / "ours.pub").write_bytes((keys / "ours.pub").read_bytes())
        pem = (keys / "ours.pub").read_text()
        found = fingerprint(pem.encode())
        spelled = [policy(yaml.safe_dump({"required": ["signature"], "signers": [s]})) for s in
                   ("keys/ours.pub", pem, found, found.upper().replace("SHA256", "sha256"))]  # fmt: skip
        assert {one.sha256 for one in spelled} == {spelled[0].sha256} and spelled[0].signers == [found]
        # What is stored needs no file.
        assert Policy.model_validate_json(spelled[0].model_dump_json()) == spelled[0]

    @pytest.mark.parametrize("signer", ["none.pub", "sha256:12", "-----BEGIN PUBLIC KEY-----\nx\n"])
    def test_a_signer_that_is_no_key(self, policy, signer):
        with pytest.raises(UnlearnError, match="signers: .* is not a public EC key .*: give PEM, a PEM file's path"):
            policy(yaml.safe_dump({"required": ["signature"], "signers": [signer]}))

    def test_signers_without_a_required_signature(self, policy):
        with pytest.raises(UnlearnError, match="names signers and requires no signature: add it to required"):
            policy(yaml.safe_dump({"signers": [f"sha256:{'a' * 64}"]}))

    @pytest.mark.parametrize("content", ["name: a\n b: [c", b"name: \xff\xfe", "name: \0"])
    def test_one_that_is_no_yaml(self, content, policy):
        with pytest.raises(UnlearnError, match="^the policy 'policy.yaml' is not YAML: [a-z']"):
            policy(content)

    def test_yamls_own_words_stand_on_one_line(self, policy):
        with pytest.raises(UnlearnError) as error:
            policy("name: a\n b: [c")
        expected = "the policy 'policy.yaml' is not YAML: line 2, column 3: mapping values are not allowed here"
        assert str(error.value) == expected


def test_the_same_policy_has_one_digest():
    assert Policy().sha256 == Policy(name="default", rules=Policy().rules).sha256
    assert Policy().sha256 != Policy(two_person=True).sha256


def test_every_metric_may_have_a_rule():
    for key in KEYS:
        Rule(metric=key, at_most=1)


SHA256_OF_SCHEMA_1 = "029e5058f1dd4ca08f80e6c22eb5cc963e24534bc78d2a65a0f0b96c13d78ba4"


class TestSchema1:
    """Policies that were written before ``mia_advantage`` was measured decide by what they decided by."""

    def test_it_is_dumped_and_digested_as_it_was(self):
        """Reviews store both, and `promote` compares the digest: that of the default policy before schema 2."""
        before = Policy(schema_version=1)
        assert [rule.at_least for rule in before.rules] == [-0.01, -0.02, None] != [r.at_least for r in Policy().rules]
        assert before.membership.model_dump() == {
            "attack": "mia_auc",
            "accept": ["indistinguishable"],
            "each_request": True,
            "uninformative": "fail",
        }
        assert before.sha256 == SHA256_OF_SCHEMA_1
        assert Policy.model_validate_json(before.model_dump_json()) == before

    @pytest.mark.parametrize("content", ["schema_version: 1", "membership: {attack: mia_auc}"])
    def test_a_file_says_so(self, content, tmp_path):
        (tmp_path / "policy.yaml").write_text(content)
        assert read_policy(str(tmp_path / "policy.yaml")) == Policy(schema_version=1)

    def test_another_one_is_not_called_like_the_built_in_one(self, tmp_path):
        for content, name in (("name: default", "default"), ("required: [reason]", "own.yaml"),
                              ("name: default\nrequired: [reason]", "own.yaml"), ("name: ours", "ours")):  # fmt: skip
            (tmp_path / "own.yaml").write_text(content)
            assert read_policy(str(tmp_path / "own.yaml")).name == name

    def test_one_that_says_nothing_has_the_schema_of_the_evidence(self, tmp_path):
        (tmp_path / "policy.yaml").write_text("name: ours")
        path, plain = str(tmp_path / "policy.yaml"), evidence()
        assert read_policy(path, schema=plain.policy_schema).membership.attack == "mia_advantage"
        before = {key: n for key, n in plain.definitions.items() if not key.startswith("mia_advantage")}
        old = plain.model_copy(update={"definitions": before})
        for given in (path, None):
            assert read_policy(given, schema=old.policy_schema).membership.attack == "mia_auc"

    def test_what_it_accepts_it_accepts_of_each(self):
        lenient = Policy(membership=AUC | {"accept": ["undecided"]}).membership
        assert lenient.accept_each == ["undecided"] and "accept_each" not in lenient.model_dump()


def test_the_documented_default_policy():
    """The YAML in docs/governance.md is what applies without a file."""
    text = (PROJECT / "docs" / "governance.md").read_text().split("```yaml\n")[1].split("```")[0]
    assert Policy.model_validate(yaml.safe_load(text)) == Policy()


def test_the_record_survives_its_file():
    record = sequence()
    assert Evidence.model_validate_json(record.to_json()) == record
    with pytest.raises(ValueError):
        Evidence.model_validate_json(record.to_json().replace('"limits"', '"limitations"'))
