"""Local workers: the same command in further processes of this machine, each with its part of the cores."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mlflow
import torch

from mlflow_unlearn import config
from mlflow_unlearn.console import note
from mlflow_unlearn.registry.tracking import child_environment
from mlflow_unlearn.registry.uris import absolute_uri

_STOP_SECONDS = 30


@contextmanager
def sharing_cores(workers: int) -> Iterator[None]:
    """Leave the workers their cores, from the first pass to the winner's last: other threads make other weights."""
    before = torch.get_num_threads()
    if workers > 1 and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(_threads(workers))
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def local_workers(options: config.Tune, study: str) -> "Iterator[list[subprocess.Popen[bytes]]]":
    """``options.workers − 1`` further processes on the study, waited for at the block's end; failures are noted.

    With an exception they end at once. A worker takes over where this process dies: it has the same options.
    """
    with tempfile.TemporaryDirectory(prefix="mlflow-unlearn-workers-") as folder:
        logs = [Path(folder) / f"worker-{number}.log" for number in range(1, options.workers)]
        processes = [_start(options, study, number, log) for number, log in enumerate(logs, start=1)]
        try:
            yield processes
            for process in processes:
                process.wait()
        except BaseException:
            for process in processes:
                process.terminate()
            raise
        finally:
            for number, (process, log) in enumerate(zip(processes, logs, strict=True), start=1):
                _end(number, process, log)


def _threads(workers: int) -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // workers)


def _start(options: config.Tune, study: str, number: int, log: Path) -> "subprocess.Popen[bytes]":
    active = mlflow.active_run()
    env = {"OMP_NUM_THREADS": str(_threads(options.workers)), **child_environment()}
    env["MLFLOW_TRACKING_URI"] = mlflow.get_tracking_uri()
    env[config.STORAGE_VARIABLE] = absolute_uri(options.storage)
    own = options.model_copy(update={"study": study, "workers": 1})
    if active is not None:
        # Runs of their own, in the experiment of this one.
        env["MLFLOW_EXPERIMENT_ID"] = active.info.experiment_id
        env.pop("MLFLOW_EXPERIMENT_NAME", None)
    if torch.cuda.device_count() > 1 and options.device in ("auto", "cuda"):
        every = ",".join(map(str, range(torch.cuda.device_count())))
        devices = os.environ.get("CUDA_VISIBLE_DEVICES", every).split(",")
        env["CUDA_VISIBLE_DEVICES"] = devices[number % len(devices)]
    with log.open("wb") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "mlflow_unlearn", "tune", *config.as_arguments(own)],
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=file,
            process_group=0,  # Ctrl-C comes from this process, once
        )


def _end(number: int, process: "subprocess.Popen[bytes]", log: Path) -> None:
    try:
        code = process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        code = process.wait()
    if code not in (0, 130, 143):
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        note(f"Note: worker {number} ended with exit code {code}: {lines[-1] if lines else 'without a message'}")
