"""`listen`: answers webhooks of the registry with commands."""

import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from mlflow_unlearn import config
from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.events.dispatcher import Dispatcher
from mlflow_unlearn.events.findings import check_registry
from mlflow_unlearn.events.queue import Job, Queue, logs_of
from mlflow_unlearn.events.receiver import Receiver
from mlflow_unlearn.events.rules import read_file
from mlflow_unlearn.registry import tracking
from mlflow_unlearn.report import table


def listen(options: config.Listen) -> None:
    """Take deliveries and work them off until SIGTERM or Ctrl-C; or print the queue, or have failed jobs go on.

    Raises:
        UnlearnError: the file, the secret, the registry, the queue or the port cannot be used.
    """
    file = read_file(options.config)
    if options.status:
        jobs = [] if not file.queue_path.exists() else _jobs(file.queue_path)
        table.show_jobs(str(file.queue_path), list(map(_row, jobs)))
        return
    secret = file.read_secret()
    with tracking.read_only_client() as client:
        check_registry(client)
    with _locked(file.queue_path), closing(Queue(file.queue_path)) as queue:
        if options.retry:
            print(f"Jobs that go on: {', '.join(map(str, queue.retry())) or 'none'}.", flush=True)
        with Receiver(options.host, options.port, file, queue, secret) as server:
            dispatcher = Dispatcher(file, queue, client)
            serving = threading.Thread(target=server.serve_forever, name="server", daemon=True)
            serving.start()
            dispatcher.start()
            try:
                print(f"Listening on {server.url}, with the queue {file.queue_path}.", flush=True)
                threading.Event().wait()
            except BaseException as error:  # SIGTERM, Ctrl-C
                error.add_note("the queue is on disk, and the next start goes on where it is")
                raise
            finally:
                server.shutdown()
                dispatcher.stop()


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


def _jobs(path: Path) -> list[Job]:
    with closing(Queue(path)) as queue:
        return queue.jobs()


def _row(job: Job) -> tuple[str, ...]:
    """What `--status true` shows of a job."""
    at = next((step for step in job.steps if step.state not in ("done", "refused")), job.steps[-1])
    chain = " → ".join(f"{step.command} {step.state}" for step in job.steps)
    sentence = job.sentence or (at.sentence if at.attempts else "")
    result = job.steps[-1].result or next((step.result for step in reversed(job.steps) if step.result), "")
    changed = datetime.fromtimestamp(job.changed).astimezone().isoformat(sep=" ", timespec="seconds")
    about = " ".join((job.kind, ", ".join(filter(None, job.details)))).strip()
    return str(job.id), job.uri, about, job.state, chain, result.removeprefix("models:/"), changed, sentence
