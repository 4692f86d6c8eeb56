"""Commands in processes that are killed right before their n-th write, and what a store holds after that.

As a script it has loaded everything, reads a request a line, and forks a process for each: a start takes no time.
"""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stores import Outcome, Store


class Forge:
    """Runs command lines in forked processes; end it with `close`."""

    def __init__(self, environment: dict[str, str]) -> None:
        command = [sys.executable, __file__]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self._process = subprocess.Popen(command, env=os.environ | environment, **pipes)

    def run(self, store: Store, *arguments: str, die_at: int = 0, **environment: str) -> "Ended":
        """The command in the store's folder; killed before its write number ``die_at``, if it comes to that."""
        request = {"folder": str(store.folder), "arguments": list(map(str, arguments)), "die_at": die_at}
        request["environment"] = environment
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        out, err = ((store.folder / name).read_text() for name in ("stdout", "stderr"))
        return Ended(answer["code"], out, err, answer["writes"])

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait(timeout=60)


@dataclass
class Ended(Outcome):
    """How a command ended: minus the signal that has killed it; and how many writes it came to."""

    writes: int


def contents(store: Store) -> dict[str, Any]:
    """What the registry holds, and the weights of its versions, without ids and times."""
    client, found = store.client, {}
    for model in client.search_registered_models():
        versions = {}
        for version in client.search_model_versions(f"name='{model.name}'"):
            tags = {key: value if "weights" in key else plain(value, store) for key, value in version.tags.items()}
            tags |= {"unlearn.trial": "NUMBER"} if "unlearn.trial" in tags else {}
            uri = client.get_model_version_download_uri(version.name, version.version)
            location = uri if "models:/m-" not in uri else client.get_logged_model(uri.split("/")[-1]).artifact_location
            file = Path(location.removeprefix("file://")) / "extra_files" / "weights.safetensors"
            weights = hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else None
            versions[str(version.version)] = (plain(version.description or "", store), tags, weights)
        aliases = {alias: str(number) for alias, number in model.aliases.items()}
        found[model.name] = (versions, aliases, {key: plain(value, store) for key, value in model.tags.items()})
    return found


def plain(text: str, store: Store) -> str:
    """Without what differs from one time to the next: ids, digests, times, durations, the number of a trial."""
    text = text.replace(str(store.folder), "STORE")
    text = re.sub(r"\b[0-9a-f]{64}\b|\b(m-)?[0-9a-f]{32}\b", "ID", text)
    text = re.sub(r"\d{4}-\d\d-\d\dT[\d:.]+(\+00:00|Z)?", "TIME", text)
    # A trial that was killed keeps its number, and is made again by another one.
    return re.sub(r"\btrial = \d+", "trial = NUMBER", re.sub(r"\b[\d.]+ s\b", "SECONDS", text))


def leftovers(store: Store) -> list[str]:
    """What no command may leave behind once the next one has ended."""
    client = store.client
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    sources = {str(version.source) for version in client.search_model_versions()}
    return [
        *(f"run {r.data.tags.get('mlflow.runName')} is RUNNING" for r in store.runs() if r.info.status == "RUNNING"),
        *(
            f"LoggedModel {model.model_id} has no version"
            for model in client.search_logged_models(experiments)
            if f"models:/{model.model_id}" not in sources
        ),
        *(f"{path.name} is left" for path in (store.folder / "cache").glob("checkpoints/*.safetensors")),
        *(f"{path.name} is left" for path in (store.folder / "state").glob("mlflow-unlearn/runs/*")),
    ]


def _serve() -> None:
    import mlflow  # noqa: F401
    import mlflow.pytorch  # noqa: F401
    import toy  # noqa: F401

    import mlflow_unlearn.commands.compare
    import mlflow_unlearn.commands.promote
    import mlflow_unlearn.commands.request
    import mlflow_unlearn.commands.retire
    import mlflow_unlearn.commands.review
    import mlflow_unlearn.commands.train
    import mlflow_unlearn.commands.tune
    import mlflow_unlearn.commands.unlearn  # noqa: F401

    for line in sys.stdin:
        request = json.loads(line)
        folder = Path(request["folder"])
        read, write = os.pipe()
        child = os.fork()
        if not child:
            _command(folder, request["arguments"], request["die_at"], write, request["environment"])
        os.close(write)
        status = os.waitpid(child, 0)[1]
        with open(read, "rb") as pipe:
            writes = len(pipe.read())
        print(json.dumps({"code": os.waitstatus_to_exitcode(status), "writes": writes}), flush=True)


def _command(folder: Path, arguments: list[str], die_at: int, pipe: int, environment: dict[str, str]) -> None:
    """In the child; each write leaves a byte in the pipe."""
    from mlflow_unlearn.cli import main

    os.chdir(folder)
    os.environ |= {
        "MLFLOW_TRACKING_URI": Store(folder).uri,
        "MLFLOW_EXPERIMENT_NAME": "tests",
        "MLFLOW_UNLEARN_CACHE": str(folder / "cache"),
        "XDG_STATE_HOME": str(folder / "state"),
        **environment,
    }
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    _watch(folder, die_at, pipe)
    code = 70
    try:
        main(arguments)
    except SystemExit as end:
        code = int(end.code or 0)
    except Exception:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _watch(folder: Path, die_at: int, pipe: int) -> None:
    """Count transactions that change a database, and files that are written, renamed or removed in the folder."""
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    writes, changing = 0, False

    def tick() -> None:
        nonlocal writes
        writes += 1
        if writes == die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        os.write(pipe, b".")

    @event.listens_for(Engine, "before_cursor_execute")
    def statement(_connection, _cursor, sql, *_):
        nonlocal changing
        changing = changing or sql.lstrip().upper().startswith(("INSERT", "UPDATE", "DELETE"))

    @event.listens_for(Engine, "commit")
    def commit(_connection):
        nonlocal changing
        if changing:
            changing = False
            tick()

    def audit(name: str, values: tuple) -> None:
        if name in ("os.rename", "os.remove", "os.rmdir"):
            path, writing = values[0], values[-1] == -1  # else relative to a folder of which only the number is known
        elif name == "open":
            path, writing = values[0], bool((values[2] or 0) & (os.O_WRONLY | os.O_RDWR))
        else:
            return
        if writing and isinstance(path, str | os.PathLike) and str(folder) in os.path.abspath(path):
            tick()

    sys.addaudithook(audit)


if __name__ == "__main__":
    _serve()
