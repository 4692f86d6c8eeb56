"""The processes of a command that has several ranks."""

import subprocess
from pathlib import Path


def rank_of(pid: str) -> str | None:
    try:
        variables = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace").split("\0")
        parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]
    except OSError:
        return None
    named = dict(variable.partition("=")[::2] for variable in variables)
    return named.get("RANK") if named.get("RANK") and not rank_of(parent) else None


def ranks_below(launcher: subprocess.Popen) -> dict[str, int]:
    """Rank → process id."""
    pids = [path.name for path in Path("/proc").iterdir() if path.name.isdecimal()]
    found = {}
    for pid in pids:
        try:
            parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if parent == launcher.pid and (rank := rank_of(pid)) is not None:
            found[rank] = int(pid)
    return found
