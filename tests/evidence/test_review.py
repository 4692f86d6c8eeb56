"""The record of a review."""

import records

from mlflow_unlearn.evidence.policy import Policy
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
