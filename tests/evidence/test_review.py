"""The record of a review."""

import json

import records

from mlflow_unlearn.evidence.policy import Policy, judge
from mlflow_unlearn.evidence.review import TAG, ReviewRecord, numbers


def test_reviews_are_counted_by_the_tags_of_the_version():
    tags = [f"{TAG}1", f"{TAG}12", f"{TAG}0", f"{TAG}07", f"{TAG}x", f"{TAG}", "unlearn.verdict", "other.review.3"]
    assert sorted(numbers(tags)) == [1, 12]
    assert numbers([]) == []


def test_it_survives_its_file():
    evidence = records.evidence()
    review = ReviewRecord(
        n=3,
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
