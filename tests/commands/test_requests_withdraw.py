"""`requests --withdraw`: a pending request is taken back, and stays on record."""

import json

import pytest
from chains import QUICK
from stores import call

from mlflow_unlearn.registry.forget_requests import WITHDRAWN_TAG, ForgetRequest, mark_done

CLF = ("--model-uri", "models:/clf/1")
SOME = ("--forget", "random:20,seed=1")


def filed(*options: str) -> str:
    done = call("request", *CLF, *SOME, *options, "--format", "json")
    assert done.code == 0, done.err
    return json.loads(done.out)["result"]["requests"][0]["request_id"]


def taken_back(request: str, *options: str):
    return call("requests", "--withdraw", request, *options)


def test_it_is_recorded_and_nothing_is_unlearned(store):
    request = filed("--reason", "GDPR")
    done = taken_back(request, "--reason", "the customer has changed their mind")
    assert done.code == 0 and f"Request {request} on models:/clf/1 is withdrawn" in done.out, done.err
    [(state, details)] = store.requests().values()
    assert state == "withdrawn" and set(details["withdrawn"]) == {"by", "at", "reason"}
    assert details["withdrawn"]["reason"] == "the customer has changed their mind"
    run = store.client.get_run(details["run_id"])
    assert json.loads(run.data.tags[WITHDRAWN_TAG]) == details["withdrawn"]
    nothing = call("unlearn", *CLF, "--params", QUICK)
    assert nothing.code == 2 and "has no pending forget request" in nothing.err and store.versions() == ["1"]
    for arguments in (("requests", "--state", "all"), ("requests", "--case", request)):
        shown = call(*arguments)
        assert shown.code == 0 and "withdrawn" in shown.out, shown.err
    assert "No forget request here" in call("requests").out
    case = json.loads(call("requests", "--case", request, "--format", "json").out)["result"]["case"]
    assert "the customer has changed" in case["requests"][0]["withdrawn"]
    assert call("locate", *SOME[:1], f"request:{request}").code == 0
    written = call("dossier", "--request", request, "--output", "case.zip")
    assert written.code == 0 and "was not carried out" not in written.out, written.err
    assert call("dossier", "--verify", "case.zip").code == 0


@pytest.mark.slow
def test_the_same_is_asked_for_once_more(store):
    """As a trial: the version's evidence and the request's tag name the same run and file."""
    request = filed()
    assert taken_back(request).code == 0
    assert call("unlearn", *CLF, *SOME, "--params", QUICK).code == 0
    [(state, details)] = store.requests().values()
    assert state == "done" and "withdrawn" not in details and details["ad_hoc"]
    shown = call("requests", "--case", request)
    assert shown.code == 0 and "do not agree" not in shown.out, shown.out
    assert call("verify", "--model-uri", "models:/clf/2").code == 0


def test_half_of_it(store):
    """The request's run is gone: nothing is tagged, and the sentence says so."""
    request = filed()
    [(_, details)] = store.requests().values()
    store.client.delete_run(details["run_id"])
    before = store.tags("1")
    refused = taken_back(request)
    assert refused.code == 2 and "active" in refused.err and store.tags("1") == before


@pytest.mark.slow
def test_what_was_carried_out_cannot_be_withdrawn(store):
    request = filed()
    assert call("unlearn", *CLF, "--params", QUICK).code == 0
    before = store.tags("1")
    refused = taken_back(request)
    assert refused.code == 3 and f"request {request} on models:/clf/1 is done" in refused.err
    assert store.tags("1") == before
    assert call("verify", "--model-uri", "models:/clf/2").code == 0


def test_twice_and_unknown(store):
    request = filed()
    assert taken_back(request).code == 0
    before = store.tags("1")
    again = taken_back(request)
    assert again.code == 3 and f"request {request} on models:/clf/1 is withdrawn" in again.err
    assert store.tags("1") == before
    assert taken_back("0" * 12).code == 2
    for more in (("--fulfil", "true"), ("--case", request), ("--model", "clf")):
        assert taken_back(request, *more).code == 2
    assert call("requests", "--reason", "none").code == 2


@pytest.mark.slow
def test_it_can_be_filed_again(store):
    request = filed()
    assert taken_back(request).code == 0
    assert filed() == request
    assert store.requests()[request][0] == "pending"
    assert call("unlearn", *CLF, "--params", QUICK).code == 0
    assert call("verify", "--model-uri", "models:/clf/2").code == 0


@pytest.mark.slow
def test_others_stay_and_promotions_are_not_held_up(store):
    request = filed()
    other = call("request", *CLF, "--forget", "random:20,seed=2", "--format", "json")
    assert other.code == 0
    assert taken_back(request).code == 0
    assert call("unlearn", *CLF, "--params", QUICK).code == 0
    (store.folder / "lenient.yaml").write_text("membership: null\nminimum: {forget: 2}\n")
    assert call("review", "--model-uri", "models:/clf/2", "--policy", "lenient.yaml").code == 0
    assert call("promote", "--model-uri", "models:/clf/2").code == 0


def test_a_version_that_was_being_made_counts(store):
    """It had read the request before that was withdrawn: what was done is done."""
    request = filed()
    assert taken_back(request).code == 0
    key = f"unlearn.request.{request}"
    now = ForgetRequest.from_tag(key, store.tags("1")[key])
    mark_done(store.client, [now], "models:/clf/9")
    state, details = store.requests()[request]
    assert state == "done" and details["by"] == ["models:/clf/9"] and details["withdrawn"]["by"]
    assert ForgetRequest.from_tag(key, store.tags("1")[key]).tag() == store.tags("1")[key]
