"""`listen`: what it refuses at once, the table of its queue, and the process itself."""

import signal
import socket
from contextlib import closing

import pytest
from answers import checked
from listeners import CHAIN, SECRET, VARIABLE, Listener, headers, pending, post
from stores import reset_mlflow

from mlflow_unlearn.events.queue import Queue
from mlflow_unlearn.events.webhook import RegistryEvent


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, SECRET)
    path = tmp_path / "listen.yaml"
    path.write_text(CHAIN)
    return path


def test_what_is_refused_before_anything_listens(cli, config, empty_store, monkeypatch):
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        refused = cli("listen", "--config", config, "--port", port)
    assert refused.code == 2 and f"Error: port {port} of '127.0.0.1' cannot be listened on" in refused.err
    reset_mlflow()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert "cannot be reached" in cli("listen", "--config", config).err
    monkeypatch.delenv(VARIABLE)
    refused = cli("listen", "--config", config)
    assert refused.code == 2 and f"Error: there is no environment variable '{VARIABLE}'" in refused.err
    config.write_text(CHAIN.replace("attempts", "atempts"))
    refused = cli("listen", "--config", config)
    assert refused.code == 2 and "there is no key 'atempts'; did you mean 'attempts'?" in refused.err
    assert cli("listen", "--config", "none.yaml").code == 2


def test_what_is_to_be_retried_is_named(cli, config, empty_store):
    refused = cli("listen", "--config", config, "--status", "true", "--retry", "failed")
    assert refused.code == 2 and "--status only prints the queue, and --retry starts the listener" in refused.err
    refused = cli("listen", "--config", config, "--retry", "true")
    assert refused.code == 2 and "--retry true does not name jobs: give their ids" in refused.err
    refused = cli("listen", "--config", config, "--retry", "7")
    assert refused.code == 2 and "job 7 is not in the queue: give jobs that failed" in refused.err


def test_a_registry_in_files_sends_no_webhooks(cli, config, tmp_path, monkeypatch):
    reset_mlflow()
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    refused = cli("listen", "--config", config, "--port", 0)
    assert refused.code == 2 and "this registry keeps its versions in files and sends no webhooks" in refused.err


def test_the_queue_as_a_table(cli, config, monkeypatch):
    monkeypatch.delenv(VARIABLE)  # to look needs no secret
    shown = cli("listen", "--config", config, "--status", "true")
    assert shown.code == 0 and "queue.sqlite: 0 jobs" in shown.out
    assert not (config.parent / "queue.sqlite").exists()
    with closing(Queue(config.parent / "queue.sqlite")) as queue:
        for number in ("1", "2"):
            queue.accept(number, RegistryEvent("request", f"id{number}", "clf", number), ("unlearn", "review"))
        job = queue.claim([])
        queue.update_step(job, job.steps[0], state="done", result="models:/clf/3")
        queue.update_step(job, job.steps[1], state="failed")
        queue.update(job, state="failed", sentence="review: [no] such policy")
    shown = cli("listen", "--config", config, "--status", "true")
    assert shown.code == 0 and "queue.sqlite: 2 jobs" in shown.out
    first, second = [line for line in shown.out.splitlines() if "models:/clf" in line]
    for part in ("request id1", "failed", "unlearn done", "clf/3", "review: [no]"):
        assert part in first
    assert "request id2" in second and "waiting" in second
    answer = checked(cli("listen", "--config", config, "--status", "true", "--format", "json"), "listen")
    assert [(job["id"], job["state"], job["details"]) for job in answer["result"]["jobs"]] == [
        (1, "failed", ["id1"]),
        (2, "waiting", ["id2"]),
    ]
    assert answer["result"]["jobs"][0]["steps"][0]["result"] == "models:/clf/3"


@pytest.mark.slow
def test_it_listens_until_it_is_stopped_and_goes_on(cli, config, empty_store):
    """A second one is refused; what was accepted is there after `kill -9`."""
    config.write_text(CHAIN.replace("sweep: 2", "sweep: 86400"))
    listener = Listener(config)
    try:
        body = pending("clf", "1", "0" * 12)
        given = headers(body)
        assert post(listener.url, body, given) == (200, "accepted\n")
        listener.end(signal.SIGKILL)
        listener.start()
        assert post(listener.url, body, given) == (200, "accepted before\n")
        [job] = listener.ended()
        assert job.state == "failed" and "(name=clf, version=1) not found" in job.sentence
        second = cli("listen", "--config", config, "--port", 0)
        assert second.code == 2 and "is in use by another listener: end that one first" in second.err
    finally:
        code = listener.end()
    assert code == 143
