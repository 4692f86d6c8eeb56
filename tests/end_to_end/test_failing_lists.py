"""`locate` and `requests` before a server that fails: what was found is printed, and never is it taken for all."""

from collections.abc import Iterator
from typing import Any

import pytest
from answers import checked
from faults import Proxy, proxy
from servers import mlflow_server
from stores import Store, call, copied, reset_mlflow

from mlflow_unlearn.data.loaders import load_source
from mlflow_unlearn.registry import network

VERSIONS, NAMES, MODELS, RUNS = (
    "/model-versions/search",
    "/registered-models/search",
    "/logged-models/search",
    "/runs/search",
)


@pytest.fixture(scope="module")
def server(template, tmp_path_factory) -> Iterator[tuple[Store, str]]:
    """Over a store with a request for clf/1, which `served` has a copy of."""
    with copied(template, tmp_path_factory.mktemp("lists")) as store:
        store.client.copy_model_version("models:/clf/1", "served")
        (store.folder / "ids.txt").write_text("\n".join(load_source("digits,train=15%").train.ids[:12]))
        filed = call("request", "--forget", store.folder / "ids.txt", "--all", "true")
        assert filed.code == 0, filed.err
        with mlflow_server(store.folder, store.uri) as uri:
            yield store, uri


@pytest.fixture
def between(server, monkeypatch) -> Iterator[Proxy]:
    """The way to the server, which MLflow's client tries twice."""
    store, uri = server
    with proxy(uri, 0) as found:
        reset_mlflow()
        monkeypatch.chdir(store.folder)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", found.uri)
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
        yield found
    reset_mlflow()


def asked(command: str, code: int) -> tuple[dict[str, Any], str]:
    """The result of a command, and its sentence."""
    options = ("--forget", "ids.txt") if command == "locate" else ()
    done = call(command, *options, "--format", "json")
    answer = checked(done, command, code=code)
    assert "Traceback" not in done.err and done.err.count("Error: ") == (code != 0), done.err
    return answer["result"], (answer["error"] or {}).get("message", "")


def found_by(command: str, result: dict[str, Any]) -> list[str]:
    if command == "locate":
        return [place["uri"] for place in result["places"] if place["state"] == "contains"]
    return [request["uri"] for case in result["cases"] for request in case["requests"]]


BOTH = ["models:/clf/1", "models:/served/1"]


@pytest.mark.nightly
@pytest.mark.parametrize("command", ["locate", "requests"])
def test_what_fails_once_is_asked_again(between, command):
    between.script = {VERSIONS: 500, NAMES: 429, MODELS: "truncate", "/experiments/search": "drop"}
    if command == "requests":
        between.script |= {RUNS: 503}
    result, _ = asked(command, 0)
    assert between.script == {} and found_by(command, result) == BOTH and result["unanswered"] is None


@pytest.mark.nightly
@pytest.mark.parametrize(("path", "kind"), [(NAMES, "gone"), (NAMES, 500), (MODELS, 429), (MODELS, "stall")])
@pytest.mark.parametrize("command", ["locate", "requests"])
def test_what_was_found_before_is_printed(between, command, path, kind, monkeypatch):
    """The versions were listed, and their lists are on this machine since somebody looked before."""
    asked("locate", 0)
    monkeypatch.setattr(network, "LONGEST", 0.0)
    between.script, between.always = {path: kind}, (path,)
    result, sentence = asked(command, 3)
    assert found_by(command, result) == BOTH
    assert result["unanswered"] and "run it again" in sentence and "did not answer" in sentence


@pytest.mark.nightly
@pytest.mark.parametrize("kind", ["stall", "trickle", "drop"])
@pytest.mark.parametrize("command", ["locate", "requests"])
def test_nothing_found_is_not_taken_for_nothing_there(between, command, kind, monkeypatch):
    monkeypatch.setattr(network, "LONGEST", 0.0)
    monkeypatch.setattr(network, "LONGEST_ANSWER", 4.0)
    between.script, between.always = {VERSIONS: kind}, (VERSIONS,)
    result, sentence = asked(command, 3)
    assert found_by(command, result) == [] and result["unanswered"] and "did not answer" in sentence


@pytest.mark.slow
def test_a_subject_that_no_version_could_be_asked_about(between, monkeypatch):
    """Which sources there are, the versions say that are missing."""
    monkeypatch.setattr(network, "LONGEST", 0.0)
    between.script, between.always = {VERSIONS: 500}, (VERSIONS,)
    done = call("locate", "--forget", "class:3", "--format", "json")
    assert checked(done, "locate", code=3)["result"]["unanswered"]


@pytest.mark.slow
def test_the_inbox_without_the_runs_of_its_requests(between, monkeypatch):
    """What was asked and when it is due the versions' tags say."""
    monkeypatch.setattr(network, "LONGEST", 0.0)
    between.script, between.always = {RUNS: 500}, (RUNS,)
    result, sentence = asked("requests", 3)
    [case] = result["cases"]
    assert found_by("requests", result) == BOTH and case["state"] == "open" and case["days_left"] in (29, 30)
    assert "the inbox is incomplete" in sentence and "not authenticated" in case["filed_by"]


@pytest.mark.slow
def test_on_all_means_on_all(server, between, monkeypatch):
    """Where it is not known which versions hold the samples, nothing is filed on some of them."""
    store, _ = server
    before = store.everything_registered()
    monkeypatch.setattr(network, "LONGEST", 0.0)
    between.script, between.always = {MODELS: 500}, (MODELS,)
    refused = call("request", "--forget", "class:3", "--all", "true")
    assert refused.code == 3 and "which versions hold the samples is not known" in " ".join(refused.err.split())
    assert store.everything_registered() == before
