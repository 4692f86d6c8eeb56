"""Works the queue off: each job's steps in their order, one job a model at a time."""

import json
import sqlite3
import threading
import time
import traceback
import uuid
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

from mlflow.entities import Run
from mlflow.environment_variables import MLFLOW_RUN_CONTEXT
from mlflow.tracking import MlflowClient

from mlflow_unlearn.console import first_line, note
from mlflow_unlearn.errors import NoAnswer, UnlearnError
from mlflow_unlearn.events import child, findings
from mlflow_unlearn.events.queue import Job, JobStep, Queue
from mlflow_unlearn.events.rules import PRODUCING, ListenFile, ModelRule
from mlflow_unlearn.evidence.review import VERDICT_TAG
from mlflow_unlearn.registry.tracking import FAILURES, child_environment
from mlflow_unlearn.spelling import spelled

_TURN = 0.2
"""Seconds between two looks into the queue."""
_DISK_PAUSE = 5.0
"""Seconds after which a queue that could not be written is tried again."""
_SLACK = 60.0
"""Seconds that an event may wait in the server, and by which its clock may differ from that of this machine."""
_LONGEST_PAUSE = 3600.0
_LEAVE = 2.0
"""Seconds in which a thread without a command is to end."""


class _Stopped(Exception):
    """We are to stop: the job waits, and nothing of it has failed."""


class Dispatcher:
    """Threads that take jobs from the queue, and one that searches for requests of which no event has come."""

    def __init__(self, file: ListenFile, queue: Queue, client: MlflowClient) -> None:
        """Start nothing yet."""
        self._file, self._queue, self._client = file, queue, client
        self._stop = threading.Event()
        self._busy, self._claiming = list[str](), threading.Lock()
        self._commanding = set[threading.Thread]()
        self._threads = [
            threading.Thread(target=self._work, name=f"worker {n}", daemon=True) for n in range(file.workers)
        ]
        self._threads.append(threading.Thread(target=self._sweep, name="sweep", daemon=True))

    def start(self) -> None:
        """Go on where the queue is."""
        self._queue.resume()
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End the commands that run, as on SIGTERM, and wait for them; their jobs go on after the next start.

        Threads that wait for a registry which does not answer are left behind: what they know is on disk.
        """
        self._stop.set()
        end = time.monotonic() + _LEAVE
        while any(
            thread in self._commanding or time.monotonic() < end for thread in self._threads if thread.is_alive()
        ):
            time.sleep(_TURN / 4)

    def _work(self) -> None:
        while not self._stop.is_set():
            try:
                job = self._claim()
            except sqlite3.Error as error:
                if self._stop.is_set():  # it may be closed
                    return
                note(f"Note: the queue cannot be written ({error}): it is tried again.")
                self._stop.wait(_DISK_PAUSE)
                continue
            if job is None:
                self._stop.wait(_TURN)
                continue
            try:
                self._carry_out(job)
            except sqlite3.Error as error:
                self._put_back(job, error)
            finally:
                with self._claiming:
                    self._busy.remove(job.model)

    def _claim(self) -> Job | None:
        with self._claiming:
            job = self._queue.claim(self._busy)
            if job is not None:
                self._busy.append(job.model)
            return job

    def _put_back(self, job: Job, error: sqlite3.Error) -> None:
        """A job whose outcome cannot be noted waits again: what it has done is found in the registry."""
        if self._stop.is_set():  # it may be closed; the next start finds the job
            return
        note(f"Note: job {job.id} waits, since the queue cannot be written ({error}).")
        while not self._stop.wait(_DISK_PAUSE):
            with suppress(sqlite3.Error):  # said above
                self._queue.update(job, state="waiting")
                return

    def _carry_out(self, job: Job) -> None:
        """Take a job as far as it goes."""
        try:
            state, sentence = self._chain(job)
            self._end(job, state, sentence)
        except _Stopped:
            self._queue.update(job, state="waiting", due=0.0)
        except NoAnswer as error:  # nothing is known of the job: this is no attempt of it
            self._queue.update(job, state="waiting", due=time.time() + self._pause(1), sentence=first_line(error))
            note(f"Note: job {job.id} waits, since the registry does not answer ({first_line(error)}).")
        except (UnlearnError, *FAILURES) as error:
            self._end(job, "failed", first_line(error))
        except sqlite3.Error:
            raise
        except Exception as error:  # a bug of ours: others go on
            traceback.print_exc()
            self._end(job, "failed", f"{type(error).__name__}: {first_line(error)}")

    def _end(self, job: Job, state: str, sentence: str) -> None:
        self._queue.update(job, state=state, sentence=sentence)
        if state != "waiting":
            note(f"Job {job.id} of {job.uri}: {state}{f' ({sentence})' if sentence else ''}.")

    def _chain(self, job: Job) -> tuple[str, str]:
        """The state in which a job is then, and why.

        Raises:
            UnlearnError: it cannot go on.
        """
        rule = self._file.rule(job.model, job.kind, job.details[0])
        if rule is None or [step.command for step in job.steps] != list(rule.then):
            raise UnlearnError(
                f"the file no longer has a rule for {job.kind} of {job.model!r} with "
                f"{', '.join(step.command for step in job.steps)}: put it back, and start again with "
                f"{spelled('retry', job.id)}"
            )
        if (why := self._ours(job)) is not None:
            return "ignored", why
        uri, refusals = job.uri, list[str]()
        for step in job.steps:
            if step.state in ("waiting", "running"):
                step = self._take(job, replace(step, uri=uri), rule)
            if step.state not in ("waiting", "running") and step.began is not None and not step.run_id:
                # After the outcome, which a registry that does not answer must not lose.
                step = self._note(job, step, run_id=self._run_id(self._key(job, step), step))
            if step.state == "waiting":
                return "waiting", step.sentence
            if step.state == "failed" or (step.state == "refused" and step.command not in rule.despite):
                return step.state, f"{step.command}: {step.sentence}"
            if step.state == "refused":
                refusals.append(f"{step.command}: {step.sentence}")
            if step.place == 0 and step.began is None and (other := self._queue.maker(step.result, job)) is not None:
                return "done", f"fulfilled by job {other}"
            uri = step.result or uri
        return ("refused", "; ".join(refusals)) if refusals else ("done", "")

    def _ours(self, job: Job) -> str | None:
        """Why an event is answered by nothing: a step of a listener has caused it."""
        if any(step.began is not None for step in job.steps):
            return None
        by = None
        if job.kind == "version":
            by = findings.caused_by(self._client, job)
        elif job.kind == "alias":
            by = findings.promoted_by(self._client, job)
        if by is None:
            return None
        queue, number, _ = by.split("/")
        if queue != self._queue.id:  # a version's is taken at its word; an alias is answered by each listener
            return f"registered by step {by}" if job.kind == "version" else None
        step = self._queue.begun(by)
        # Tags can be copied, and that of a promotion stays when somebody moves the alias away and later back.
        if step is None or not _at_work(step, job.sent):
            return None
        if job.kind == "version":
            return f"registered by step {by}"
        return f"set by job {number}" if step.command == "promote" and step.uri == job.uri else None

    def _take(self, job: Job, step: JobStep, rule: ModelRule) -> JobStep:
        """A step after it was taken: done, refused, failed, or waiting for its next attempt."""
        log = self._queue.logs / f"{job.id}-{step.place}-{step.command}.log"
        if not child.wait_until_ended(log, self._stop.is_set):
            raise _Stopped
        key = self._key(job, step)
        if (why := self._judged(step, key)) is not None:
            return self._note(job, step, state="refused", result=step.uri, sentence=why)
        found = self._done(job, step, key)
        if found is not None:
            return self._note(job, step, state="done", result=found)
        self._commanding.add(threading.current_thread())
        try:
            return self._command(job, step, rule, log)
        finally:
            self._commanding.discard(threading.current_thread())

    def _command(self, job: Job, step: JobStep, rule: ModelRule, log: Path) -> JobStep:
        """A step after its command has ended, and that was noted."""
        if self._stop.is_set():
            raise _Stopped
        key = self._key(job, step)
        began = step.began or time.time()  # of all its attempts
        begun = self._note(job, step, state="running", uri=step.uri, began=began, ended=None)
        code, sentence = child.run(
            [step.command, "--model-uri", step.uri, *rule.arguments(step.command)],
            log=log,
            folder=self._file.folder,
            environment=self._environment(key),
            stopping=self._stop.is_set,
        )
        ended = partial(self._note, job, begun, ended=time.time())
        if code == child.REFUSED:
            return ended(state="refused", result=step.uri, sentence=sentence)
        if code == 0:
            self._commanding.discard(threading.current_thread())  # from here on the registry is asked
            result = self._result(job, begun, key)
            if result is not None:
                return ended(state="done", result=result, sentence="")
            sentence = f"{step.command} ended without a new version: see {log.name}"
        elif self._stop.is_set():
            ended(state="waiting", sentence=sentence)
            raise _Stopped
        attempts = step.attempts + 1
        if attempts >= self._file.attempts:
            return ended(state="failed", attempts=attempts, sentence=sentence)
        self._queue.update(job, due=time.time() + self._pause(attempts))
        note(f"Note: attempt {attempts} of {step.command} of {step.uri} has failed ({sentence}).")
        return ended(state="waiting", attempts=attempts, sentence=sentence)

    def _done(self, job: Job, step: JobStep, key: str) -> str | None:
        """The version with which the chain goes on, if this step is done already; None if it is not.

        A step may be so although nothing was noted: we were killed, or somebody else has fulfilled the requests.
        """
        if step.began is None:
            first = job.kind == "request" and step.place == 0
            return findings.fulfilled(self._client, job, self._names(job, step)) if first else None
        if job.kind == "request" and step.place == 0:
            return self._result(job, step, key)
        if not any(run.info.status == "FINISHED" for run in self._runs(key, step)):
            return None
        return self._result(job, step, key)

    def _judged(self, step: JobStep, key: str) -> str | None:
        """The sentence of a review that has failed the version before we were killed: its run is FINISHED as well."""
        if step.began is None or step.command != "review":
            return None
        judged = next((run for run in self._runs(key, step) if VERDICT_TAG in run.data.tags), None)
        if judged is None or judged.data.tags[VERDICT_TAG] == "pass":
            return None
        return f"{step.uri} does not pass: see run {judged.info.run_id}"

    def _result(self, job: Job, step: JobStep, key: str) -> str | None:
        """The version with which the chain goes on after a step that has succeeded; None if there should be one."""
        if step.command not in PRODUCING:
            return step.uri
        names = self._names(job, step)
        if job.kind != "request" or step.place != 0:
            return findings.registered_by(self._client, self._runs(key, step), names)
        # Its own, as long as all requests are fulfilled: later versions have forgotten them, too.
        own = findings.registered_by(self._client, self._runs(key, step), names, job.details)
        others = findings.fulfilled(self._client, job, names)
        return others and (own or others)

    def _names(self, job: Job, step: JobStep) -> set[str]:
        """Of the registered models to which the result of a step may belong."""
        rule = self._file.rule(job.model, job.kind, job.details[0])
        other = rule.options.get(step.command, {}).get("register_as") if rule is not None else None
        return {step.uri.removeprefix("models:/").rpartition("/")[0], *([str(other)] if other else [])}

    def _key(self, job: Job, step: JobStep) -> str:
        """By which its runs are known."""
        return f"{self._queue.id}/{job.id}/{step.place}"

    def _runs(self, key: str, step: JobStep) -> list[Run]:
        """Of this step since it first began, the newest first: older ones are of before it was to begin again."""
        since = int((step.began or 0) * 1000)
        return [run for run in findings.runs_of(self._client, key, step.command) if run.info.start_time >= since]

    def _run_id(self, key: str, step: JobStep) -> str:
        return next((str(run.info.run_id) for run in self._runs(key, step)), "")

    def _note(self, job: Job, step: JobStep, **values: object) -> JobStep:
        self._queue.update_step(job, step, **values)
        return replace(step, **values)  # type: ignore[arg-type]

    def _environment(self, key: str) -> dict[str, str]:
        """Of a command: its runs carry the tag of the step from their first moment; the secret is not its business."""
        found = child_environment()
        found.pop(self._file.secret_variable, None)
        tags = json.loads(found.get(MLFLOW_RUN_CONTEXT.name) or "{}")
        found[MLFLOW_RUN_CONTEXT.name] = json.dumps({**tags, findings.STEP_TAG: key})
        return found

    def _pause(self, attempts: int) -> float:
        return min(self._file.backoff * 2.0 ** (attempts - 1), max(_LONGEST_PAUSE, self._file.backoff))

    def _sweep(self) -> None:
        """MLflow sends an event a few times within seconds, and then forgets it; the tags are still there."""
        while not self._stop.is_set():
            try:
                for event in findings.pending_requests(self._client, self._file):
                    rule = self._file.rule(event.model, event.kind, event.detail)
                    if rule is not None and not self._queue.knows(event):
                        self._queue.accept(f"found {uuid.uuid4().hex}", event, rule.then)
            except (UnlearnError, sqlite3.Error, *FAILURES) as error:
                note(f"Note: the registry could not be searched for pending requests ({first_line(error)}).")
            self._stop.wait(self._file.sweep)


def _at_work(step: JobStep, sent: float) -> bool:
    """Whether a step went on when an event was sent, give or take `_SLACK`, or the event does not say when it was."""
    ended = sent if step.ended is None else step.ended
    return sent == 0.0 or (step.began or 0.0) - _SLACK <= sent <= ended + _SLACK
