"""Several processes, on one machine or on several: torchrun's elastic agent starts the ranks and watches them.

Each rank is ``python -m mlflow_unlearn`` with this process's own arguments. It finds RANK, LOCAL_RANK, WORLD_SIZE,
MASTER_ADDR and MASTER_PORT in its environment, and launches nothing itself.
"""

import json
import logging
import os
import signal
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from pydantic import ConfigDict, Field, ValidationError, field_validator, model_validator

from mlflow_unlearn.console import first_line, without_passwords
from mlflow_unlearn.errors import UnlearnError, UnlearnWarning
from mlflow_unlearn.parsing import NumbersAreNumbers, load_options, message
from mlflow_unlearn.spelling import spelled

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

NODES_VARIABLE = "MLFLOW_UNLEARN_NODES"
RUN_FILE_VARIABLE = "MLFLOW_UNLEARN_RUN_FILE"
"""Where rank 0 leaves the id of its run, which is ours to close if it is killed."""
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
_LAST_LINES = 30
_ECHO_SECONDS = 10


class Nodes(NumbersAreNumbers):
    """Where this machine stands among others: the JSON in MLFLOW_UNLEARN_NODES, the same everywhere but for the rank.

    >>> Nodes.read('{"nnodes": 2, "node_rank": 1, "rdzv_endpoint": "first:29500", "nproc_per_node": 4}').node_rank
    1
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    nnodes: int = Field(1, ge=1)
    node_rank: int = Field(0, ge=0)
    rdzv_endpoint: str | None = None
    nproc_per_node: int | None = Field(None, ge=1)

    @field_validator("rdzv_endpoint")
    @classmethod
    def _host_and_port(cls, endpoint: str | None) -> str | None:
        host, _, port = (endpoint or "any:1").rpartition(":")
        if not host or set(host) & set(" '\"/") or not port.isdecimal() or not 0 < int(port) < 65536:
            raise ValueError("give HOST:PORT of node 0, such as first.example.com:29500")
        return endpoint

    @model_validator(mode="after")
    def _complete(self) -> Self:
        missing = [name for name in ("node_rank", "rdzv_endpoint") if name not in self.model_fields_set]
        if self.nnodes > 1 and missing:
            raise ValueError(
                f"nnodes = {self.nnodes} needs {' and '.join(missing)} too: node_rank is 0 on the first node, "
                "rdzv_endpoint is HOST:PORT of the first node, on all of them"
            )
        if self.node_rank >= self.nnodes:
            raise ValueError(f"node_rank = {self.node_rank} does not fit nnodes = {self.nnodes}: count from 0")
        return self

    @classmethod
    def read(cls, value: str | Mapping[str, Any], where: str = NODES_VARIABLE) -> Self:
        """From JSON or a mapping.

        Raises:
            UnlearnError: a key is unknown or a value not usable; one sentence that begins with ``where``.
        """
        try:
            values = load_options(value, yaml=False) if isinstance(value, str) else value
        except ValueError as error:
            raise UnlearnError(f"{where}: the value = {value!r} is not usable: invalid JSON ({error})") from error
        if not isinstance(values, Mapping):
            raise UnlearnError(f"{where}: the value = {values!r} is not usable: input should be an object")
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            first = error.errors()[0]
            key, given = ".".join(map(str, first["loc"])), first["input"]
            if first["type"] == "extra_forbidden":
                sentence = f"unknown key {key!r}: the keys are {', '.join(cls.model_fields)}"
            elif key or first["type"] != "value_error":
                sentence = f"{key or 'the value'} = {given!r} is not usable: {message(first)}"
            else:
                sentence = message(first)
            raise UnlearnError(f"{where}: {sentence}") from error

    def to_json(self) -> str:
        """The inverse of `read`: what is set, and nothing else."""
        return json.dumps(self.model_dump(exclude_unset=True))


def should_launch(processes: int) -> bool:
    """Whether this process has to start ranks: it is not a rank, and several processes or nodes are asked for."""
    return "RANK" not in os.environ and (processes > 1 or NODES_VARIABLE in os.environ)


def launch(
    arguments: Sequence[str],
    processes: int = 1,
    *,
    device: str = "auto",
    module: str = "mlflow_unlearn",
    patience: int = 900,
    on_lost_run: Callable[[str], None] | None = None,
) -> int:
    """Run ``python -m module *arguments`` in several ranks and wait until all have ended; main thread only.

    Rank 0 writes to this process's own stdout and stderr. The others are silent, unless one is the first to fail: then
    the end of its stderr follows. One failure ends all ranks of the machine, with SIGTERM and 30 seconds later with
    SIGKILL. SIGTERM and SIGINT are passed on to the ranks.

    Args:
        arguments: of the command, without the program's name.
        processes: ranks on this machine; MLFLOW_UNLEARN_NODES may state it too, and names the other machines.
        device: as given to the command; with CUDA each rank needs a device of its own.
        module: what each rank runs.
        patience: seconds to wait for the other machines.
        on_lost_run: called with the id of the command's run where a rank has failed: rank 0 may not have closed it.

    Returns:
        The exit code: 0; that of the rank that failed first, or 1 if a signal killed it; 128 + n if signal n stopped
        this process.

    Raises:
        UnlearnError: MLFLOW_UNLEARN_NODES is not usable, there are fewer devices than ranks, or the nodes did not meet.
    """
    nodes = Nodes.read(os.environ.get(NODES_VARIABLE, "{}"))
    local = nodes.nproc_per_node or processes
    if processes not in (1, local):
        raise UnlearnError(f"--processes {processes} is not {NODES_VARIABLE}'s nproc_per_node = {local}: give one")
    with _environment("TORCH_CPP_LOG_LEVEL", "FATAL"):  # read once, here; what it would log comes as an exception too
        from torch.distributed import DistError
        from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, Std
        from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
        from torch.distributed.launcher.api import LaunchConfig, elastic_launch
    threads = _threads(local, device)
    agent_log = logging.getLogger("torch.distributed.elastic")
    agent_log.propagate = False
    agent_log.addHandler(logging.NullHandler())
    with (
        tempfile.TemporaryDirectory(prefix="mlflow-unlearn-ranks-") as logs,
        _environment("OMP_NUM_THREADS", threads),
        _environment(RUN_FILE_VARIABLE, str(Path(logs) / "run_id")),
        _environment("TORCH_CPP_LOG_LEVEL", "ERROR"),
        _signals_restored(),
    ):
        shown = 0 if nodes.node_rank == 0 else None
        redirects = {rank: Std.NONE if rank == shown else Std.ALL for rank in range(local)}
        config = LaunchConfig(
            min_nodes=nodes.nnodes,
            max_nodes=nodes.nnodes,
            nproc_per_node=local,
            run_id="mlflow-unlearn",
            max_restarts=0,
            logs_specs=DefaultLogsSpecs(log_dir=logs, redirects=redirects),
            **_rendezvous(nodes, patience),
        )
        # The agent takes arguments for templates.
        command = ("-m", module, *(argument.replace("$", "$$") for argument in arguments))
        try:
            elastic_launch(config, sys.executable)(*command)
        except ChildFailedError as error:
            causes = _causes(error.failures)
            for rank, failure in causes:
                [log] = Path(logs).glob(f"*/attempt_0/{failure.local_rank}")
                _explain(f"rank {rank} of {nodes.nnodes * local}", failure.exitcode, log / "stderr.log")
            if on_lost_run is not None and (file := Path(logs) / "run_id").exists():
                on_lost_run(file.read_text())
            return max(causes[0][1].exitcode, 0) or 1
        except SignalException as error:
            return 128 + error.sigval
        except DistError as error:
            raise UnlearnError(
                f"node {nodes.node_rank} of {nodes.nnodes} did not meet the others at {nodes.rdzv_endpoint} "
                f"({first_line(error)}): start the same command on every node, node_rank 0 on that host"
            ) from error
    return 0


def _rendezvous(nodes: Nodes, patience: int) -> dict[str, Any]:
    """How the agents of all machines meet; alone, the agent binds a free port by itself."""
    if nodes.nnodes == 1:
        return {"rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0", "local_addr": "localhost"}
    return {
        "rdzv_backend": "static",
        "rdzv_endpoint": nodes.rdzv_endpoint,
        "rdzv_configs": {"rank": nodes.node_rank, "timeout": patience},
    }


def _threads(local: int, device: str) -> str:
    """OMP_NUM_THREADS of each rank; refuses more ranks than CUDA devices."""
    import torch

    cuda = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    if cuda and ":" in device and local > 1:
        raise UnlearnError(
            f"{spelled('device', device)} is one device for {local} processes: use {spelled('device', 'cuda')}"
        )
    if cuda and local > torch.cuda.device_count():
        raise UnlearnError(
            f"{local} processes need {local} CUDA devices, and this machine has {torch.cuda.device_count()}: "
            f"use fewer processes, or {spelled('device', 'cpu')}"
        )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not cuda and local > cores:
        warnings.warn(
            f"{local} processes share {cores} cores: more than one process a core only costs time",
            UnlearnWarning,
            stacklevel=3,
        )
    return str(max(1, cores // local))


def _causes(failures: "Mapping[int, ProcessFailure]") -> "list[tuple[int, ProcessFailure]]":
    """Rank and failure that brought the others down; several, if it cannot be decided which.

    A rank's peers fail moments later, in the next all-reduce or by the agent's SIGTERM, and it may well be a peer that
    has ended first. Such an echo ends with 1, 143 or an abort of C++; bad input and a kill do not.
    """
    start = min(failure.timestamp for failure in failures.values())
    # Later ones were killed by the agent, since they did not heed its SIGTERM.
    early = [(rank, failure) for rank, failure in failures.items() if failure.timestamp < start + _ECHO_SECONDS]
    echoes = (1, 128 + signal.SIGTERM, -signal.SIGTERM, -signal.SIGABRT)
    early.sort(key=lambda item: (item[1].exitcode in echoes, item[1].timestamp))
    tracebacks = [(rank, failure) for rank, failure in early if failure.exitcode == 1]
    return tracebacks if early[0][1].exitcode == 1 else early[:1]


def _explain(rank: str, code: int, log: Path) -> None:
    """Print what the failing rank has printed, or why it could not; without a ``log`` its stderr was seen already."""
    printed = without_passwords(log.read_text(errors="replace").strip()) if log.exists() else ""
    if code < 0:
        name = signal.Signals(-code).name
        why = " (out of memory?): use fewer processes, or a machine with more memory" if name == "SIGKILL" else ""
        print(f"Error: {rank} was killed by {name}{why}", file=sys.stderr)
    start = ("\n" + printed).rfind("\nError: ")
    if printed and start >= 0:
        print(printed[start:], file=sys.stderr)
    elif printed and code > 0:
        print(f"Error: {rank} ended with exit code {code}; it printed:", file=sys.stderr)
        print("\n".join(printed.splitlines()[-_LAST_LINES:]), file=sys.stderr)
    elif code > 0 and log.exists():
        print(f"Error: {rank} ended with exit code {code} and printed nothing", file=sys.stderr)


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    """Have a variable in the environment, which ranks inherit, unless it is there already."""
    before = os.environ.get(name)
    os.environ[name] = before or value
    try:
        yield
    finally:
        del os.environ[name]
        if before is not None:
            os.environ[name] = before


@contextmanager
def _signals_restored() -> Iterator[None]:
    """The agent sets handlers when it starts the ranks; put the caller's back after."""
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    # It would set them for ignored signals too, and end a job under nohup with its terminal.
    ignored = {number for number, handler in before.items() if handler == signal.SIG_IGN}
    signal.pthread_sigmask(signal.SIG_BLOCK, ignored)
    for number in set(_SIGNALS) - ignored:
        # Until then it waits for other nodes in C++, where no handler in Python would run.
        signal.signal(number, signal.SIG_DFL)
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:
                signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ignored)
