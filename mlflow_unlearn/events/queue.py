"""The queue of `listen`: one SQLite file with events, jobs and their steps, which a kill at any moment leaves whole."""

import sqlite3
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.events.webhook import RegistryEvent
from mlflow_unlearn.spelling import spelled

_APPLICATION = 0x756E6C72
"""SQLite's mark for whose file it is."""
_SCHEMA = """
CREATE TABLE queue (id TEXT NOT NULL);
CREATE TABLE jobs (
    id INTEGER PRIMARY KEY AUTOINCREMENT, model TEXT NOT NULL, version TEXT NOT NULL, kind TEXT NOT NULL,
    state TEXT NOT NULL DEFAULT 'waiting', sentence TEXT NOT NULL DEFAULT '', due REAL NOT NULL DEFAULT 0,
    changed REAL NOT NULL
);
CREATE TABLE events (
    delivery TEXT PRIMARY KEY, detail TEXT NOT NULL, sent REAL NOT NULL, received REAL NOT NULL,
    job INTEGER NOT NULL REFERENCES jobs (id)
);
CREATE TABLE steps (
    job INTEGER NOT NULL REFERENCES jobs (id), place INTEGER NOT NULL, command TEXT NOT NULL,
    state TEXT NOT NULL DEFAULT 'waiting', attempts INTEGER NOT NULL DEFAULT 0, uri TEXT NOT NULL DEFAULT '',
    result TEXT NOT NULL DEFAULT '', run_id TEXT NOT NULL DEFAULT '', sentence TEXT NOT NULL DEFAULT '',
    began REAL, ended REAL, PRIMARY KEY (job, place)
);
CREATE INDEX jobs_by_version ON jobs (model, version);
"""
OPEN = ("waiting", "running")
"""States of a job that has not ended; the others are done, refused, failed and ignored."""


@dataclass(frozen=True)
class JobStep:
    """One command of a job.

    Attributes:
        place: in the chain, from 0.
        command: its name.
        state: waiting, running, done, refused or failed.
        attempts: how often it has ended with an error.
        uri: the version that it is about.
        result: the version with which the chain goes on.
        run_id: its MLflow run.
        sentence: of its last error.
        began: when its first attempt was started, in seconds; that since `Queue.retry`.
        ended: when it has ended.
    """

    place: int
    command: str
    state: str
    attempts: int
    uri: str
    result: str
    run_id: str
    sentence: str
    began: float | None
    ended: float | None


@dataclass(frozen=True)
class Job:
    """What one event, or several that are answered together, have brought about.

    Attributes:
        id: its number.
        model: name of the registered model.
        version: its number.
        kind: of its events.
        details: their requests or aliases.
        sent: when its last event was sent.
        state: waiting, running, done, refused, failed or ignored.
        sentence: why it ended as it did.
        due: when it may go on.
        changed: when its state last changed.
        steps: its chain.
    """

    id: int
    model: str
    version: str
    kind: str
    details: tuple[str, ...]
    sent: float
    state: str
    sentence: str
    due: float
    changed: float
    steps: tuple[JobStep, ...]

    @property
    def uri(self) -> str:
        """Of the version of the event."""
        return f"models:/{self.model}/{self.version}"


class Queue:
    """Events that were accepted, and how far their jobs are; every method is one transaction, on disk when it returns.

    Attributes:
        path: of the file.
        id: random, made with the file.
    """

    def __init__(self, path: Path, patience: float = 30.0) -> None:
        """Open the file, or make it; ``patience``: seconds for which another program may lock it.

        Raises:
            UnlearnError: it cannot be opened, or is not such a queue.
        """
        self.path, self._lock = path, threading.Lock()
        try:
            # One connection for all threads, since writing is what takes time, and one at a time can write.
            self._connection = sqlite3.connect(path, timeout=patience, check_same_thread=False, isolation_level=None)
            self._connection.row_factory = sqlite3.Row
            self._connection.execute("PRAGMA synchronous = EXTRA")
            with self._transaction() as database:
                mark = database.execute("PRAGMA application_id").fetchone()[0]
                if mark == 0 and not database.execute("SELECT 1 FROM sqlite_master").fetchone():
                    for statement in _SCHEMA.split(";"):
                        database.execute(statement)
                    database.execute("INSERT INTO queue VALUES (?)", (uuid.uuid4().hex,))
                    database.execute(f"PRAGMA application_id = {_APPLICATION}")
                elif mark != _APPLICATION:
                    raise sqlite3.DatabaseError("it is another program's database")
                self.id: str = database.execute("SELECT id FROM queue").fetchone()[0]
        except sqlite3.Error as error:
            raise UnlearnError(f"queue = {str(path)!r} cannot be used ({error}): name another file") from error

    @property
    def logs(self) -> Path:
        """The folder with the outputs of commands: JOB-PLACE-COMMAND.log."""
        return logs_of(self.path)

    def close(self) -> None:
        """Nothing is lost that a method has returned from."""
        self._connection.close()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                # Also after a COMMIT that failed, as while somebody reads: the next BEGIN would be one too many.
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    def accept(self, delivery: str, event: RegistryEvent, commands: Sequence[str]) -> bool:
        """Keep an event; False where its delivery was accepted before.

        It joins a job about the same version that has not begun, and one that is already about the same request.
        """
        now = time.time()
        with self._transaction() as database:
            if database.execute("SELECT 1 FROM events WHERE delivery = ?", (delivery,)).fetchone():
                return False
            number = self._joined(database, event)
            if number is None:
                number = database.execute(
                    "INSERT INTO jobs (model, version, kind, changed) VALUES (?, ?, ?, ?)",
                    (event.model, event.version, event.kind, now),
                ).lastrowid
                database.executemany(
                    "INSERT INTO steps (job, place, command) VALUES (?, ?, ?)",
                    [(number, place, command) for place, command in enumerate(commands)],
                )
            database.execute(
                "INSERT INTO events VALUES (?, ?, ?, ?, ?)", (delivery, event.detail, event.sent, now, number)
            )
        return True

    @staticmethod
    def _joined(database: sqlite3.Connection, event: RegistryEvent) -> int | None:
        found = database.execute(
            """SELECT jobs.id FROM jobs JOIN steps ON steps.job = jobs.id AND steps.place = 0
            WHERE model = :model AND version = :version AND kind = :kind AND jobs.state IN ('waiting', 'running')
            AND ((steps.state = 'waiting' AND :kind = 'request') OR (steps.state IN ('waiting', 'running')
                AND EXISTS (SELECT 1 FROM events WHERE job = jobs.id AND detail = :detail)))""",
            {"model": event.model, "version": event.version, "kind": event.kind, "detail": event.detail},
        ).fetchone()
        return None if found is None else int(found[0])

    def knows(self, event: RegistryEvent) -> bool:
        """Whether a job about this request is open, or has ended without fulfilling it: a search finds it once."""
        with self._transaction() as database:
            found = database.execute(
                """SELECT 1 FROM jobs JOIN events ON events.job = jobs.id
                WHERE model = ? AND version = ? AND kind = ? AND detail = ? AND state != 'done'""",
                (event.model, event.version, event.kind, event.detail),
            ).fetchone()
        return found is not None

    def resume(self) -> None:
        """After a start: what ran when the last process ended waits again, each job at the step where it was."""
        with self._transaction() as database:
            database.execute("UPDATE jobs SET state = 'waiting', due = 0 WHERE state = 'running'")

    def claim(self, busy: Sequence[str]) -> Job | None:
        """The oldest job that is due and not about one of the ``busy`` models, now running."""
        now = time.time()
        with self._transaction() as database:
            found = database.execute(
                f"""SELECT id FROM jobs WHERE state = 'waiting' AND due <= ?
                AND model NOT IN ({", ".join("?" * len(busy))}) ORDER BY id LIMIT 1""",
                (now, *busy),
            ).fetchone()
            if found is None:
                return None
            database.execute("UPDATE jobs SET state = 'running', changed = ? WHERE id = ?", (now, found["id"]))
            [job] = self._jobs(database, "WHERE id = ?", (found["id"],))
        return job

    def update(self, job: Job, **values: Any) -> None:
        """Note of a job: state, sentence, due."""
        values["changed"] = time.time()
        with self._transaction() as database:
            names = ", ".join(f"{name} = :{name}" for name in values)
            database.execute(f"UPDATE jobs SET {names} WHERE id = :id", {**values, "id": job.id})

    def update_step(self, job: Job, step: JobStep, **values: Any) -> None:
        """Note of a step: state, attempts, uri, result, run_id, sentence, began, ended."""
        with self._transaction() as database:
            names = ", ".join(f"{name} = :{name}" for name in values)
            database.execute(
                f"UPDATE steps SET {names} WHERE job = :job AND place = :place",
                {**values, "job": job.id, "place": step.place},
            )

    def retry(self, numbers: Sequence[int] = ()) -> list[int]:
        """Have these failed or refused jobs, or all that failed, go on at the step where they ended; their numbers.

        What came after that step is done again: it has judged what was there before.

        Raises:
            UnlearnError: one of them is not there, or has neither failed nor was refused.
        """
        with self._transaction() as database:
            states = dict(database.execute("SELECT id, state FROM jobs ORDER BY id").fetchall())
            for number in numbers:
                if states.get(number) not in ("failed", "refused"):
                    what = f"is {states[number]}" if number in states else "is not in the queue"
                    raise UnlearnError(
                        f"job {number} {what}: give jobs that failed or were refused, see {spelled('status', True)}"
                    )
            chosen = sorted({*numbers}) or [number for number, state in states.items() if state == "failed"]
            for number in chosen:
                database.execute("UPDATE jobs SET state = 'waiting', sentence = '', due = 0 WHERE id = ?", (number,))
                database.execute(
                    """UPDATE steps SET state = 'waiting', attempts = 0, result = '', run_id = '', sentence = '',
                    began = NULL, ended = NULL WHERE job = :job
                    AND place >= (SELECT min(place) FROM steps WHERE job = :job AND state != 'done')""",
                    {"job": number},
                )
        return chosen

    def jobs(self) -> list[Job]:
        """All of them, the oldest first."""
        with self._transaction() as database:
            return self._jobs(database, "", ())

    def counts(self) -> dict[str, int]:
        """How many jobs are in each state."""
        with self._transaction() as database:
            return dict(database.execute("SELECT state, count(*) FROM jobs GROUP BY state").fetchall())

    def maker(self, uri: str, job: Job) -> int | None:
        """The other job of which a version came."""
        with self._transaction() as database:
            found = database.execute(
                "SELECT job FROM steps WHERE result = ? AND uri != result AND job != ? AND began IS NOT NULL",
                (uri, job.id),
            ).fetchone()
        return None if found is None else int(found["job"])

    def begun(self, key: str) -> JobStep | None:
        """The step of this queue that QUEUE/JOB/PLACE names, if it has begun."""
        queue, job, place = key.split("/")
        if queue != self.id:
            return None
        with self._transaction() as database:
            found = database.execute(
                "SELECT * FROM steps WHERE job = ? AND place = ? AND began IS NOT NULL", (int(job), int(place))
            ).fetchone()
        return None if found is None else _step(found)

    @staticmethod
    def _jobs(database: sqlite3.Connection, where: str, values: tuple[object, ...]) -> list[Job]:
        found = []
        for row in database.execute(f"SELECT * FROM jobs {where} ORDER BY id", values).fetchall():
            events = database.execute("SELECT detail, sent FROM events WHERE job = ? ORDER BY rowid", (row["id"],))
            details, times = zip(*((event["detail"], event["sent"]) for event in events.fetchall()), strict=True)
            steps = database.execute("SELECT * FROM steps WHERE job = ? ORDER BY place", (row["id"],)).fetchall()
            found.append(
                Job(
                    details=tuple(dict.fromkeys(details)),
                    sent=max(times),
                    steps=tuple(map(_step, steps)),
                    **dict(row),
                )
            )
        return found


def _step(row: sqlite3.Row) -> JobStep:
    return JobStep(**{key: row[key] for key in row.keys() if key != "job"})


def logs_of(queue: Path) -> Path:
    """The folder beside the queue that `Queue.logs` is."""
    return Path(f"{queue}.logs")
