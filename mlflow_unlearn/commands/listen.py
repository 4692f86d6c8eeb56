"""`listen`: answers webhooks of the registry with commands."""

import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from filelock import FileLock, Timeout
from pydantic import Field

from mlflow_unlearn import config
from mlflow_unlearn.answer import CommandResult
from mlflow_unlearn.console import say
from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.events.dispatcher import Dispatcher
from mlflow_unlearn.events.findings import check_registry
from mlflow_unlearn.events.queue import Job, Queue, logs_of
from mlflow_unlearn.events.receiver import Receiver
from mlflow_unlearn.events.rules import read_file
from mlflow_unlearn.evidence.record import FrozenRecord
from mlflow_unlearn.parsing import whole_number
from mlflow_unlearn.registry import tracking
from mlflow_unlearn.registry.network import brief_retries
from mlflow_unlearn.report import table
from mlflow_unlearn.spelling import spelled


class StepRecord(FrozenRecord):
    """One command of a job."""

    command: str
    state: Literal["waiting", "running", "done", "refused", "failed"]
    attempts: int = Field(description="How often it has ended with an error.")
    result: str | None = Field(description="The version with which the chain goes on, as models:/NAME/VERSION.")
    run_id: str | None = Field(description="Its MLflow run.")
    message: str | None = Field(description="Of its last error.")


class JobRecord(FrozenRecord):
    """What one event, or several that are answered together, have brought about."""

    id: int
    model_uri: str = Field(description="The version of the event.")
    event: Literal["request", "version", "alias"]
    details: list[str] = Field(description="Ids of the requests, or the alias.")
    state: Literal["waiting", "running", "done", "refused", "failed", "ignored"]
    message: str | None = Field(description="Why it has not ended well.")
    changed: str = Field(description="When its state last changed.")
    steps: list[StepRecord]


class ListenResult(CommandResult):
    """The queue."""

    queue: str = Field(description="Its file.")
    jobs: list[JobRecord] = Field(description="The oldest first.")


def listen(options: config.Listen) -> ListenResult:
    """Take deliveries and work them off until SIGTERM or Ctrl-C; or print the queue, or have failed jobs go on.

    Raises:
        UnlearnError: the file, the secret, the registry, the queue or the port cannot be used.
    """
    if options.status and options.retry is not None:
        raise UnlearnError(
            f"{spelled('status', True)} only prints the queue, and {spelled('retry')} starts the listener: give "
            "one of them"
        )
    file = read_file(options.config)
    if options.status:
        result = _status(file.queue_path)
        table.show_jobs(result.queue, list(map(_row, result.jobs)))
        return result
    chosen = None if options.retry is None else _chosen(options.retry)
    secret = file.read_secret()
    with brief_retries(), tracking.read_only_client() as client:
        check_registry(client)
    with _locked(file.queue_path), closing(Queue(file.queue_path)) as queue:
        if chosen is not None:
            say(f"Jobs that continue: {', '.join(map(str, queue.retry(chosen))) or 'none'}.")
        with Receiver(options.host, options.port, file, queue, secret) as server:
            dispatcher = Dispatcher(file, queue, client)
            serving = threading.Thread(target=server.serve_forever, name="server", daemon=True)
            serving.start()
            dispatcher.start()
            try:
                say(f"Listening on {server.url}, with the queue {file.queue_path}.")
                threading.Event().wait()
            except BaseException as error:  # SIGTERM, Ctrl-C
                error.add_note("the queue is on disk, and the next start continues from there")
                raise
            finally:
                server.shutdown()
                dispatcher.stop()
    return _status(file.queue_path)


def _chosen(retry: str) -> list[int]:
    """The ids of jobs; none for all that failed.

    Raises:
        UnlearnError: it says something else.
    """
    if retry == "failed":
        return []
    numbers = [whole_number(part.strip()) for part in retry.split(",")]
    chosen = [number for number in numbers if number is not None]
    if len(chosen) < len(numbers):
        raise UnlearnError(
            f"{spelled('retry', retry)} does not name jobs: give their ids, separated by commas "
            f"({spelled('status', True)} shows them), or failed"
        )
    return chosen


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """For one listener at a time.

    Raises:
        UnlearnError: another one has the queue, or it cannot be made.
    """
    lock = FileLock(f"{path}.lock")
    try:
        lock.acquire(timeout=0)
        logs_of(path).mkdir(exist_ok=True)
    except Timeout as error:
        raise UnlearnError(f"queue = {str(path)!r} is in use by another listener: end that one first") from error
    except OSError as error:
        raise UnlearnError(f"queue = {str(path)!r} cannot be made ({error.strerror}): name another file") from error
    try:
        yield
    finally:
        lock.release()


def _status(path: Path) -> ListenResult:
    """The queue as it is; it is not made by looking at it."""
    if not path.exists():
        return ListenResult(queue=str(path), jobs=[])
    with closing(Queue(path)) as queue:
        return ListenResult(queue=str(path), jobs=list(map(_record, queue.jobs())))


def _record(job: Job) -> JobRecord:
    steps = [
        {
            "command": step.command,
            "state": step.state,
            "attempts": step.attempts,
            "result": step.result or None,
            "run_id": step.run_id or None,
            "message": step.sentence or None,
        }
        for step in job.steps
    ]
    return JobRecord.model_validate(
        {
            "id": job.id,
            "model_uri": job.uri,
            "event": job.kind,
            "details": list(filter(None, job.details)),
            "state": job.state,
            "message": job.sentence or None,
            "changed": datetime.fromtimestamp(job.changed, UTC).isoformat(timespec="seconds"),
            "steps": steps,
        }
    )


def _row(job: JobRecord) -> tuple[str, ...]:
    """What `--status true` shows of a job."""
    about = " ".join((job.event, ", ".join(job.details))).strip()
    chain = " → ".join(f"{step.command} {step.state}" for step in job.steps)
    result = next((step.result for step in reversed(job.steps) if step.result), "")
    changed = f"{datetime.fromisoformat(job.changed).astimezone():%Y-%m-%d %H:%M}"
    message = job.message or next((step.message for step in job.steps if step.message), "")
    return str(job.id), job.model_uri, about, job.state, chain, result.removeprefix("models:/"), changed, message
