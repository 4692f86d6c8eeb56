"""How many requests a decision makes: behind a server that hashes a password for each one, they are what it takes."""

import re
import shutil
import time

import mlflow
import pytest
from chains import LENIENT
from kills import Forge
from servers import mlflow_server
from stores import DATA, Store, reset_mlflow

VERSION = ("--model-uri", "models:/clf/2")
ARTIFACTS = "/api/2.0/mlflow-artifacts/artifacts"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def served(blank, tmp_path_factory):
    """Runs a command as a process of its own: its requests, by the server's log; and where the server keeps files.

    clf/2 has forgotten one request.
    """
    reset_mlflow()
    folder = tmp_path_factory.mktemp("served")
    shutil.copy(blank.folder / "mlflow.db", folder / "mlflow.db")
    (folder / "lenient.yaml").write_text(LENIENT)
    store, log, forge = Store(folder), folder / "server.log", Forge({"MLFLOW_DISABLE_TELEMETRY": "true"})
    with mlflow_server(folder, store.uri) as uri:

        def run(*arguments: str, **environment: str) -> list[str]:
            before = len(log.read_text())
            own = {"MLFLOW_TRACKING_URI": uri, "MLFLOW_EXPERIMENT_NAME": "over http"}
            done = forge.run(store, *arguments, **own, **environment)
            assert done.code == 0, done.err
            time.sleep(0.2)  # the last line
            return re.findall(r'"([A-Z]+ \S+) HTTP/', log.read_text()[before:])

        run("train", "--data", DATA, "--name", "clf", "--architecture", "toy:trainable", "--epochs", "5")
        run("request", "--model-uri", "models:/clf/1", "--forget", "random:20")
        run("unlearn", "--model-uri", "models:/clf/1", "--params", '{"epochs": 1}')
        yield run, folder / "kept"
    forge.close()


@pytest.mark.nightly
def test_verify_asks_for_everything_once(served):
    run, kept = served
    requests = run("verify", *VERSION)
    asked = [request for request in requests if request.startswith("GET ")]
    assert len(asked) == len(set(asked)), sorted(asked)
    # Every file of the version, of its source, of its evidence's copy and of its request, and every folder of these.
    files = [path.relative_to(kept).as_posix() for path in kept.rglob("*") if path.is_file()]
    read = {one.removeprefix(f"GET {ARTIFACTS}/") for one in asked if one.startswith(f"GET {ARTIFACTS}/")}
    unread = {path for path in files if path not in read}
    assert len(unread) == 2 and all(path.endswith("/config.yaml") for path in unread), "of train's and request's runs"
    assert len(read) == 27
    assert sum(one.startswith(f"GET {ARTIFACTS}?path=") for one in asked) == 8
    assert len(requests) <= 43


def test_decisions(served):
    run, _ = served
    counts = {}
    for name, *more in (("review", "--policy", "lenient.yaml"), ("promote",), ("verify",)):
        counts[name] = len(run(name, *VERSION, *more))
    assert counts["review"] <= 63 and counts["promote"] <= 60 and counts["verify"] <= 46, counts


def test_locate_asks_by_pages_and_for_each_list_that_it_does_not_know(served):
    """However many versions there are."""
    run, kept = served
    (kept.parent / "ids.txt").write_text("nobody/1\n")
    search = ("locate", "--forget", str(kept.parent / "ids.txt"))
    cold, warm = run(*search), run(*search)
    lists = [one for one in cold if ARTIFACTS in one]
    assert len(lists) == len(set(lists)) == 2 and all(one.endswith("/training_manifest.csv") for one in lists), cold
    assert len(warm) == len(cold) - 2 <= 8, warm
    store = Store(kept.parent)
    mlflow.set_tracking_uri(store.uri)  # where the client looks for the LoggedModel
    client = store.client
    original = client.get_model_version("clf", "1")
    client.create_registered_model("many")
    for _ in range(60):
        client.create_model_version("many", original.source, tags=original.tags, model_id=original.model_id)
    reset_mlflow()
    assert sorted(run(*search)) == sorted(warm)
    client.delete_registered_model("many")


@pytest.mark.nightly
def test_a_large_file_may_come_in_parts(served):
    """Whether the server offers that is asked where a file has more than one."""
    run, _ = served
    for chunk, asked in (("1000000", 0), ("1000", 1)):
        requests = run("verify", *VERSION, MLFLOW_MULTIPART_DOWNLOAD_CHUNK_SIZE=chunk)
        assert sum(request.endswith("/server-info") for request in requests) == asked
