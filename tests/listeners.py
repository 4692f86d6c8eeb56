"""Real `listen` processes, and deliveries as MLflow signs them."""

import base64
import hashlib
import hmac
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlflow_unlearn.events.queue import Job, Queue

SECRET = "s3cret, and long enough"
VARIABLE = "LISTEN_SECRET"
ALLOW_LOCAL = {
    # MLflow sends to no private address, and to https alone, unless it is told to.
    "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true",
    "MLFLOW_WEBHOOK_ALLOWED_SCHEMES": "http,https",
}
CHAIN = """
secret: env:LISTEN_SECRET
attempts: 3
backoff: 0.5
sweep: 2
models:
  - name: "cl*"
    when: [request]
    then: [unlearn, review]
    options:
      unlearn: {params: {epochs: 1, lr: 0.003}}
      review: {policy: lenient.yaml}
"""


class Listener:
    """`listen` as a process of its own, which leads a session: its commands do not."""

    def __init__(self, config: Path) -> None:
        self.config = config
        self.log = config.parent / "listen.log"
        self.start()

    def start(self) -> None:
        before = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*(sys.executable, "-m", "mlflow_unlearn", "listen", "--config", str(self.config), "--port", "0")],
                stdout=log,
                stderr=log,
                env=os.environ | {VARIABLE: SECRET},
                cwd=self.config.parent,
            )

        def listening() -> str | None:
            if self.process.poll() is not None:
                pytest.fail(self.said())
            found = re.search(r"Listening on (\S+),", self.said()[before:])
            return found and found[1]

        self.url = wait_for(listening)

    def said(self) -> str:
        return self.log.read_text()

    def end(self, sign: int = signal.SIGTERM) -> int:
        """Its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(sign)
        return self.process.wait(timeout=60)

    def jobs(self) -> list[Job]:
        queue = Queue(self.config.parent / "queue.sqlite")
        try:
            return queue.jobs()
        finally:
            queue.close()

    def ended(self, count: int = 1, seconds: float = 120) -> list[Job]:
        """All jobs, once so many have ended and none is open."""

        def found() -> list[Job] | None:
            jobs = self.jobs()
            over = all(job.state not in ("waiting", "running") for job in jobs)
            return jobs if over and len(jobs) >= count else None

        return wait_for(found, seconds, self.said)


def wait_for(what: Callable[[], Any], seconds: float = 60, said: Callable[[], str] = str) -> Any:
    """What is found in the end."""
    end = time.monotonic() + seconds
    while not (found := what()):
        if time.monotonic() > end:
            pytest.fail(f"nothing within {seconds} seconds: {said()}")
        time.sleep(0.05)
    return found


def event(name: str, /, **data: str) -> bytes:
    """The body of a delivery."""
    entity, action = name.split(".")
    content = {"entity": entity, "action": action, "timestamp": "2026-01-01T00:00:00+00:00", "data": data}
    return json.dumps(content).encode()


def pending(model: str, version: str, request: str, state: str = "pending", of: str | None = None) -> bytes:
    """The body of the delivery about a request's tag."""
    details = {
        "of": of or f"models:/{model}/{version}",
        "run_id": "0" * 32,
        **({"by": ["m"]} if state == "done" else {}),
    }
    value = f"{state} {json.dumps(details)}"
    return event("model_version_tag.set", name=model, version=version, key=f"unlearn.request.{request}", value=value)


def headers(
    body: bytes, *, delivery: str | None = None, at: float | None = None, secret: str = SECRET
) -> dict[str, str]:
    """As MLflow's documentation says, in code of our own."""
    delivery, at = delivery or str(uuid.uuid4()), str(int(time.time() if at is None else at))
    digest = hmac.new(secret.encode(), f"{delivery}.{at}.".encode() + body, hashlib.sha256).digest()
    signed = f"v1,{base64.b64encode(digest).decode()}"
    return {"X-MLflow-Delivery-Id": delivery, "X-MLflow-Timestamp": at, "X-MLflow-Signature": signed}


def post(url: str, body: bytes, given: dict[str, str]) -> tuple[int, str]:
    """Status and text of the answer."""
    request = urllib.request.Request(url, body, {"Content-Type": "application/json", **given}, method="POST")
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
