"""Which processes, and which runs of theirs, have died on this machine."""

import hashlib
import os
import platform
import subprocess
from contextlib import suppress
from pathlib import Path

from mlflow.entities import Run
from mlflow.tracking import MlflowClient

COMMAND_VARIABLE = "MLFLOW_UNLEARN_COMMAND"
"""In the environment while a command works."""
PROCESS_TAG = "unlearn.process"
"""Of every run of ours: host, a digest of the place, process id, and when that process started."""


def this_process() -> str:
    """The tag's value: what tells this process from every other one, before and after a reboot."""
    return f"{_here()} {os.getpid()} {_started(os.getpid())}"


def dead_runs(client: MlflowClient, experiment: str) -> list[Run]:
    """Runs of ours that are RUNNING and whose process on this machine is gone; those of other machines are not judged.

    Args:
        client: of the tracking store.
        experiment: id of the one that is looked at.
    """
    where = f"attributes.status = 'RUNNING' and tags.`{PROCESS_TAG}` LIKE '{_here()} %'"
    return [run for run in client.search_runs([experiment], where) if died(run.data.tags[PROCESS_TAG])]


def died(process: str) -> bool:
    """Whether the process of such a tag has ended; False where that cannot be known, as on another machine."""
    try:
        here, pid, started = process.rsplit(" ", 2)
        # Where the system does not tell when a process started, another one may have its number.
        return here == _here() and started != "None" and str(_started(int(pid))) != started
    except ValueError:  # edited
        return False


def _here() -> str:
    """The host, and what tells two machines of one name, or two containers, from each other."""
    marks = []
    with suppress(OSError):
        marks.append(Path("/etc/machine-id").read_text())
    with suppress(OSError):
        marks.append(os.readlink("/proc/self/ns/pid"))
    return f"{platform.node()} {hashlib.sha256(''.join(marks).encode()).hexdigest()[:12]}"


def _started(pid: int) -> str | None:
    """When a process started, as far as it lives; one that has ended and was not waited for does not."""
    if not Path("/proc/self/stat").exists():
        with suppress(OSError):
            found = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True)
            return "-".join(found.stdout.split()) or None
        return None
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return None if state in "ZX" else f"{boot}.{fields[18]}"
