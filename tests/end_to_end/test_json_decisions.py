"""`--format json` of the commands that decide, which take the verdict along where they refuse."""

import json

import pytest
from answers import V1, V3, V4, answer
from chains import tagged


@pytest.mark.slow
def test_review_then_promote(chain):
    refused = answer("promote", *V3, code=3)
    assert refused["error"]["kind"] == "refused" and refused["result"]["promotion"] is None
    [objection] = refused["result"]["objections"]
    assert objection in refused["error"]["message"]
    failed = answer("review", *V3, "--policy", "strict.yaml", code=3)
    assert failed["error"]["kind"] == "refused" and not failed["result"]["passed"]
    rules = [check for check in failed["result"]["verdict"]["checks"] if check["outcome"] != "pass"]
    assert rules and all(f"{rule['rule']} is {rule['value']}" in failed["error"]["message"] for rule in rules)
    passed = answer("review", *V3, "--policy", "lenient.yaml")["result"]
    assert passed["passed"] and passed["review"]["n"] == failed["result"]["review"]["n"] + 1
    assert {check["outcome"] for check in passed["verdict"]["checks"]} == {"pass"}
    promoted = answer("promote", *V3)["result"]
    assert promoted["promotion"]["review"] == passed["review"]["n"] and promoted["objections"] == []
    assert json.loads(chain.tags("3")["unlearn.promotion.champion"]) == promoted["promotion"]


def test_verify(chain):
    agrees = answer("verify", *V4)["result"]
    assert agrees["agrees"] and {one["outcome"] for one in agrees["findings"]} <= {"same", "not checked"}
    with tagged(chain, "4", unlearn__method="other"):
        differs = answer("verify", *V4, code=3)
    [one] = [one for one in differs["result"]["findings"] if one["outcome"] == "differs"]
    assert not differs["result"]["agrees"] and one["message"] in differs["error"]["message"]


def test_exposure(chain):
    found = answer("exposure", *V1)["result"]
    states = {place["uri"]: place["state"] for place in found["places"]}
    assert states["models:/clf/1"] == "contains" and states["models:/clf/2"] == "unlearned"
    assert found["looked_for"] == 20 and found["runs"] and found["unanswered"] is None
