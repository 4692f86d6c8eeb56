"""Real `mlflow server`s."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def mlflow_server(folder: Path, database: str, *options: str, **environment: str) -> Iterator[str]:
    """The URI of a server over a database; it keeps artifacts in ``folder / "kept"``, which only it can reach."""
    port = free_port()
    uri = f"http://127.0.0.1:{port}"
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    # The server's own queues of jobs would be eight processes that no test uses.
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with open(folder / "server.log", "w") as log:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)),
                *("--workers", "1", "--backend-store-uri", database, "--artifacts-destination", str(folder / "kept")),
                *options,
            ],
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | {"PATH": path} | quiet | environment,
            cwd=folder,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + 180
        while not answers(uri):
            if process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"the server did not start: {(folder / 'server.log').read_text()[-3000:]}")
            time.sleep(0.3)
        yield uri
    finally:
        stop(process)


def answers(uri: str) -> bool:
    try:
        urllib.request.urlopen(f"{uri}/health", timeout=2)
    except OSError:
        return False
    return True


def stop(process: subprocess.Popen) -> None:
    """End a process that leads a session of its own, with all of its children."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, sign)
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=3)
