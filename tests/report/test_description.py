"""The description of a version and its tags for people: a reviewer's questions in their order."""

import re
from dataclasses import replace

import pytest
import records

from mlflow_unlearn.evidence.record import RunRecord
from mlflow_unlearn.evidence.review import ReviewEntry
from mlflow_unlearn.report.card import model_card
from mlflow_unlearn.report.description import describe, described, people_tags, worded

REVIEW = ReviewEntry(
    n=2, run_id="ab12", sha256="", verdict="fail", previous="", policy="*team*", by="ravi", at="2026-11-27T08:00:00"
)


@pytest.fixture(scope="module", params=["one", "sequence"])
def record(request):
    return records.evidence() if request.param == "one" else records.sequence()


def test_it_has_what_a_reviewer_asks_in_that_order(record):
    text = describe(record)
    asked = (
        "**What now:** ",
        "**What was asked:** ",
        "**By whom:** ",
        "**How sure:** ",
        "**What it cost:** ",
        "**Report:** ",
    )
    order = [text.index(question) for question in asked]
    assert order == sorted(order) and text.startswith(("**PASS** by the default", "**FAIL** by the default"))
    assert record.source.uri in text and "**lotus**" in text and "alpha = 8.0" in text and "seed = 0" in text
    assert "Membership: " in text and record.limits in text
    assert all(f"`{request_id}`" in text for request_id in record.request_ids)


def test_each_answer_of_one_request():
    lines = describe(records.evidence()).splitlines()
    assert lines[0] == (
        "**PASS** by the default policy; advisory, not reviewed yet. **What now:** `mlflow-unlearn review --model-uri "
        "models:/digits/4` judges it."
    )
    assert lines[2:7] == [
        "- **What was asked:** forget 420 samples of `models:/digits/3`; reason: Withdrawal of consent under article "
        "17 GDPR",
        "- **By whom:** Data protection officer, on behalf of 14 participants; filed by ann@example.org, 2026-11-20 "
        "(request `2026-11-20-withdrawal`)",
        "- **How sure:** Membership: indistinguishable: forgotten and unseen samples look alike to the attack; "
        "advantage 0.061 &#40;by chance up to 0.081&#41;; before 0.221 &#40;by chance up to 0.081&#41;",
        "- **What it cost:** test accuracy 0.9556 → 0.9511 (−0.0045); 13.4 s of unlearning",
        "- **Report:** [report.html](#/experiments/7/runs/9c0f2b7be6f84d2a8d1e/artifacts/evidence/report.html), also "
        "under *Source Run*, *Artifacts*, *evidence*",
    ]


def test_what_failed_stands_beside_the_verdict():
    first = describe(records.sequence()).partition("\n")[0]
    assert first.startswith("**FAIL** by the default policy; advisory, not reviewed yet. membership, request")


def test_a_review_changes_the_first_paragraph_alone(record):
    (first, rest), (before, as_it_was) = (
        text.split("\n\n", 1) for text in (described(record, REVIEW), describe(record))
    )
    told = "**FAIL** by the policy &#42;team&#42;: review 2, by ravi, 2026-11-27 ([its run and report](#/runs/ab12)). "
    now = f"`mlflow-unlearn review --model-uri {record.result.uri}` lists what can be done about it."
    assert first == f"{told}**What now:** {now}" and rest == as_it_was and first != before


def test_after_a_pass_it_is_put_into_use():
    first = described(records.evidence(), replace(REVIEW, verdict="pass")).partition("\n")[0]
    assert first.endswith("**What now:** `mlflow-unlearn promote --model-uri models:/digits/4` puts it into use.")


def test_the_spec_of_a_request_is_named_and_one_sample_is_one():
    one = records.request("r", forget="group:customer=…", samples=1)
    record = worded(records.evidence(requests=[one], request_ids=["r"]))
    assert "forget 1 sample of `models:/digits/3`, `group:customer=…`; reason" in describe(record)
    assert "1 sample of `models:/digits/3` (group:customer=…), filed" in model_card(record)
    # Made by an earlier release, which kept no digests of its texts: its words stay as they were.
    assert "1 samples of `models:/digits/3`" in model_card(record.model_copy(update={"texts": None}))


def test_the_tags_for_people_come_first_by_name(record):
    tags = people_tags(record, None)
    assert sorted([*record.tags(), *tags])[: len(tags)] == sorted(tags)
    assert list(tags) == ["unlearn-asked-by", "unlearn-reason", "unlearn-result", "unlearn-verdict"]
    assert tags["unlearn-verdict"].startswith(("PASS by the default", "FAIL by the default"))
    assert tags["unlearn-result"] == (
        "indistinguishable, advantage 0.061 (by chance up to 0.081); test accuracy 0.9556 → 0.9511 (−0.0045)"
    )
    reviewed = people_tags(record, REVIEW)
    assert reviewed.pop("unlearn-verdict") == "FAIL by the policy *team*: review 2, by ravi, 2026-11-27"
    assert reviewed == {name: value for name, value in tags.items() if name != "unlearn-verdict"}


def test_records_of_earlier_releases_have_none():
    assert people_tags(records.evidence(run=RunRecord(id="9c0f", config_sha256="0")), None) == {}


def test_what_users_typed_is_short_and_text():
    """A long reason, a name with markup, one that turns text around; and a model's name with backticks."""
    long = records.request("r", reason="y" * 6000, requester="<b>*me*</b> \u202e[x](y)", of="models:/a`b/1")
    record = records.evidence(requests=[long], request_ids=["r"])
    text, tags = describe(record), people_tags(record, None)
    assert "y" * 199 + "…" in text and "y" * 201 not in text and len(text) < 5000
    assert "&#60;b&#62;&#42;me&#42;&#60;/b&#62; &#91;x&#93;&#40;y&#41;" in text and "\u202e" not in text
    assert "`` models:/a`b/1 ``" in text
    assert all(len(value) <= 500 and "\n" not in value for value in tags.values())


def test_of_many_requests_some_are_counted():
    many = [records.request(f"r{n}") for n in range(5)]
    text = describe(records.evidence(requests=many, request_ids=[one.id for one in many]))
    assert text.count("**What was asked:**") == 3 and "**Asked as well:** 2 more requests" in text


def test_a_claim_of_exactness_is_part_of_how_sure_it_is():
    [line] = re.findall(r"^- \*\*How sure:.*$", describe(records.exact()), re.M)
    assert line.startswith("- **How sure:** exact, as far as stated below. Membership: ")
