"""A PostgreSQL server of our own in a temporary folder, where Debian's package is installed."""

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def postgres_programs() -> Path | None:
    """Debian keeps them out of PATH."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return found[-1].parent if found else None


@contextmanager
def postgres_server() -> Iterator[str]:
    """URL of an empty server, without a database's name at its end."""
    programs = postgres_programs()
    assert programs is not None
    # The server refuses to run as root, and pytest's folders are the user's alone.
    user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    with tempfile.TemporaryDirectory(prefix="mlflow-unlearn-postgres-") as name:
        if user:
            shutil.chown(name, "postgres")
        with _running(programs, user, Path(name)) as url:
            yield url


@contextmanager
def _running(programs: Path, user: list[str], folder: Path) -> Iterator[str]:

    def call(program: str, *arguments: str) -> None:
        command = [*user, str(programs / program), "-D", str(folder / "data"), *arguments]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=folder)

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    call("initdb", "-U", "tester", "-A", "trust", "--no-sync")
    options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
    call("pg_ctl", "start", "-w", "-l", str(folder / "log"), "-o", options)
    try:
        yield f"postgresql+psycopg://tester@127.0.0.1:{port}"
    finally:
        call("pg_ctl", "stop", "-m", "immediate")
