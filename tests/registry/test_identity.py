"""The user who runs a command."""

import getpass
import json
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import mlflow
import pytest
from mlflow.exceptions import MlflowException
from stores import reset_mlflow

from mlflow_unlearn.registry.identity import whoami


@pytest.fixture
def answers(monkeypatch):
    """Have the tracking server answer every question with a status."""
    servers = []

    def serve(status: int) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(status)
                self.end_headers()
                self.wfile.write(json.dumps({"user": {"username": "ann"}}).encode())

            def log_message(self, *arguments):
                pass

        server = HTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        Thread(target=server.serve_forever, daemon=True).start()
        mlflow.set_tracking_uri(f"http://127.0.0.1:{server.server_port}")

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()
    reset_mlflow()


def test_the_server_s_user(answers):
    answers(200)
    person = whoami()
    assert (person.name, person.authenticated) == ("ann", True)


def test_a_server_without_users(answers):
    answers(404)
    assert (whoami().name, whoami().authenticated) == (getpass.getuser(), False)


def test_a_server_that_refuses(answers):
    answers(403)
    with pytest.raises(MlflowException, match="status 403"):
        whoami()


def test_a_database_knows_no_users(empty_store, monkeypatch):
    monkeypatch.setenv("LOGNAME", "ben")
    assert (whoami().name, whoami().authenticated) == ("ben", False)
