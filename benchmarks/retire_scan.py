"""How long `retire` takes to look for copies: listing the files of many runs, and reading those of one size.

On this machine's disk, and through a tracking server with one worker.

    python benchmarks/retire_scan.py [--runs 1000]
"""

import argparse
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import mlflow

from mlflow_unlearn.governance.location import locate
from mlflow_unlearn.governance.storage import StoredFile, stored_files

FILES = 10
"""Of each run, in two folders."""
LARGE = 100
"""MiB of each file that is read."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root, large = Path(folder, "kept", "1"), Path(folder, "large")
        for run in range(args.runs):
            evidence = root / f"{run:032x}" / "artifacts" / "evidence"
            evidence.mkdir(parents=True)
            (evidence.parent / "config.yaml").write_text("x")
            for number in range(FILES - 1):
                (evidence / f"{number}.json").write_bytes(b"x" * 2000)
        for turn in range(3):
            print(f"local, {turn + 1}: {listed(root.as_uri())}")
        large.mkdir()
        for number in range(FILES):
            (large / f"{number}.bin").write_bytes(os.urandom(1 << 20) * LARGE)
        start = time.perf_counter()
        for file in stored_files(locate(large.as_uri())):
            if isinstance(file, StoredFile):
                file.digest()
        print(f"read: {FILES * LARGE / (time.perf_counter() - start):.0f} MiB/s")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        server = subprocess.Popen(
            [
                *(sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1"),
                *("--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", f"{folder}/kept"),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        )
        try:
            wait_for(f"http://127.0.0.1:{port}/health", server)
            mlflow.set_tracking_uri(f"http://127.0.0.1:{port}")
            for turn in range(2):
                print(f"through a server, {turn + 1}: {listed('mlflow-artifacts:/1')}")
        finally:
            server.terminate()
            server.wait()


def listed(uri: str) -> str:
    start = time.perf_counter()
    files = list(stored_files(locate(uri)))
    if not all(isinstance(file, StoredFile) for file in files):
        raise SystemExit(f"not all of {uri} was listed")
    return f"{len(files)} files in {time.perf_counter() - start:.2f} s"


def wait_for(url: str, server: "subprocess.Popen[bytes]") -> None:
    while True:
        try:
            urllib.request.urlopen(url, timeout=2)
        except OSError as error:
            if server.poll() is not None:
                raise SystemExit("the server did not start") from error
            time.sleep(0.3)
        else:
            return


if __name__ == "__main__":
    main()
