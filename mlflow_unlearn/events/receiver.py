"""The HTTP server: takes deliveries, and answers 200 once they are on disk.

Python's own server, since there are two addresses, a few short requests, and a reverse proxy before it for TLS: Flask
and uvicorn, which MLflow brings along, would add a framework, and the queue is what has to be right.
"""

import json
import socket
import socketserver
import sqlite3
import sys
import time
from contextlib import suppress
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from mlflow_unlearn.console import note, one_line
from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.events.queue import Queue
from mlflow_unlearn.events.rules import ListenFile
from mlflow_unlearn.events.webhook import BadDelivery, check, parse
from mlflow_unlearn.parsing import whole_number

_LINGER = 2.0
"""Seconds in which what a refused client still sends is thrown away, so that it reads our answer."""


class Receiver(ThreadingHTTPServer):
    """Listens on one address; `serve_forever` answers."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, host: str, port: int, file: ListenFile, queue: Queue, secret: bytes) -> None:
        """Take the address.

        Args:
            host: address or name of this machine.
            port: 0 for any that is free.
            file: what is accepted.
            queue: takes it.
            secret: of the webhook.

        Raises:
            UnlearnError: it cannot be had.
        """
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            super().__init__((host, port), partial(_Handler, file, queue, secret))
        except OSError as error:
            raise UnlearnError(
                f"port {port} of {host!r} cannot be listened on ({error.strerror or error}): name another one"
            ) from error

    def server_bind(self) -> None:
        """Without the name of the host, for which a DNS server may be asked for seconds."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has gone is none; all else is a bug, with its traceback."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)

    @property
    def url(self) -> str:
        """Where it listens."""
        host = f"[{self.server_name}]" if ":" in self.server_name else self.server_name
        return f"http://{host}:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    """One request."""

    timeout = 30  # of a client that says nothing

    def __init__(self, file: ListenFile, queue: Queue, secret: bytes, *arguments: Any) -> None:
        self._file, self._queue, self._secret = file, queue, secret
        super().__init__(*arguments)

    def do_GET(self) -> None:
        """``/health``: the queue can be read."""
        if self.path != "/health":
            self._answer(404, "send deliveries by POST; /health answers to GET")
            return
        try:
            self._answer(200, json.dumps({"status": "ok", "jobs": self._queue.counts()}), kind="application/json")
        except sqlite3.Error as error:
            self._answer(503, f"the queue cannot be read ({error})")

    def do_POST(self) -> None:
        """A delivery, at any path."""
        length = whole_number(self.headers.get("Content-Length", ""))
        if length is None:
            self._answer(411, "Content-Length is missing", linger=True)
        elif length > self._file.max_body:
            self._answer(413, f"more than {self._file.max_body} bytes (max_body)", linger=True)
        else:
            body = self.rfile.read(length)
            if len(body) == length:  # else the client has gone
                self._answer(*self._deliver(body))

    def _deliver(self, body: bytes) -> tuple[int, str]:
        try:
            delivery = check(self.headers, body, self._secret, now=time.time(), window=self._file.replay_window)
            event = parse(body)
            rule = None if event is None else self._file.rule(event.model, event.kind, event.detail)
            if event is None or rule is None:
                return 200, "ignored: no rule is about this"
            new = self._queue.accept(delivery, event, rule.then)
        except BadDelivery as error:
            return error.status, str(error)
        except sqlite3.Error as error:  # such as a full disk: the server sends it again
            return 503, f"the queue cannot be written ({error})"
        return 200, "accepted" if new else "accepted before"

    def _answer(
        self, status: int, sentence: str, *, kind: str = "text/plain; charset=utf-8", linger: bool = False
    ) -> None:
        content = f"{sentence}\n".encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
        if status >= 400:
            note(f"Refused a request of {self.client_address[0]}: {status}, {one_line(sentence)}.")
        if linger:
            self._discard()

    def _discard(self) -> None:
        """A connection that is closed with unread data in it takes our answer along."""
        end = time.monotonic() + _LINGER
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_WR)
            self.connection.settimeout(_LINGER / 4)
            while time.monotonic() < end and self.rfile.read1(65536):
                pass

    def log_message(self, format: str, *values: Any) -> None:
        """Nothing for what was accepted: the queue says it."""
