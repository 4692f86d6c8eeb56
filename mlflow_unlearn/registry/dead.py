"""Which processes have died on this machine, and what their runs were about."""

import hashlib
import json
import os
import platform
import subprocess
import time
import uuid
from contextlib import suppress
from pathlib import Path

import mlflow
import platformdirs

from mlflow_unlearn.console import first_line, note
from mlflow_unlearn.parsing import load_json

COMMAND_VARIABLE = "MLFLOW_UNLEARN_COMMAND"
"""In the environment while a command works."""
PROCESS_TAG = "unlearn.process"
"""Of every run of ours: the name of its note, by which a run is found that was killed before the note had its id."""
_DAYS = 30
"""After which the note of a process that has ended is dropped: its store may be gone."""


_ours: dict[str, "RunNote"] = {}
"""Of this process's runs that go on, by their ids: one object a run, also where the disk takes no note."""


def this_process() -> str:
    """What tells this process from every other one, before and after a reboot: host, place, number, and its start."""
    return f"{this_machine()} {os.getpid()} {_started(os.getpid())}"


class RunNote:
    """What this user's disk says of a run of ours while it goes on: what a tag says could be anybody's word.

    Attributes:
        name: of the note, random; also the run's tag.
        facts: ``store``, ``process``, and what was added.
    """

    def __init__(self, name: str, facts: dict[str, str]) -> None:
        """Read or written before."""
        self.name, self.facts, self._kept = name, facts, True

    @classmethod
    def begin(cls, **facts: str) -> "RunNote":
        """A new one of this process, to be written before its run is created."""
        begun = cls(uuid.uuid4().hex, {"store": _store(), "process": this_process()})
        begun.add(**facts)
        return begun

    def add(self, **facts: str) -> None:
        """Write it with these facts, whole or not at all."""
        self.facts |= facts
        if "run" in self.facts:
            _ours[self.facts["run"]] = self
        half = self._path.with_suffix(f".{os.getpid()}")
        try:
            _folder().mkdir(mode=0o700, parents=True, exist_ok=True)
            half.write_text(json.dumps(self.facts))
            half.replace(self._path)
        except OSError as error:
            if self._kept:  # said once
                note(
                    f"Note: {str(_folder())!r} cannot be written ({first_line(error)}): should this command be killed, "
                    "its run stays open."
                )
            self._kept = False
            for path in (self._path, half):
                with suppress(OSError):
                    path.unlink(missing_ok=True)

    def drop(self) -> None:
        """Its run has ended; a note that cannot be removed says of a run that is closed."""
        _ours.pop(self.facts.get("run", ""), None)
        with suppress(OSError):
            self._path.unlink(missing_ok=True)

    @property
    def _path(self) -> Path:
        return _folder() / f"{self.name}.json"


def notes() -> list[RunNote]:
    """Those of runs in this store."""
    found, paths = [], list[Path]()
    with suppress(OSError):  # not this user's: then none was written either
        paths = sorted(_folder().glob("*.json"))
    for path in paths:
        try:
            facts = {str(key): str(value) for key, value in load_json(path.read_bytes()).items()}
            old = time.time() - path.stat().st_mtime > _DAYS * 86400
        except (OSError, ValueError, AttributeError):  # another command has dropped it, or it was damaged
            continue
        one = RunNote(path.stem, facts)
        if old and died(facts.get("process", "")):
            one.drop()
        elif facts.get("store") == _store():
            found.append(one)
    return found


def of_run(run_id: str) -> RunNote | None:
    """The note of a run that goes on, or that was killed."""
    return _ours.get(run_id) or next((one for one in notes() if one.facts.get("run") == run_id), None)


def killed(run_id: str) -> bool:
    """Whether a run is one of ours whose process was killed, and that no command has dealt with."""
    own = of_run(run_id)
    return own is not None and died(own.facts["process"])


def _store() -> str:
    return hashlib.sha256(mlflow.get_tracking_uri().encode()).hexdigest()


def _folder() -> Path:
    return platformdirs.user_state_path("mlflow-unlearn") / "runs"


def died(process: str) -> bool:
    """Whether a process, as `this_process` named it, has ended; False where that cannot be known."""
    try:
        here, pid, started = process.rsplit(" ", 2)
        # Where the system does not tell when a process started, another one may have its number.
        return here == this_machine() and started != "None" and str(_started(int(pid))) != started
    except ValueError:  # edited
        return False


def this_machine() -> str:
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
