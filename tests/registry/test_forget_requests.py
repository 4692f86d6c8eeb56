"""Forget requests as tags and files."""

import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import mlflow
import pytest
from chains import changed
from mlflow.exceptions import MlflowException

from mlflow_unlearn.data.manifest import Manifest
from mlflow_unlearn.errors import Refused, UnlearnError
from mlflow_unlearn.registry import forget_requests, lock
from mlflow_unlearn.registry.forget_requests import TAG, ForgetRequest

FIRST = ForgetRequest("0123456789ab", "models:/clf/1", "a run")


def version(**tags: str) -> SimpleNamespace:
    return SimpleNamespace(uri="models:/clf/1", name="clf", version="1", tags=tags)


@pytest.mark.parametrize(
    ("request_", "state"),
    [
        (FIRST, "pending"),
        (ForgetRequest("0123456789ab", "models:/clf/1", "a run", ("models:/clf/2", "models:/clf/3")), "done"),
        (ForgetRequest("0123456789ab", "models:/clf/1", "a run", ad_hoc=True), "pending"),
    ],
)
def test_a_tag_and_back(request_, state):
    assert request_.tag().startswith(f"{state} {{")
    assert request_.pending == (state == "pending")
    assert ForgetRequest.from_tag(TAG + request_.id, request_.tag()) == request_


OF = '"of": "models:/clf/1", "run_id": "a run"'


@pytest.mark.parametrize(
    "value",
    [
        *("pending soon", "pending", "done []", 'done {"of": "models:/clf/1"}', 'done {"of": 1, "run_id": "a run"}'),
        *(f"done {{{OF}, {more}}}" for more in ('"by": [5]', '"by": "models:/clf/2"', '"ad_hoc": 7', '"sha256": []')),
        f'pending {{{OF}, "since": "noon"}}',
    ],
)
def test_an_edited_tag(value):
    with pytest.raises(UnlearnError, match="is no longer a forget request: file it again"):
        ForgetRequest.from_tag(TAG + "0123456789ab", value)


def test_requests_of_a_copy_are_not_its_own():
    other = ForgetRequest("ba9876543210", "models:/other/1", "a run")
    tagged = version(**{TAG + one.id: one.tag() for one in (FIRST, other)}, **{"unlearn.request_ids": "no request"})
    assert forget_requests.of_version(tagged) == ([FIRST], [other])


def test_the_id_is_that_of_version_and_samples():
    ids = forget_requests.request_id(version(), Manifest(("a", "b")))
    assert ids == forget_requests.request_id(version(), Manifest(("b", "a")))
    assert ids != forget_requests.request_id(version(), Manifest(("a", "c")))
    assert ids != forget_requests.request_id(SimpleNamespace(uri="models:/clf/2"), Manifest(("a", "b")))


def test_filed_and_read(store, tmp_path):
    subject = version()
    with mlflow.start_run() as run:
        request, new = forget_requests.file_request(
            store.client, subject, Manifest(("b", "a")), {"reason": "asked"}, folder=tmp_path, salt="00"
        )
    assert new and request.run_id == run.info.run_id == forget_requests.run_of(store.client, request.id)
    assert store.requests()[request.id][0] == "pending"
    stored = forget_requests.read_manifest(store.client, request.id)
    assert stored.salt == "00" and stored.mask(["a", "b", "c"]).tolist() == [True, True, False]
    details = forget_requests.read_details(request.run_id)
    assert (details["of"], details["samples"], details["reason"]) == ("models:/clf/1", 2, "asked")
    assert details["manifest_sha256"] == stored.digest
    again = forget_requests.file_request(
        store.client, version(**store.tags("1")), Manifest(("a", "b")), {}, folder=tmp_path
    )
    assert again == (request, False)


def test_a_request_is_what_was_filed(store, tmp_path):
    """The tag has the digest of request.json, and that has the manifest's: neither can be changed afterwards."""
    with mlflow.start_run() as run:
        request, _ = forget_requests.file_request(
            store.client, version(), Manifest(("a", "b")), {"requester": "p-7"}, folder=tmp_path
        )
    tag = f"{TAG}{request.id}"
    assert ForgetRequest.from_tag(tag, store.tags("1")[tag]) == request and request.sha256 is not None
    assert forget_requests.read_filed(request).ids == ("a", "b")
    folder = Path(run.info.artifact_uri.removeprefix("file://")) / "request"
    for name, old, new in (("request.json", b"p-7", b"p-8"), ("manifest.csv", b"b", b"c")):
        content = (folder / name).read_bytes()
        with changed(folder / name, content.replace(old, new)):
            with pytest.raises(UnlearnError, match=f"{request.id} is not what was filed: its files in run .* changed"):
                forget_requests.read_filed(request)
            # A request of an earlier release has no digest, and is read as it is.
            if name == "request.json":
                assert forget_requests.read_filed(replace(request, sha256=None)).ids == ("a", "b")
    store.client.delete_model_version_tag("clf", "1", tag)


def claiming(client, request_id: str, *ids: str, of: str = "models:/clf/1") -> str:
    """A run of somebody else's with the id of a request."""
    with mlflow.start_run() as run:
        mlflow.set_tag(forget_requests.RUN_TAG, request_id)
        mlflow.log_text("\n".join(["id", *ids, ""]), "request/manifest.csv")
        mlflow.log_text(f'{{"id": "{request_id}", "of": "{of}"}}', "request/request.json")
    return str(run.info.run_id)


def test_what_a_request_names_is_what_its_version_says(store, tmp_path):
    """Whoever may log a run may give it any tag: it is not the request, newer though it is."""
    with mlflow.start_run():
        request, _ = forget_requests.file_request(store.client, version(), Manifest(("a", "b")), {}, folder=tmp_path)
    claiming(store.client, request.id, "z")
    assert forget_requests.run_of(store.client, request.id) == request.run_id
    assert forget_requests.read_manifest(store.client, request.id).ids == ("a", "b")
    store.client.set_model_version_tag("clf", "1", TAG + request.id, replace(request, sha256="0" * 64).tag())
    with pytest.raises(UnlearnError, match="is not what was filed"):
        forget_requests.read_manifest(store.client, request.id)


def test_of_several_runs_without_a_version_none_is_taken(store):
    first, second = (claiming(store.client, "aaaaaaaaaaaa", "a") for _ in range(2))
    assert forget_requests.run_of(store.client, "aaaaaaaaaaaa") == second  # the same twice, as of trials that failed
    third = claiming(store.client, "aaaaaaaaaaaa", "b")
    with pytest.raises(Refused, match=f"the runs {', '.join(sorted((first, second, third)))} have its id"):
        forget_requests.read_manifest(store.client, "aaaaaaaaaaaa")


def test_all_are_done_or_none(store):
    """The second request names a version that does not exist: the first one's tag is as it was."""
    store.client.set_model_version_tag("clf", "1", TAG + FIRST.id, FIRST.tag())
    missing = ForgetRequest("ba9876543210", "models:/gone/1", "a run")
    with pytest.raises(MlflowException):
        forget_requests.mark_done(store.client, [FIRST, missing], "models:/clf/2")
    assert store.tags("1")[TAG + FIRST.id] == FIRST.tag()
    outside = ForgetRequest("aaaaaaaaaaaa", "runs:/a-run/model", "a run")
    forget_requests.mark_done(store.client, [FIRST, outside], "models:/clf/2")
    forget_requests.mark_done(store.client, [FIRST], "models:/clf/3")
    [(state, details)] = store.requests().values()
    assert (state, details["by"]) == ("done", ["models:/clf/2", "models:/clf/3"])


def test_marks_that_are_made_at_once_are_all_there(store, monkeypatch):
    monkeypatch.setattr(lock, "_POLL", 0.02)
    store.client.set_model_version_tag("clf", "1", TAG + FIRST.id, FIRST.tag())
    uris = [f"models:/clf/{number}" for number in range(2, 14)]

    def mark(some: list[str]) -> None:
        for uri in some:
            forget_requests.mark_done(store.client, [FIRST], uri)

    threads = [threading.Thread(target=mark, args=(uris[start::3],)) for start in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    [(state, details)] = store.requests().values()
    assert (state, sorted(details["by"])) == ("done", sorted(uris))
    assert store.client.get_registered_model("clf").tags == {}


def test_one_that_was_filed_while_the_version_was_read(store, tmp_path):
    """The same samples: one request, in the run of whoever came first."""
    subject, filed = version(**store.tags("1")), []
    for _ in range(2):
        with mlflow.start_run():
            filed.append(forget_requests.file_request(store.client, subject, Manifest(("a",)), {}, folder=tmp_path))
    assert filed[1] == (filed[0][0], False)
    assert store.requests()[filed[0][0].id][1]["run_id"] == filed[0][0].run_id
