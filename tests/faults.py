"""A proxy before a server that fails some requests, as networks, gateways and busy servers do."""

import http.client
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

KINDS = ("drop", "delay", "truncate", 429, 500, 503)
DELAY_SECONDS = 4.0
"""Longer than the client waits: see `MLFLOW_HTTP_REQUEST_TIMEOUT` in `test_faults`."""
_OF_THE_CONNECTION = ("connection", "content-length", "keep-alive", "transfer-encoding")


class Proxy(ThreadingHTTPServer):
    """Listens on a port of its own.

    Besides the `KINDS` a script knows ``gone`` (from now on connections are refused), ``stall`` (half of an answer,
    then silence) and ``trickle`` (its bytes come one by one, and it has no end).

    Attributes:
        fraction: of requests that fail.
        script: the ends of paths whose next request fails, and how; it is carried out before. Of those in `always`,
            every request does.
        failed: how many did, by what was asked for and how it failed.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, target: str, seed: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.target, self.fraction, self.failed = urlsplit(target).netloc, 0.0, Counter[str]()
        self.script: dict[str, str | int] = {}
        self.always: tuple[str, ...] = ()
        self.gone = False
        self._draw, self._lock = random.Random(seed), threading.Lock()

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def fault(self, request: str) -> tuple[str | int | None, bool]:
        """How this request fails, if it does, and whether the server has carried it out before."""
        with self._lock:
            if self.gone:
                return "drop", False
            for end in [*self.script]:
                if request.endswith(end):
                    self.failed[request] += 1
                    return (self.script[end] if end in self.always else self.script.pop(end)), True
            if self._draw.random() >= self.fraction:
                return None, True
            kind = self._draw.choice(KINDS)
            carried_out = kind in ("delay", "truncate") or self._draw.random() < 0.5
            self.failed[f"{request}: {kind}{', carried out' if carried_out else ''}"] += 1
            return kind, carried_out


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Proxy

    def _forward(self) -> None:
        body = self._body()
        kind, carried_out = self.server.fault(f"{self.command} {urlsplit(self.path).path}")
        status, headers, content = self._asked(body) if carried_out else (0, [], b"")
        if kind == "delay":
            time.sleep(DELAY_SECONDS)
        elif kind == "drop":
            self.close_connection = True
            return
        elif kind == "gone":
            self.close_connection = self.server.gone = True
            self.server.shutdown()  # it is served by another thread
            self.server.server_close()
            return
        elif isinstance(kind, int):
            status, headers, content = kind, [("Retry-After", "1")] if kind == 429 else [], b"busy"
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in _OF_THE_CONNECTION:
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(content) if kind != "trickle" else 10**6))
        if kind in ("stall", "trickle"):
            with suppress(ConnectionError):
                self._never_ends(content, kind)
            return
        if kind == "truncate" and content:
            content, self.close_connection = content[: len(content) // 2], True
        with suppress(ConnectionError):  # the client has not waited
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

    def _never_ends(self, content: bytes, kind: str) -> None:
        """Until its client has had enough, or for half a minute."""
        self.close_connection = True
        self.end_headers()
        self.wfile.write(content[: len(content) // 2])
        for _ in range(300):
            time.sleep(0.1)
            if kind == "trickle":
                self.wfile.write(b" ")

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = _forward

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = b""
        while size := int(self.rfile.readline(), 16):
            chunks += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return chunks

    def _asked(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = http.client.HTTPConnection(self.server.target, timeout=120)
        headers = {name: value for name, value in self.headers.items() if name.lower() not in _OF_THE_CONNECTION}
        connection.request(self.command, self.path, body or None, headers | {"Content-Length": str(len(body))})
        answer = connection.getresponse()
        try:
            return answer.status, answer.getheaders(), answer.read()
        finally:
            connection.close()

    def log_message(self, *_) -> None:
        """Not one line a request."""


@contextmanager
def proxy(target: str, seed: int) -> Iterator[Proxy]:
    """Before the server at this URI; no request fails until its `fraction` is set."""
    server = Proxy(target, seed)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=10)
