"""Real requests to the server: who is let in, and what is then on disk."""

import http.client
import json
import sqlite3
import threading
import time
import urllib.request
from contextlib import closing
from types import SimpleNamespace

import pytest
from listeners import CHAIN, SECRET, event, headers, pending, post

from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.events.queue import Queue
from mlflow_unlearn.events.receiver import Receiver
from mlflow_unlearn.events.rules import read_file

ID = "0123456789ab"
BODY = pending("clf", "1", ID)


@pytest.fixture
def served(tmp_path):
    (tmp_path / "listen.yaml").write_text(CHAIN)
    file = read_file(str(tmp_path / "listen.yaml"))
    with closing(Queue(file.queue_path)) as queue:
        with Receiver("127.0.0.1", 0, file, queue, SECRET.encode()) as server:
            thread = threading.Thread(target=server.serve_forever, args=(0.02,))
            thread.start()
            yield SimpleNamespace(url=server.url, port=server.server_port, queue=queue, file=file)
            server.shutdown()
            thread.join()


def test_a_signed_delivery_is_on_disk_when_it_is_answered(served):
    assert post(served.url, BODY, headers(BODY)) == (200, "accepted\n")
    with closing(sqlite3.connect(served.file.queue_path)) as database:  # another reader of the file
        assert database.execute("SELECT model, version, kind, state FROM jobs").fetchall() == [
            ("clf", "1", "request", "waiting")
        ]
    [job] = served.queue.jobs()
    assert job.details == (ID,) and [step.command for step in job.steps] == ["unlearn", "review"]


def test_a_delivery_that_comes_twice_is_one(served):
    given = headers(BODY)
    assert post(served.url, BODY, given)[0] == 200
    assert post(served.url, BODY, given) == (200, "accepted before\n")
    with closing(sqlite3.connect(served.file.queue_path)) as database:
        assert database.execute("SELECT count(*) FROM events").fetchone() == (1,)


@pytest.mark.parametrize(
    ("change", "status", "message"),
    [
        ({"X-MLflow-Signature": "v1,bm90IGl0"}, 401, "the signature is wrong"),
        ({"X-MLflow-Signature": "é"}, 401, "the signature is wrong"),
        ({"X-MLflow-Signature": ""}, 401, "the header X-MLflow-Signature is missing"),
        ({"X-MLflow-Delivery-Id": "another"}, 401, "the signature is wrong"),
        ({"X-MLflow-Timestamp": str(int(time.time()) + 1)}, 401, "the signature is wrong"),
        ({"X-MLflow-Delivery-Id": ""}, 401, "the header X-MLflow-Delivery-Id is missing"),
    ],
)
def test_a_delivery_that_is_not_signed_is_refused(served, change, status, message):
    given = {name: value.encode("latin-1") for name, value in (headers(BODY) | change).items()}
    code, answer = post(served.url, BODY, given)
    assert code == status and message in answer
    assert served.queue.jobs() == []


def test_another_body_under_the_same_signature_is_refused(served):
    assert post(served.url, BODY.replace(b"clf", b"clg"), headers(BODY))[0] == 401
    assert post(served.url, BODY, headers(BODY, secret="another"))[0] == 401
    assert served.queue.jobs() == []


@pytest.mark.parametrize("apart", [-301, 3600])
def test_an_old_timestamp_is_refused_although_it_is_signed(served, apart):
    code, answer = post(served.url, BODY, headers(BODY, at=time.time() + apart))
    assert code == 400 and "is more than 300 seconds from the clock here" in answer
    assert post(served.url, BODY, headers(BODY, at=time.time() - 290))[0] == 200


def test_two_signatures_while_a_secret_is_changed(served):
    given = headers(BODY)
    given["X-MLflow-Signature"] = f"v1,b2xk {given['X-MLflow-Signature']}"
    assert post(served.url, BODY, given)[0] == 200


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"not json", 400),
        (b"{}", 400),
        (event("registered_model.created", name="clf"), 200),
        (event("prompt_tag.set", name="p", key="k", value="v"), 200),
        (event("model_version.created", name="clf", version="2"), 200),  # no rule has `version`
        (pending("other", "1", ID), 200),
        (pending("clf", "2", ID, of="models:/clf/1"), 200),
    ],
)
def test_what_is_no_event_for_a_rule_makes_no_job(served, body, status):
    assert post(served.url, body, headers(body))[0] == status
    assert served.queue.jobs() == []


def test_ten_megabytes_are_not_read(served):
    code, answer = post(served.url, b" " * 10_000_000, headers(BODY))
    assert (code, answer) == (413, "more than 1000000 bytes (max_body)\n")
    with closing(http.client.HTTPConnection("127.0.0.1", served.port, timeout=10)) as client:
        client.putrequest("POST", "/")
        client.putheader("Content-Length", str(10**12))
        client.endheaders()  # and nothing more: the answer does not wait for it
        assert client.getresponse().status == 413
    with closing(http.client.HTTPConnection("127.0.0.1", served.port, timeout=10)) as client:
        client.putrequest("POST", "/")
        client.endheaders()
        assert client.getresponse().status == 411
    assert post(served.url, BODY, headers(BODY))[0] == 200


def test_a_queue_that_cannot_be_written_has_it_sent_again(served):
    served.queue.close()
    assert post(served.url, BODY, headers(BODY))[0] == 503
    assert post(served.url, b"x", {})[0] == 401


def test_health(served):
    post(served.url, BODY, headers(BODY))
    with urllib.request.urlopen(f"{served.url}/health", timeout=10) as answer:
        assert json.load(answer) == {"status": "ok", "jobs": {"waiting": 1}}
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(f"{served.url}/other", timeout=10)


def test_a_port_that_is_taken(served):
    with pytest.raises(
        UnlearnError, match=f"^port {served.port} of '127.0.0.1' cannot be listened on .Address already"
    ):
        Receiver("127.0.0.1", served.port, served.file, served.queue, b"")
    with pytest.raises(UnlearnError, match="^port 0 of 'no such host' cannot be listened on"):
        Receiver("no such host", 0, served.file, served.queue, b"")
