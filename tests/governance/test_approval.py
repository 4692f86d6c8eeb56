"""Who may promote which version: reviews judged again, open requests, signatures, approvers."""

import json
import re
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
from chains import (
    LENIENT,
    STRICT,
    changed,
    evidence_of,
    flipped,
    folder_of,
    forged_review,
    last_review,
    resigned,
    review,
    reviewed_otherwise,
    tagged,
)
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import PERMISSION_DENIED
from records import ANN, evidence, request
from stores import Outcome, call

from mlflow_unlearn.errors import Refused
from mlflow_unlearn.evidence.policy import Policy
from mlflow_unlearn.evidence.record import Person
from mlflow_unlearn.evidence.signing import fingerprint
from mlflow_unlearn.governance.approval import check_approver, open_requests

PEOPLE = "ann, alice"


@pytest.mark.slow
def test_open_requests_and_override(chain):
    """A request on the source that the new version did not carry out."""
    assert review("4").code == 0
    filed = call("request", "--model-uri", "models:/clf/3", "--forget", "random:3,seed=9")
    request = re.search(r"request ([0-9a-f]{12})", filed.out).group(1)
    try:
        refused = call("promote", "--model-uri", "models:/clf/4")
        assert refused.code == 3
        assert f"request {request} on models:/clf/3 is still open" in refused.err
        assert call("promote", "--model-uri", "models:/clf/4", "--override", "").code == 3
        done = call("promote", "--model-uri", "models:/clf/4", "--alias", "canary", "--override", "outage 12")
        assert done.code == 0 and "promoted despite this" in done.err
        promotion = json.loads(chain.tags("4")["unlearn.promotion.canary"])
        assert promotion["override"] == "outage 12" and request in promotion["objections"][0]
        checked = call("verify", "--model-uri", "models:/clf/4")
        assert "despite the verdict: outage 12" in re.sub(r"[│\s]+", " ", checked.out)
    finally:
        chain.client.delete_model_version_tag("clf", "3", f"unlearn.request.{request}")


def test_a_tag_on_the_source_hides_no_request(chain):
    """Not even the one by which a version is not complete yet: what was unlearned had been."""
    assert review("4").code == 0
    open_one = {"unlearn__request__abcdefabcdef": f"pending {json.dumps({'of': 'models:/clf/3', 'run_id': 'r'})}"}
    with tagged(chain, "3", unlearn__registering="x", **open_one):
        [objection] = open_requests(chain.client, evidence_of("4"))
        for command, *more in (("promote",), ("promote", "--override", "now"), ("verify",)):
            refused = call(command, "--model-uri", "models:/clf/4", *more)
            assert refused.code == 3, refused.out
            assert "chain models:/clf/3: it says that it is not complete (unlearn.registering)" in refused.err
    assert objection == "request abcdefabcdef on models:/clf/3 is still open"


def test_the_requests_on_a_source_that_is_gone(chain, capsys):
    """Only what the registry calls gone is; a registry that does not answer stops everything."""
    chain.client.create_registered_model("gone")
    number = chain.client.create_model_version("gone", str(chain.folder)).version
    source = evidence_of("4").source.model_copy(update={"uri": f"models:/gone/{number}"})
    record = evidence_of("4").model_copy(update={"source": source, "lineage": []})
    assert open_requests(chain.client, record) == [] and "is gone" not in capsys.readouterr().err
    chain.client.delete_registered_model("gone")
    assert open_requests(chain.client, record) == []
    assert f"models:/gone/{number} is gone, and with it" in " ".join(capsys.readouterr().err.split())

    def denied(*_):
        raise MlflowException("not yours", PERMISSION_DENIED)

    client = SimpleNamespace(get_model_version=denied)
    with pytest.raises(MlflowException, match="not yours"):
        open_requests(client, record)


def test_a_request_that_only_a_sibling_carried_out(chain):
    assert review("4").code == 0
    request = {"of": "models:/clf/3", "run_id": "r", "by": ["models:/clf/9"]}
    with tagged(chain, "3", unlearn__request__abcdefabcdef=f"done {json.dumps(request)}"):
        refused = call("promote", "--model-uri", "models:/clf/4")
    assert refused.code == 3
    assert "request abcdefabcdef on models:/clf/3 was carried out by models:/clf/9 alone" in refused.err


@pytest.mark.slow
@pytest.mark.parametrize("value", ["pending []", "pending 5", "pending null", "pending {", "done {}"])
def test_a_request_tag_that_was_edited(chain, value):
    with tagged(chain, "3", unlearn__request__abcdefabcdef=value):
        refused = call("promote", "--model-uri", "models:/clf/4")
    assert refused.code in (2, 3) and "is no longer a forget request" in refused.err
    assert "Traceback" not in refused.err


@pytest.mark.slow
def test_a_review_is_judged_again(chain):
    """Whoever may write the review's run and the version's tags can forge the file, but not what the evidence says."""
    assert review("2", "strict.yaml").code == 3
    n, _, path = last_review(chain, "2")
    verdict = json.loads(path.read_text())["verdict"]
    for checks in ([], [c | {"outcome": "pass"} for c in verdict["checks"]]):
        forged = reviewed_otherwise(chain, "2", verdict | {"checks": checks})
        with forged:
            refused = call("promote", "--model-uri", "models:/clf/2", "--policy", "strict.yaml")
            lifted = call("promote", "--model-uri", "models:/clf/2", "--override", "now")
        assert refused.code == 3 and f"review {n} does not match what its policy says" in refused.err
        assert lifted.code == 3 and "give --policy, which says who may approve" in lifted.err
    assert "champion" not in chain.client.get_registered_model("clf").aliases


@pytest.mark.slow
def test_a_required_signature_is_checked_again(chain, keys):
    (chain.folder / "signed.yaml").write_text(LENIENT + "required: [signature]\n")
    ours, theirs = str(keys / "ours.pub"), str(keys / "theirs.pub")

    def promote(version: str, *more: str) -> Outcome:
        return call("promote", "--model-uri", f"models:/clf/{version}", *more)

    # Reviewed without a key; and a version that nobody has signed.
    assert review("4", "signed.yaml").code == review("2", "signed.yaml").code == 3
    with forged_review(chain, "4"), forged_review(chain, "2"):
        for more in ((), ("--policy", "signed.yaml")):
            refused = promote("4", *more)
            assert refused.code == 3 and "'lenient' requires a signature: signed with the key sha256:" in refused.err
            assert "signers: in the policy, or --key, says which keys to trust" in refused.err
        refused = promote("4", "--key", theirs)
        assert refused.code == 3 and "signature: it does not hold" in refused.err
        refused = promote("2", "--policy", "signed.yaml")
        assert refused.code == 3 and "requires a signature: the evidence is unsigned" in refused.err
        assert call("verify", "--model-uri", "models:/clf/2").code == 3
    assert promote("4", "--key", "none.pem").code == 2
    late = promote("4", "--key", ours)
    assert late.code == 3 and "review it again" in late.err
    assert "champion" not in chain.client.get_registered_model("clf").aliases
    # Only with both keys; and an override has to say so.
    assert call("review", "--model-uri", "models:/clf/4", "--policy", "signed.yaml", "--key", ours).code == 0
    assert promote("4").code == 3
    assert promote("4", "--override", "now").code == 3
    done = promote("4", "--override", "now", "--policy", "signed.yaml", "--alias", "canary")
    assert done.code == 0, done.err
    assert "requires a signature" in json.loads(chain.tags("4")["unlearn.promotion.canary"])["objections"][0]
    done = promote("4", "--key", ours)
    assert done.code == 0, done.err
    assert json.loads(chain.tags("4")["unlearn.promotion.champion"])["objections"] == []
    for alias in ("champion", "canary"):
        chain.client.delete_registered_model_alias("clf", alias)


@pytest.mark.slow
def test_the_policy_names_the_key(chain, keys):
    """A signature by an attacker's own key, and none at all, whatever the review's file has been made to say."""
    (chain.folder / "ours.pub").write_bytes((keys / "ours.pub").read_bytes())
    signers = f"required: [signature]\nsigners: [ours.pub]\napprovers: [{PEOPLE}]\nauthenticated: false\n"
    (chain.folder / "trusted.yaml").write_text(LENIENT + signers)
    theirs = fingerprint((keys / "theirs.pub").read_bytes())

    def commands(version: str) -> list[Outcome]:
        uri = ("--model-uri", f"models:/clf/{version}")
        with forged_review(chain, version):
            again = ("--override", "now")
            return [call("promote", *uri), call("promote", *uri, *again), call("verify", *uri)]

    with resigned(chain, "4", evidence_of("4"), keys / "theirs.pem"):
        refused = review("4", "trusted.yaml")
        assert refused.code == 3
        for one in (refused, *commands("4")):
            assert one.code == 3 and f"signed with the key {theirs}, which the policy does not name" in one.err
        lifted = call("promote", "--model-uri", "models:/clf/4", "--override", "now", "--approver", "mallory",
                      "--policy", "trusted.yaml")  # fmt: skip
        assert lifted.code == 3 and "'mallory' may not approve" in lifted.err
    assert review("2", "trusted.yaml").code == 3
    for one in commands("2"):
        assert one.code == 3 and "the evidence is unsigned" in one.err
    # Nothing but the policy is needed for the right one.
    assert review("4", "trusted.yaml").code == 0
    done = call("promote", "--model-uri", "models:/clf/4", "--approver", "ann")
    assert done.code == 0, done.err
    seen = call("verify", "--model-uri", "models:/clf/4")
    assert seen.code == 0 and "its policy says the same of the evidence" in re.sub(r"[│\s]+", " ", seen.out)
    chain.client.delete_registered_model_alias("clf", "champion")
    with flipped(folder_of("4") / "evidence" / "evidence.sig"):
        assert call("promote", "--model-uri", "models:/clf/4", "--approver", "ann").code == 3


def test_a_key_where_no_signature_is_required(chain, keys):
    assert review("4").code == 0
    for more in ((), ("--key", str(keys / "ours.pub"))):
        done = call("promote", "--model-uri", "models:/clf/4", *more)
        assert done.code == 0, done.err
    refused = call("promote", "--model-uri", "models:/clf/4", "--key", str(keys / "theirs.pub"))
    assert refused.code == 3 and "signature: it does not hold" in refused.err
    chain.client.delete_registered_model_alias("clf", "champion")


def test_a_copy_and_other_weights_are_refused(chain):
    assert review("2").code == 0
    chain.client.copy_model_version("models:/clf/2", "copied")
    refused = call("promote", "--model-uri", "models:/copied/1")
    assert refused.code == 3 and "this is a copy of it" in refused.err
    assert call("verify", "--model-uri", "models:/copied/1").code == 3
    weights = folder_of("2") / "extra_files" / "weights.safetensors"
    content = weights.read_bytes()
    try:
        weights.write_bytes((folder_of("3") / "extra_files" / "weights.safetensors").read_bytes())
        refused = call("promote", "--model-uri", "models:/clf/2")
    finally:
        weights.write_bytes(content)
    assert refused.code == 3 and "weights.safetensors was changed" in refused.err
    assert "champion" not in chain.client.get_registered_model("clf").aliases


def test_a_changed_review(chain):
    assert review("2").code == 0
    n, _, path = last_review(chain, "2")
    with flipped(path):
        refused = call("promote", "--model-uri", "models:/clf/2")
    assert refused.code == 3 and f"review {n}" in refused.err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rules", "approver", "sentence"),
    [
        ("{two_person: true, authenticated: false}", "pseudonym-7", "asked for request"),
        ("{two_person: true, authenticated: false}", "Pseudonym-7", "asked for request"),
        ("{approvers: [alice], authenticated: false}", "bob", "may not approve"),
    ],
)
def test_who_may_approve(chain, rules, approver, sentence):
    (chain.folder / "people.yaml").write_text(LENIENT + rules.strip("{}").replace(", ", "\n") + "\n")
    assert review("2", "people.yaml").code == 0
    refused = call("promote", "--model-uri", "models:/clf/2", "--approver", approver)
    assert refused.code == 3 and sentence in refused.err
    # Nor does an override help.
    assert call("promote", "--model-uri", "models:/clf/2", "--approver", approver, "--override", "now").code == 3
    allowed = "alice" if approver == "bob" else "carol"
    done = call("promote", "--model-uri", "models:/clf/2", "--approver", allowed)
    assert done.code == 0, done.err
    chain.client.delete_registered_model_alias("clf", "champion")


@pytest.mark.slow
@pytest.mark.parametrize("readable", [True, False])
@pytest.mark.parametrize(
    ("rules", "sentence"),
    [("approvers: [carol]", "'team' names carol"), ("two_person: true", "two-person rule of the policy 'team'")],
)
def test_a_policy_of_one_s_own_is_no_way_round(chain, rules, sentence, readable):
    """Neither with an override, nor where the review's file claims what its policy does not say."""
    (chain.folder / "team.yaml").write_text(f"{STRICT.replace('strict', 'team')}authenticated: false\n{rules}\n")
    (chain.folder / "mine.yaml").write_text(LENIENT)
    assert review("2", "team.yaml").code == 3
    verdict = json.loads(last_review(chain, "2")[2].read_text())["verdict"]
    forged = reviewed_otherwise(chain, "2", verdict | {"checks": [c | {"outcome": "pass"} for c in verdict["checks"]]})
    with nullcontext() if readable else forged:
        mine = ("--model-uri", "models:/clf/2", "--override", "I want it", "--policy", "mine.yaml")
        refused = call("promote", *mine, "--approver", "pseudonym-7")
        assert refused.code == 3 and sentence in refused.err, refused.err
        assert "champion" not in chain.client.get_registered_model("clf").aliases
        (chain.folder / "mine.yaml").write_text(LENIENT + "authenticated: false\napprovers: [dave]\n")
        both = call("promote", *mine, "--approver", "carol")
        assert both.code == 3 and "'lenient' names dave" in both.err
        (chain.folder / "mine.yaml").write_text(LENIENT)
        done = call("promote", *mine, "--approver", "carol")
        assert done.code == 0, done.err
    chain.client.delete_registered_model_alias("clf", "champion")


def test_without_a_readable_review_the_given_policy_counts(chain):
    (chain.folder / "team.yaml").write_text(LENIENT + "authenticated: false\napprovers: [carol]\n")
    assert review("2", "team.yaml").code == 0
    mine = ("--model-uri", "models:/clf/2", "--override", "lost", "--policy", "mine.yaml")
    (chain.folder / "mine.yaml").write_text(LENIENT + "authenticated: false\napprovers: [dave]\n")
    with changed(last_review(chain, "2")[2], None):
        assert "'lenient' names dave" in call("promote", *mine, "--approver", "carol").err
        done = call("promote", *mine, "--approver", "dave")
        assert done.code == 0, done.err
    chain.client.delete_registered_model_alias("clf", "champion")


BEN = Person(name="ben", authenticated=True)
CLAIMED = Person(name="cyd", authenticated=False)


@pytest.mark.slow
@pytest.mark.parametrize("rules", [{"approvers": ["cyd"]}, {"two_person": True}])
def test_names_that_no_server_has_checked_do_not_count(chain, rules):
    """On a store without users everybody is who they say; the policy has to allow that."""
    (chain.folder / "names.yaml").write_text(LENIENT + json.dumps(rules)[1:-1].replace('"', "") + "\n")
    assert review("2", "names.yaml").code == 0
    for more in ((), ("--override", "now")):
        refused = call("promote", "--model-uri", "models:/clf/2", "--approver", "cyd", *more)
        assert refused.code == 3 and "who approves ('cyd') was not authenticated by a tracking server" in refused.err
        assert "let the policy say `authenticated: false`" in refused.err


@pytest.mark.parametrize(
    ("approver", "changes", "role"),
    [
        (CLAIMED, {}, r"who approves \('cyd'\)"),
        (ANN, {"made_by": CLAIMED}, r"who carried out the unlearning \('cyd'\)"),
        (ANN, {"requests": [request("r", filed_by=CLAIMED)]}, r"who filed request r \('cyd'\)"),
        (ANN, {"requests": [request("r", filed_by=None)]}, r"who filed request r \(not recorded\)"),
    ],
)
def test_two_people_are_two_names_that_were_checked(approver, changes, role):
    record = evidence(**{"made_by": BEN, "requests": [request("r", filed_by=BEN)], "request_ids": ["r"]} | changes)
    with pytest.raises(Refused, match=role):
        check_approver(approver, record, Policy(two_person=True))
    check_approver(approver, record, Policy(two_person=True, authenticated=False))
    check_approver(approver, record, Policy())
    # Who may approve depends on the approver alone.
    if approver.authenticated:
        check_approver(approver, record, Policy(approvers=[approver.name]))


def test_the_requester_is_a_pseudonym_and_no_user():
    record = evidence(
        made_by=BEN, requests=[request("r", filed_by=BEN, requester="Ann@example.org")], request_ids=["r"]
    )
    with pytest.raises(Refused, match="asked for request r"):
        check_approver(ANN, record, Policy(two_person=True))
