"""What `locate` and `requests` take in a large registry: seconds, memory, and requests to a server.

Makes a registry through MLflow's own client: versions with LoggedModels, whose files have one of 50 lists of 100,000
training ids (hard links), tags, aliases, and forget requests in runs of their own. Then it starts the commands as
processes: with the SQLite store itself, through `mlflow server`, and through one that asks for a password.

    python benchmarks/registry.py [--models 100] [--versions 10] [--cases 20]
"""

import argparse
import json
import multiprocessing
import os
import re
import resource
import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
from mlflow.models import Model
from mlflow.tracking import MlflowClient

from mlflow_unlearn.data.manifest import Manifest
from mlflow_unlearn.registry import forget_requests
from mlflow_unlearn.registry.versions import MANIFEST_FILE, WEIGHTS_TAG, TrainedOn, Version

LISTS, IDS, STRIDE = 50, 100_000, 18_000
"""Lists of training ids, how many each has, and how far each begins behind the last one: an id is in 5 or 6 of them."""
SOURCE, SOURCE_SHA256 = "folder:/data/images", "ab" * 32
USERS = ("admin", "of this benchmark")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=100, help="registered models")
    parser.add_argument("--versions", type=int, default=10, help="of each")
    parser.add_argument("--cases", type=int, default=20, help="with two requests each")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--only", choices=("sqlite", "server", "password"), help="default: all three")
    parser.add_argument("--folder", type=Path, help="where to keep the registry, or where it was kept")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    args = parser.parse_args()
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    result: dict[str, Any] = {
        "models": args.models,
        "versions": args.models * args.versions,
        "requests": 2 * args.cases,
    }
    with ExitStack() as stack:
        folder = args.folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="registry-")))
        if not (folder / "served.db").exists():
            start = time.perf_counter()
            # In a process of its own: on Linux the peak of a child begins with what its parent uses.
            arguments = (folder.absolute(), args.models, args.versions, args.cases)
            maker = multiprocessing.get_context("spawn").Process(target=make, args=arguments)
            maker.start()
            maker.join()
            if maker.exitcode:
                raise SystemExit("the registry could not be made")
            result["seconds to make it"] = round(time.perf_counter() - start, 1)
        result |= {"machine": processor(), "cores": os.cpu_count(), "rows": []}
        for way in ("sqlite", "server", "password"):
            if args.only in (None, way):
                for row in measured(folder.absolute(), way, args.repetitions):
                    result["rows"].append(row)
                    print(shown(row), flush=True)
                    args.out.write_text(json.dumps(result, indent=1) + "\n")


def make(folder: Path, models: int, versions: int, cases: int) -> None:
    """The registry in ``folder / "mlflow.db"``, its files in ``folder / "kept"``, and ``folder / "ids.txt"``."""
    folder.mkdir(parents=True, exist_ok=True)
    lists = [training_list(number) for number in range(LISTS)]
    files = [folder / f"list-{number}.csv" for number in range(LISTS)]
    for manifest, file in zip(lists, files, strict=True):
        manifest.to_csv(file)
    records = [TrainedOn.of(manifest, SOURCE, SOURCE_SHA256) for manifest in lists]
    middle = LISTS // 2 * STRIDE
    (folder / "ids.txt").write_text("\n".join(map(sample, range(middle, middle + 1000))))
    uri = f"sqlite:///{folder}/mlflow.db"
    mlflow.set_tracking_uri(uri)
    client = MlflowClient(uri)
    experiment = client.create_experiment("trainings", artifact_location=f"file://{folder}/kept/1")
    mlflow.set_experiment("trainings")
    run = client.create_run(experiment)
    for model in range(models):
        name = f"model-{model:05}"
        client.create_registered_model(name)
        for version in range(versions):
            told = records[(model + version) % LISTS]
            logged = client.create_logged_model(experiment, name=name, source_run_id=run.info.run_id, tags=told.tag())
            stored = Path(logged.artifact_location.removeprefix("file://"), "extra_files", MANIFEST_FILE)
            stored.parent.mkdir(parents=True)
            os.link(files[(model + version) % LISTS], stored)
            client.finalize_logged_model(logged.model_id, "READY")
            tags = {**told.tag(), WEIGHTS_TAG: f"{model:032x}{version:032x}"}
            source = f"models:/{logged.model_id}"
            client.create_model_version(name, source, run.info.run_id, tags=tags, model_id=logged.model_id)
        client.set_registered_model_alias(name, "champion", str(versions))
    for case in range(cases):
        ids = Manifest(tuple(map(sample, range(case * STRIDE, case * STRIDE + 100))))
        for model in (2 * case % models, (2 * case + 1) % models):
            with mlflow.start_run(), tempfile.TemporaryDirectory() as temporary:
                name = f"model-{model:05}"
                tags = client.get_model_version(name, "1").tags
                version = Version(f"models:/{name}/1", name, "1", None, folder, Model(), None, tags)
                details = {"forget": f"group:subject={case}", "source": SOURCE, "source_sha256": SOURCE_SHA256}
                options = {"folder": Path(temporary), "case": f"{case:012x}", "due": f"2030-01-{case % 28 + 1:02}"}
                forget_requests.file_request(client, version, ids, details, **options)
    client.set_terminated(run.info.run_id)
    shutil.copy(folder / "mlflow.db", folder / "served.db")
    served_elsewhere(folder / "served.db", f"file://{folder}/kept")


def training_list(number: int) -> Manifest:
    """Hashed, as all versions of ours have theirs."""
    plain = Manifest(tuple(map(sample, range(number * STRIDE, number * STRIDE + IDS))))
    return plain.hashed(Manifest.salt_of(SOURCE_SHA256))


def sample(number: int) -> str:
    return f"images/{number // 1000:05}/{number:08}.jpg"


def served_elsewhere(database: Path, kept: str) -> None:
    """The same registry, whose files only the server can reach."""
    columns = {
        "experiments": "artifact_location",
        "runs": "artifact_uri",
        "logged_models": "artifact_location",
        "model_versions": "storage_location",
    }
    with closing(sqlite3.connect(database)) as connection, connection:
        for table, column in columns.items():
            connection.execute(f"UPDATE {table} SET {column} = replace({column}, ?, 'mlflow-artifacts:')", (kept,))


def measured(folder: Path, way: str, repetitions: int) -> Iterator[dict[str, object]]:
    """What the commands take on one of three ways to the registry."""
    if way == "sqlite":
        yield from rows(folder, way, f"sqlite:///{folder}/mlflow.db", None, repetitions)
        return
    with server(folder, "--app-name", "basic-auth") if way == "password" else server(folder) as (uri, log):
        yield from rows(folder, way, uri, log, 1 if way == "password" else repetitions)


def rows(folder: Path, way: str, uri: str, log: Path | None, repetitions: int) -> Iterator[dict[str, object]]:
    shutil.rmtree(folder / f"cache-{way}", ignore_errors=True)
    environment = {"MLFLOW_TRACKING_URI": uri, "MLFLOW_UNLEARN_CACHE": str(folder / f"cache-{way}")}
    environment |= {"MLFLOW_TRACKING_USERNAME": USERS[0], "MLFLOW_TRACKING_PASSWORD": USERS[1]}
    for what, times, arguments in (
        ("locate, empty index", 1, ("locate", "--forget", "ids.txt")),
        ("locate", repetitions, ("locate", "--forget", "ids.txt")),
        ("requests", repetitions, ("requests",)),
    ):
        before = len(log.read_text()) if log else 0
        load = os.getloadavg()[0]
        taken = [command(folder, environment, *arguments) for _ in range(times)]
        row: dict[str, object] = {"way": way, "what": what, "load": round(load, 2)}
        row["seconds"] = [round(seconds, 2) for seconds, _ in taken]
        row["CPU seconds"] = [round(used.ru_utime + used.ru_stime, 2) for _, used in taken]
        row["MB"] = round(max(peak(used) for _, used in taken))
        if log:
            time.sleep(0.5)  # the last line
            requests = re.findall(r'"([A-Z]+ \S+) HTTP/', log.read_text()[before:])
            row["HTTP requests"] = len([one for one in requests if not one.endswith("/health")]) / times
        yield row


def command(folder: Path, environment: dict[str, str], *arguments: str) -> tuple[float, resource.struct_rusage]:
    """Seconds, start-up included, and what the process has used."""
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "mlflow_unlearn", *arguments],
        env=os.environ | environment,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    out = process.stdout.read() if process.stdout else ""
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(out)
    return time.perf_counter() - start, used


def peak(used: resource.struct_rusage) -> float:
    """MB of memory at the peak."""
    return used.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6


@contextmanager
def server(folder: Path, *options: str) -> Iterator[tuple[str, Path]]:
    """URI and log of `mlflow server` with one worker."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    users, log = folder / "auth.ini", folder / "server.log"
    users.write_text(
        f"[mlflow]\ndefault_permission = READ\ndatabase_uri = sqlite:///{folder}/users.db\n"
        f"admin_username = {USERS[0]}\nadmin_password = {USERS[1]}\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
    )
    environment = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_AUTH_CONFIG_PATH": str(users)}
    with open(log, "w") as file:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1"),
                *("--backend-store-uri", f"sqlite:///{folder}/served.db", "--artifacts-destination", f"{folder}/kept"),
                *options,
            ],
            stdout=file,
            stderr=subprocess.STDOUT,
            env=os.environ | environment | {"MLFLOW_FLASK_SERVER_SECRET_KEY": "of this benchmark alone"},
            cwd=folder,
        )
    try:
        wait_for(f"http://127.0.0.1:{port}/health", process)
        yield f"http://127.0.0.1:{port}", log
    finally:
        process.terminate()
        process.wait()


def wait_for(url: str, process: "subprocess.Popen[bytes]") -> None:
    while True:
        try:
            urllib.request.urlopen(url, timeout=2)
        except OSError as error:
            if process.poll() is not None:
                raise SystemExit("the server did not start") from error
            time.sleep(0.3)
        else:
            return


def shown(row: dict[str, object]) -> str:
    seconds, used = (float(np.median(row[name])) for name in ("seconds", "CPU seconds"))  # type: ignore[arg-type]
    asked = f", {row['HTTP requests']:.0f} HTTP requests" if "HTTP requests" in row else ""
    taken = f"{seconds:6.2f} s, {used:5.2f} s of CPU, {row['MB']} MB{asked}"
    return f"{row['way']:<9} {row['what']:<20} {taken} (load {row['load']})"


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return "unknown"


if __name__ == "__main__":
    main()
