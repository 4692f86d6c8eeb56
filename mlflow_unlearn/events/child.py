"""One command as a process that may outlive us: its output is a file, and a lock on that says that it lives."""

import fcntl
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from mlflow_unlearn.console import note, one_line
from mlflow_unlearn.errors import WAYS_OUT

_PAUSE = 0.1
"""Seconds between two looks at a process."""
GRACE = 120.0
"""Seconds after SIGTERM until a command is killed, which the next one sees to."""
REFUSED = 3
"""Exit code of a command that has judged."""


def alive(log: Path) -> bool:
    """Whether the command that writes to this file still runs, whoever has started it."""
    if not log.exists():
        return False
    with log.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def wait_until_ended(log: Path, stopping: Callable[[], bool]) -> bool:
    """Wait for a command that an earlier listener has started; False where we are to stop before it ends."""
    if alive(log):
        note(f"Note: waiting for a command that an earlier listener started and that still runs: see {log}.")
    while alive(log):
        if stopping():
            return False
        time.sleep(_PAUSE)
    return True


def run(
    arguments: Sequence[str], *, log: Path, folder: Path, environment: Mapping[str, str], stopping: Callable[[], bool]
) -> tuple[int, str]:
    """Run a command of ours to its end; SIGTERM to it, once, when we are to stop.

    Its output goes to a file and not to a pipe: were we killed, it would die of the broken pipe in the middle of its
    work. The lock on that file is the process's own, which has inherited it, so that a listener that starts later
    waits for it.

    Args:
        arguments: of the command line.
        log: takes its output.
        folder: in which it runs.
        environment: of the process.
        stopping: whether we are to stop.

    Returns:
        Its exit code, minus the signal that has ended it; and what it said last of an error.
    """
    with log.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        start = os.fstat(file.fileno()).st_size
        process = subprocess.Popen(
            # -P: a json.py in the folder of the rules is not Python's; `python:` sources are still found there.
            [sys.executable, "-P", "-m", "mlflow_unlearn", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env=dict(environment),
            # Ctrl-C in a terminal is for us, who then end the command as on SIGTERM.
            start_new_session=True,
        )
    told: float | None = None
    while (code := process.poll()) is None:
        if stopping() and told is None:
            process.send_signal(signal.SIGTERM)
            told = time.monotonic()
        if told is not None and time.monotonic() - told > GRACE:  # a thread of a library that does not end
            process.kill()
        time.sleep(_PAUSE)
    with log.open("rb") as file:
        file.seek(start)
        text = file.read().decode(errors="replace")
    return code, last_error(text, code)


def last_error(text: str, code: int) -> str:
    r"""The sentence with which a command has ended.

    >>> last_error("Note: slow.\nError: no such file: give another one\n", 2)
    'no such file: give another one'
    >>> last_error("Note: slow.\nmodels:/clf/2 does not pass.\nWhat can be done now:\n  mlflow-unlearn …\n", 3)
    'models:/clf/2 does not pass.'
    >>> last_error("", -9)
    'killed by SIGKILL'
    """
    found = re.findall(r"^Error: (.+)$", text, re.MULTILINE)
    if found:
        return one_line(found[-1])
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    lines = text.partition(f"\n{WAYS_OUT}\n")[0].strip().splitlines()
    return one_line(lines[-1]) if lines and code else ""
