"""A request at a real server, its webhook, and the chain that answers it; and `listen` killed in the middle."""

import os
import random
import signal
import time
from pathlib import Path

import pytest
from chains import LENIENT
from listeners import ALLOW_LOCAL, CHAIN, SECRET, Listener
from mlflow import MlflowClient
from mlflow.entities.webhook import WebhookEvent
from servers import mlflow_server
from stores import reset_mlflow, shell


@pytest.fixture
def served(store, tmp_path, monkeypatch):
    """A server over a store with clf version 1, and the folder of the listener's file."""
    with mlflow_server(tmp_path, store.uri, **ALLOW_LOCAL) as uri:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        reset_mlflow()
        folder = tmp_path / "listener"
        folder.mkdir()
        (folder / "lenient.yaml").write_text(LENIENT)
        (folder / "listen.yaml").write_text(CHAIN)
        yield MlflowClient(uri), folder
    reset_mlflow()


def subscribe(client, url):
    return client.create_webhook(
        "unlearn",
        url,
        [WebhookEvent.from_str(name) for name in ("model_version_tag.set", "model_version.created")],
        secret=SECRET,
    )


@pytest.mark.slow
def test_a_request_becomes_a_reviewed_version(served, store):
    """Once: neither the tags nor the version that this leaves behind are answered again."""
    client, folder = served
    listener = Listener(folder / "listen.yaml")
    try:
        subscribe(client, f"{listener.url}/")
        filed = shell("request", "--model-uri", "models:/clf/1", "--forget", "random:20,seed=1")
        assert filed.returncode == 0, filed.stderr
        [job] = listener.ended()
        assert job.sent > 0  # by the webhook, not found by the search
    finally:
        code = listener.end()
    assert code == 143 and "the next start continues from there" in listener.said()
    assert job.state == "done" and [step.result for step in job.steps] == ["models:/clf/2"] * 2
    assert [step.attempts for step in job.steps] == [0, 0]
    tags = store.tags("2")
    assert tags["unlearn.verdict"] == "pass" and store.versions() == ["1", "2"]
    [(state, details)] = store.requests().values()
    assert state == "done" and details["by"] == ["models:/clf/2"]
    for step in job.steps:
        run = client.get_run(step.run_id)
        assert run.info.status == "FINISHED" and run.data.tags["unlearn.command"] == step.command
        assert run.data.tags["unlearn.listen.step"].endswith(f"/{job.id}/{step.place}")


def children(pid):
    """Processes that this one has started."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(path.read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(path.parent.name))
        except OSError:  # it has ended
            continue
    return found


def kill(listener, with_command):
    """As the kernel does where memory is short; or as a container is, with all that runs in it."""
    commands = children(listener.process.pid) if with_command else []
    listener.end(signal.SIGKILL)
    for pid in commands:
        os.kill(pid, signal.SIGKILL)


@pytest.mark.nightly
def test_kills_lose_nothing_and_do_nothing_twice(served, store):
    """File requests while `listen` is killed again and again; then each has been fulfilled, and once.

    ``MLFLOW_UNLEARN_LISTEN_KILLS`` times, and 3 times where that is not set.
    """
    kills = int(os.environ.get("MLFLOW_UNLEARN_LISTEN_KILLS", "3"))
    seed = int(os.environ.get("MLFLOW_UNLEARN_KILL_SEED", "0"))
    (client, folder), requests = served, max(kills // 4, 2)
    draw = random.Random(seed)
    listener = Listener(folder / "listen.yaml")
    hook = subscribe(client, f"{listener.url}/")
    filed, moments = 0, sorted(draw.sample(range(kills), requests))
    for moment in range(kills):
        if moment in moments:
            asked = shell("request", "--model-uri", "models:/clf/1", "--forget", f"random:10,seed={filed}")
            assert asked.returncode == 0, asked.stderr
            filed += 1
        time.sleep(draw.uniform(0, 8))
        kill(listener, with_command=draw.random() < 0.5)
        listener.start()
        client.update_webhook(hook.webhook_id, url=f"{listener.url}/")
    jobs = listener.ended(1, 300)
    listener.end()
    assert {job.state for job in jobs} == {"done"}, listener.said()
    found = store.requests()
    assert len(found) == requests and {state for state, _ in found.values()} == {"done"}
    assert {detail for job in jobs for detail in job.details} == set(found)
    # A version is made for what is pending; what was forgotten before stays forgotten in it, so that it is noted too.
    made = [job.steps[0].result for job in jobs if job.steps[0].began is not None]
    assert (
        sorted(made)
        == sorted(set(made))
        == [f"models:/clf/{version}" for version in store.versions() if version != "1"]
    )
    for job in jobs:
        assert all(job.steps[0].result in found[detail][1]["by"] for detail in job.details)
    for version in store.versions()[1:]:
        tags = store.tags(version)
        assert tags["unlearn.verdict"] == "pass"
        assert not [key for key in tags if key == "unlearn.review.2"], tags
    assert not [run for run in store.runs() if run.info.status == "RUNNING"]
