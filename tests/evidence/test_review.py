"""The record of a review."""

import json

import pytest
import records

from mlflow_unlearn.evidence.policy import Policy, judge
from mlflow_unlearn.evidence.review import HEAD_TAG, TAG, VERDICT_TAG, Head, ReviewRecord, numbers, read_chain

A, B, C = ("a" * 64, "b" * 64, "c" * 64)


def test_reviews_are_counted_by_the_tags_of_the_version():
    tags = [f"{TAG}1", f"{TAG}12", f"{TAG}0", f"{TAG}07", f"{TAG}x", f"{TAG}", "unlearn.verdict", "other.review.3"]
    assert sorted(numbers(tags)) == [1, 12]
    assert numbers([]) == []


def test_it_survives_its_file():
    evidence = records.evidence()
    review = ReviewRecord(
        n=3,
        previous=Head(n=2, sha256=B),
        at="2026-11-25T04:12:33+00:00",
        by=records.ANN,
        name="digits",
        version="4",
        weights_sha256=evidence.result.weights_sha256,
        evidence_sha256=evidence.sha256,
        policy=Policy(),
        verdict=records.verdict(evidence),
    )
    assert ReviewRecord.model_validate_json(review.to_json()) == review
    assert review.file == "evidence/review-3.json"


def entry(sha256: str, verdict: str = "pass", **more: str) -> str:
    return json.dumps({"run_id": f"run {sha256[0]}", "sha256": sha256, "verdict": verdict, **more})


WHOLE = {
    f"{TAG}1": entry(A, previous=""),
    f"{TAG}2": entry(B, previous=A),
    f"{TAG}3": entry(C, "fail", previous=B),
    HEAD_TAG: f"3 {C}",
    VERDICT_TAG: "fail",
}
EARLIER = {f"{TAG}1": entry(A, "fail"), f"{TAG}2": entry(B), VERDICT_TAG: "pass"}


def test_a_whole_chain():
    chain = read_chain(WHOLE)
    assert (chain.problems, chain.begun, list(chain.entries)) == ((), None, [1, 2, 3])
    assert chain.last.verdict == "fail" and chain.head == Head(n=3, sha256=C)
    assert read_chain({}).head == Head() and read_chain({}).problems == () and read_chain({}).last is None


def test_reviews_of_earlier_releases_are_where_it_begins():
    assert read_chain(EARLIER).problems == () and read_chain(EARLIER).head == Head(n=2, sha256=B)
    chain = read_chain({**EARLIER, f"{TAG}3": entry(C, previous=B), HEAD_TAG: f"3 {C}"})
    assert chain.problems == () and chain.last.n == 3


def test_one_that_was_interrupted_does_not_count():
    """Its tag is written before the head's; the next review takes its number."""
    for tags in (WHOLE | {HEAD_TAG: f"2 {B}"}, {**EARLIER, f"{TAG}3": entry(C, "fail", previous=B)}):
        for verdict in ("pass", "fail"):  # of the one before, or already its own
            chain = read_chain(tags | {VERDICT_TAG: verdict})
            assert (chain.problems, chain.begun.n, chain.last.n, chain.head) == ((), 3, 2, Head(n=2, sha256=B))
    first = read_chain({f"{TAG}1": entry(A, previous="")})
    assert (first.problems, first.begun.n, first.last, first.head) == ((), 1, None, Head())


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({f"{TAG}3": None}, "review 3 is missing"),
        ({f"{TAG}2": None}, "review 2 is missing"),
        ({f"{TAG}1": None}, "review 1 is missing"),
        ({f"{TAG}3": None, HEAD_TAG: None}, "review 2 is not the one"),
        ({HEAD_TAG: None}, "is not the one that unlearn.reviews names as the last"),
        ({HEAD_TAG: f"1 {A}"}, "review 3 is not the one that unlearn.reviews names as the last"),
        ({HEAD_TAG: f"3 {B}"}, "review 3 is not the one that unlearn.reviews names"),
        ({HEAD_TAG: f"999999999 {B}"}, "review 4 is missing"),
        ({HEAD_TAG: "3"}, "does not name a review"),
        ({f"{TAG}4": entry(A, previous=A)}, "review 4 is not the one"),
        ({f"{TAG}2": entry(A, previous=A)}, "review 3 does not follow review 2"),
        ({f"{TAG}3": entry(B, previous=B)}, "review 3 is not the one that unlearn.reviews names"),
        ({f"{TAG}3": entry(C, "fail")}, "review 3 does not follow review 2"),
        ({f"{TAG}1": entry(A, previous=B)}, "review 1 does not follow review 0"),
        ({f"{TAG}3": entry(C, "pass", previous=B)}, "unlearn.verdict says fail"),
        ({VERDICT_TAG: None}, "unlearn.verdict says None"),
        ({f"{TAG}2": "{"}, "the tag of review 2 cannot be read"),
        ({f"{TAG}2": "[]"}, "the tag of review 2 cannot be read"),
        ({f"{TAG}2": '{"run_id": "r"}'}, "the tag of review 2 cannot be read"),
    ],
)
def test_what_was_deleted_or_changed(changes, problem):
    tags = {key: value for key, value in (WHOLE | changes).items() if value is not None}
    assert problem in "; ".join(read_chain(tags).problems)


def test_what_the_runs_say_and_the_version_does_not():
    runs = {f"run {sha[0]}": {HEAD_TAG: f"{n} {sha}", VERDICT_TAG: "pass"} for n, sha in ((1, A), (2, B))}
    runs["run c"] = {HEAD_TAG: f"3 {C}", VERDICT_TAG: "fail"}
    assert [*read_chain(WHOLE).missing(runs)] == []
    assert [*read_chain(WHOLE).missing({})] == []
    rest = {key: value for key, value in WHOLE.items() if key != f"{TAG}3"} | {HEAD_TAG: f"2 {B}", VERDICT_TAG: "pass"}
    assert read_chain(rest).problems == (), "by itself, this is a whole chain"
    assert [*read_chain(rest).missing(runs)] == [f"the review that run run c recorded as number '3 {'c' * 18}' is not "
                                                 "among them"]  # fmt: skip
    assert len([*read_chain({}).missing(runs)]) == 3
    fork = {"another": {HEAD_TAG: f"3 {A}", VERDICT_TAG: "fail"}}
    assert "run another recorded" in [*read_chain(WHOLE).missing(fork)][0]
    lied = {"run c": {HEAD_TAG: f"3 {C}", VERDICT_TAG: "pass"}}
    assert [*read_chain(WHOLE).missing(lied)] == ["review 3 says fail, and its run run c says pass"]


def test_a_policy_of_an_earlier_release_means_what_it_meant():
    """It did not ask who is authenticated, and took a pass that tells nothing for one."""
    alike = records.measured()
    evidence = records.evidence(metrics={"original": alike, "unlearned": alike})
    today = judge(evidence, Policy(minimum={}, rules=[]), signature=None)
    assert not today.passed
    values = {"n": 1, "at": "", "by": records.ANN.model_dump(), "name": "digits", "version": "4"}
    values |= {"weights_sha256": "", "evidence_sha256": "", "verdict": today.model_dump()}
    old = {"name": "of then", "rules": [], "minimum": {}, "approvers": ["bob"], "two_person": True}
    old["membership"] = {"attack": "mia_auc", "accept": ["indistinguishable"], "each_request": True}
    review = ReviewRecord.model_validate_json(json.dumps(values | {"policy": old}))
    assert not review.policy.authenticated and review.policy.membership.uninformative == "accept"
    assert judge(evidence, review.policy, signature=None).passed
    assert ReviewRecord.model_validate_json(review.to_json()) == review
    empty = {"rules": [], "membership": None, "minimum": {}}
    assert ReviewRecord.model_validate_json(json.dumps(values | {"policy": empty})).policy.membership is None
