"""Which requests, versions and records belong to a case."""

import json
import re
from contextlib import ExitStack, contextmanager

import mlflow
import pytest
from chains import review, tagged
from stores import call

from mlflow_unlearn.data.manifest import Manifest
from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.evidence.dossier_verify import check_records
from mlflow_unlearn.governance.case import open_case
from mlflow_unlearn.governance.case_files import component, folder_of
from mlflow_unlearn.registry.forget_requests import CASE_TAG, RUN_TAG, file_request
from mlflow_unlearn.registry.versions import open_version


def only(chain, version) -> str:
    """The request that was filed on a version of the chain."""
    [found] = chain.requests(version)
    return found


@contextmanager
def case_tagged(chain, case, *versions):
    """The requests of versions are of another case inside the block, by the tags of versions and of runs."""
    with ExitStack() as stack:
        for version in versions:
            request_id = only(chain, version)
            state, said = chain.requests(version)[request_id]
            key = f"unlearn__request__{request_id}"
            stack.enter_context(tagged(chain, version, **{key: f"{state} {json.dumps(said | {'case': case})}"}))
            stack.enter_context(run_tagged(chain, said["run_id"], case))
        yield


@contextmanager
def run_tagged(chain, run_id, case):
    """A run names another case inside the block."""
    before = chain.client.get_run(run_id).data.tags[CASE_TAG]
    chain.client.set_tag(run_id, CASE_TAG, case)
    yield
    chain.client.set_tag(run_id, CASE_TAG, before)


def failed(case) -> list[str]:
    files = {**case.files, "case.json": case.to_json().encode()}
    return [one.message for one in check_records(files) if one.outcome == "failed"]


def test_a_run_that_claims_to_be_a_request_changes_no_case(chain):
    """What the version's tag says counts, not the newest run with the id."""
    asked = only(chain, "2")
    before = open_case(chain.client, asked)
    with mlflow.start_run() as theirs:
        mlflow.set_tags({RUN_TAG: asked, CASE_TAG: "0" * 12})
        mlflow.log_text(f'{{"id": "{asked}", "of": "models:/other/1", "samples": 1}}', "request/request.json")
        mlflow.log_text("id\nz\n", "request/manifest.csv")
    found = open_case(chain.client, asked)
    assert found.id == before.id and found.requests == before.requests and failed(found) == []
    chain.client.delete_run(theirs.info.run_id)


def test_one_request_of_a_chain(chain):
    """The second: the first version has its samples as well, and the version after the next one is promoted."""
    assert review("4").code == 0
    assert call("promote", "--model-uri", "models:/clf/4").code == 0
    asked = only(chain, "2")
    case = open_case(chain.client, asked)
    assert {v.uri: v.role for v in case.versions} == {
        "models:/clf/2": "source",
        "models:/clf/1": "source",
        "models:/clf/3": "fulfilled",
        "models:/clf/4": "later",
    }
    assert [e.kind for e in case.events] == ["filed", "unlearned", "unlearned", "reviewed", "promoted"]
    assert case.serving == ["clf@champion"] and case.missing == {} and failed(case) == []
    assert [v.knows for v in case.versions] == [[asked], [asked], [], []]
    chain.client.delete_registered_model_alias("clf", "champion")
    chain.client.delete_model_version_tag("clf", "4", "unlearn.promotion.champion")
    assert [v.uri for v in open_case(chain.client, case.id).versions if v.role == "later"] == []


def test_requests_of_one_case(chain):
    """Two of three: the version between them has forgotten one and knows the other."""
    first, second = only(chain, "1"), only(chain, "2")
    with case_tagged(chain, "ca5e0ca5e0ca", "1", "2"):
        case, same = (open_case(chain.client, each) for each in ("ca5e0ca5e0ca", second))
    assert case == same and case.id == "ca5e0ca5e0ca"
    assert [request.id for request in case.requests] == sorted([first, second])
    between = next(version for version in case.versions if version.uri == "models:/clf/2")
    assert (between.role, between.request_ids, between.knows) == ("fulfilled", [first], [second])
    assert {v.uri: v.knows for v in case.versions}["models:/clf/1"] == [first, second]
    assert len(failed(case)) == 4  # of each, since its file names another one
    assert all("it belongs to this case" in one or "its tag has its case" in one for one in failed(case))


def test_a_case_on_two_models(store, tmp_path):
    """As `request` files them for one subject: each names the case and when it is due, in its file and in its tag."""
    store.client.copy_model_version("models:/clf/1", "other")
    with mlflow.start_run():
        for uri in ("models:/clf/1", "models:/other/1"):
            version = open_version(store.client, uri, tmp_path)
            filed = {"case": "ca5e0ca5e0ca", "due": "2027-01-01", "folder": tmp_path}
            with mlflow.start_run(nested=True):
                file_request(store.client, version, Manifest(("digits/1", "digits/2")), {"requester": "p-7"}, **filed)
    case = open_case(store.client, "ca5e0ca5e0ca")
    assert {(one.of, one.due) for one in case.requests} == {(f"models:/{n}/1", "2027-01-01") for n in ("clf", "other")}
    assert failed(case) == []
    assert open_case(store.client, case.requests[1].id) == case
    assert sum("was not carried out, due 2027-01-01" in point for point in case.open_points) == 2


def test_a_tag_that_would_lead_out_of_the_dossier(chain):
    """Whoever may write a run may write its tags."""
    with mlflow.start_run() as run:
        mlflow.set_tags({RUN_TAG: "../../elsewhere", CASE_TAG: "ca5e0ca5e0ca"})
    with case_tagged(chain, "../case", "1"):
        assert open_case(chain.client, only(chain, "1")).id == only(chain, "1")
        with pytest.raises(UnlearnError, match="there is neither a forget request nor a case"):
            open_case(chain.client, "ca5e0ca5e0ca")
    chain.client.delete_run(run.info.run_id)


def test_a_run_that_names_a_request_moves_it_to_no_other_case(chain):
    """The newest with the request's id, with a file of its own, and one that has a case's id as a request's."""
    request_id, other = only(chain, "1"), only(chain, "2")
    before, theirs = open_case(chain.client, request_id), open_case(chain.client, other)
    made = []
    for tags in (
        {RUN_TAG: request_id, CASE_TAG: theirs.id},
        {RUN_TAG: before.id, CASE_TAG: theirs.id},
        {RUN_TAG: other, CASE_TAG: before.id},
    ):
        with mlflow.start_run() as run:
            mlflow.set_tags(tags)
            mlflow.log_dict({"id": request_id, "of": "models:/clf/3", "samples": 1}, "request/request.json")
            made.append(run.info.run_id)
    assert open_case(chain.client, request_id) == open_case(chain.client, before.id) == before
    assert request_id not in [request.id for request in open_case(chain.client, other).requests]
    with run_tagged(chain, before.requests[0].run_id, theirs.id):  # with EDIT on the run itself
        assert open_case(chain.client, request_id) == before
    for run_id in made:
        chain.client.delete_tag(run_id, CASE_TAG)
        chain.client.delete_tag(run_id, RUN_TAG)


def test_copies_have_their_tags_alone(chain):
    chain.client.copy_model_version("models:/clf/2", "production")
    case = open_case(chain.client, only(chain, "1"))
    copy = next(version for version in case.versions if version.uri == "models:/production/1")
    assert copy.role == "copy" and case.requests[0].done_by == ["models:/clf/2"]
    assert [name for name in case.files if name.startswith("versions/production")] == [
        "versions/production-1/version.json"
    ]
    assert failed(case) == []
    chain.client.delete_registered_model("production")


def test_tags_that_were_edited(chain):
    """It is opened nevertheless, and what differs is found."""
    request_id = only(chain, "1")
    with tagged(chain, "1", **{f"unlearn__request__{request_id}": "done nonsense"}):
        case = open_case(chain.client, request_id)
    assert case.requests[0].done_by == ["models:/clf/2"]  # which says so itself
    assert failed(case)
    with tagged(chain, "2", unlearn__evidence_sha256="0" * 64):
        assert any(
            "its tag names the digest of its evidence" in each for each in failed(open_case(chain.client, request_id))
        )


def test_a_tag_alone_retires_nothing(chain):
    """Its files are looked for, and the run that it names has to be one of `retire`."""
    by_hand = {"at": "2026-11-27T00:00:00+00:00", "by": "eve", "reason": "gone"}
    with mlflow.start_run() as run:
        record = by_hand | {"versions": ["models:/clf/1"], "done": True, "run_id": run.info.run_id}
        mlflow.log_dict(record, "evidence/retirement.json")
    mark = json.dumps(by_hand | {"run_id": run.info.run_id})
    with tagged(chain, "1", unlearn__retired=mark):
        case = open_case(chain.client, only(chain, "1"))
        assert case.missing == {f"retirements/{run.info.run_id}.json": f"run {run.info.run_id} is not one of `retire`"}
        chain.client.set_tag(run.info.run_id, "unlearn.command", "retire")
        believed = open_case(chain.client, only(chain, "1"))
    for each in (case, believed):
        assert any("models:/clf/1, which knows the samples, was not retired" in point for point in each.open_points)
        assert not next(version for version in each.versions if version.uri == "models:/clf/1").retired
        assert any("it is marked as retired and no longer has files" in message for message in failed(each))
    with tagged(chain, "2", unlearn__retired=mark):  # the retirement of another version
        case = open_case(chain.client, only(chain, "1"))
    assert any("the retirement that its tag names is of it" in message for message in failed(case))


@pytest.mark.slow
def test_a_version_that_was_deleted(gold_store):
    [request_id] = gold_store.requests()
    gold_store.client.delete_model_version("clf", "2")
    case = open_case(gold_store.client, request_id)
    assert case.missing == {"versions/clf-2/version.json": "models:/clf/2 is no longer in the registry"}
    assert case.requests[0].done_by == ["models:/clf/2"] and case.carried_out == []
    gold_store.client.delete_model_version("clf", "1")
    case = open_case(gold_store.client, request_id)
    assert case.requests[0].samples == 54 and "versions/clf-1/version.json" in case.missing


@pytest.mark.parametrize("wrong", ["", "0123", "0123456789AB", "x' or 1=1", "f" * 12])
def test_ids_that_are_of_nothing(chain, wrong):
    with pytest.raises(UnlearnError, match="is not the id of a request or of a case|there is neither a forget request"):
        open_case(chain.client, wrong)


@pytest.mark.parametrize("name", ["clf", "..", "a b", "CON*", "日本", "x" * 300, "a/../b", "~"])
def test_names_make_one_folder_each(name):
    made = component(name)
    assert re.fullmatch("[A-Za-z0-9%_-]{1,80}", made)
    assert folder_of(f"models:/{name}/7") == f"versions/{made}-7"


def test_different_names_make_different_folders():
    names = ["a.b", "a-b", "a%2Eb", "x" * 300, "x" * 301]
    assert len({component(name) for name in names}) == len(names)
