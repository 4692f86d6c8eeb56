"""The queue: what joins which job, what is worked on when, and what a restart finds."""

import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest

from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.events.queue import Queue
from mlflow_unlearn.events.webhook import RegistryEvent

CHAIN = ("unlearn", "review")


def request(number="a", version="1", model="clf", sent=1.0):
    return RegistryEvent("request", number, model, version, sent)


@pytest.fixture
def queue(tmp_path):
    with closing(Queue(tmp_path / "queue.sqlite")) as queue:
        yield queue


def test_requests_that_wait_are_fulfilled_together(queue):
    assert queue.accept("1", request("a"), CHAIN)
    assert queue.accept("2", request("b", sent=5.0), CHAIN)
    assert not queue.accept("2", request("b"), CHAIN)
    assert queue.accept("3", request("a", version="2"), CHAIN)
    first, second = queue.jobs()
    assert (first.details, first.sent, first.uri) == (("a", "b"), 5.0, "models:/clf/1")
    assert (second.details, second.uri) == (("a",), "models:/clf/2")


def test_a_request_that_comes_while_another_is_fulfilled_is_a_job_of_its_own(queue):
    queue.accept("1", request("a"), CHAIN)
    job = queue.claim([])
    queue.update_step(job, job.steps[0], state="running", began=1.0)
    queue.accept("2", request("b"), CHAIN)
    queue.accept("3", request("a"), CHAIN)  # the same event, by a second webhook
    assert [job.details for job in queue.jobs()] == [("a",), ("b",)]


def test_other_events_join_only_their_like(queue):
    for number, alias in enumerate(("champion", "champion", "shadow")):
        queue.accept(str(number), RegistryEvent("alias", alias, "clf", "1"), ("verify",))
    queue.accept("3", RegistryEvent("version", "", "clf", "1"), ("verify",))
    assert [(job.kind, job.details) for job in queue.jobs()] == [
        ("alias", ("champion",)),
        ("alias", ("shadow",)),
        ("version", ("",)),
    ]


def test_one_job_of_a_model_at_a_time_the_oldest_first(queue):
    for number, model in enumerate(("clf", "clf", "other")):
        queue.accept(str(number), request(version=str(number), model=model), CHAIN)
    assert queue.claim([]).id == 1
    assert queue.claim(["clf"]).id == 3
    assert queue.claim(["clf", "other"]) is None
    assert queue.claim([]).id == 2
    assert queue.claim([]) is None


def test_a_job_that_pauses_lets_others_go_first(queue):
    queue.accept("1", request("a"), CHAIN)
    queue.accept("2", request("a", version="2"), CHAIN)
    job = queue.claim([])
    queue.update(job, state="waiting", due=4e9)
    assert queue.claim([]).id == 2 and queue.claim([]) is None


def test_a_restart_finds_each_job_where_it_was(queue):
    queue.accept("1", request("a"), CHAIN)
    job = queue.claim([])
    queue.update_step(job, job.steps[0], state="done", result="models:/clf/2", began=1.0)
    queue.update_step(job, job.steps[1], state="running", began=2.0)
    with closing(Queue(queue.path)) as again:
        assert again.id == queue.id and again.claim([]) is None
        again.resume()
        [first, second] = again.claim([]).steps
        assert (first.state, first.result, second.state) == ("done", "models:/clf/2", "running")


def test_failed_jobs_go_on_where_they_ended(queue):
    for number in "1234":
        queue.accept(number, request("a", version=number), CHAIN)
    for state in ("done", "failed", "refused", "ignored"):
        job = queue.claim([])
        queue.update_step(job, job.steps[0], state="done", result="models:/clf/9", began=1.0)
        queue.update_step(job, job.steps[1], state=state, attempts=3, began=2.0)
        queue.update(job, state=state, sentence="why")
    assert queue.retry() == [2] and queue.counts() == {"done": 1, "waiting": 1, "refused": 1, "ignored": 1}
    job = queue.claim([])
    assert [(step.state, step.attempts, step.began) for step in job.steps] == [("done", 0, 1.0), ("waiting", 0, None)]
    assert job.sentence == ""
    for numbers, why in (([3, 1], "job 1 is done"), ([3, 9], "job 9 is not in the queue"), ([4], "job 4 is ignored")):
        with pytest.raises(UnlearnError, match=f"^{why}: give jobs that failed or were refused"):
            queue.retry(numbers)
    assert queue.counts() == {"done": 1, "running": 1, "refused": 1, "ignored": 1}
    assert queue.retry([3]) == [3]


def test_what_came_after_the_step_that_is_retried_is_done_again(queue):
    queue.accept("1", request("a"), ("unlearn", "audit", "review"))
    job = queue.claim([])
    for step, state in zip(job.steps, ("done", "refused", "done"), strict=True):
        queue.update_step(job, step, state=state, result="models:/clf/9", run_id="r", began=1.0, ended=2.0)
    queue.update(job, state="refused", sentence="audit: why")
    assert queue.retry([1]) == [1]
    first, *others = queue.jobs()[0].steps
    assert (first.state, first.began, first.run_id) == ("done", 1.0, "r")
    assert {(step.state, step.result, step.began, step.run_id) for step in others} == {("waiting", "", None, "")}


def test_a_search_finds_a_request_once_unless_it_was_fulfilled_and_is_open_again(queue):
    assert not queue.knows(request("a"))
    queue.accept("1", request("a"), CHAIN)
    assert queue.knows(request("a")) and not queue.knows(request("b"))
    job = queue.claim([])
    for state, known in (("failed", True), ("refused", True), ("done", False)):
        queue.update(job, state=state)
        assert queue.knows(request("a")) is known


def test_who_has_made_a_version_and_which_steps_have_begun(queue):
    queue.accept("1", request("a"), ("unlearn", "promote"))
    job = queue.claim([])
    queue.update_step(job, job.steps[0], state="done", uri=job.uri, result="models:/clf/2", began=1.0)
    queue.update_step(job, job.steps[1], uri="models:/clf/2", began=100.0, ended=110.0)
    queue.accept("2", request("b"), ("unlearn", "promote"))
    other = queue.jobs()[1]
    assert queue.maker("models:/clf/2", other) == 1 and queue.maker("models:/clf/2", job) is None
    assert queue.maker("models:/clf/3", other) is None
    assert queue.begun(f"{queue.id}/1/1").command == "promote"
    for key in (f"{queue.id}/2/0", f"{queue.id}/1/2", f"{queue.id}/9/0", f"{'0' * 32}/1/1"):
        assert queue.begun(key) is None


def test_many_deliveries_at_once(queue):
    events = [(str(number % 50), request(str(number % 50), model=f"m{number % 7}")) for number in range(200)]
    with ThreadPoolExecutor(8) as pool:
        new = list(pool.map(lambda one: queue.accept(*one, CHAIN), events))
    assert sum(new) == 50
    assert sum(len(job.details) for job in queue.jobs()) == 50


def test_a_write_that_failed_is_followed_by_others(tmp_path):
    """As while another program reads, for example to make a copy."""
    with closing(Queue(tmp_path / "queue.sqlite", patience=0.1)) as queue:
        with closing(sqlite3.connect(queue.path, isolation_level=None)) as other:
            other.execute("BEGIN")
            other.execute("SELECT * FROM jobs").fetchall()
            with pytest.raises(sqlite3.OperationalError, match="database is locked"):
                queue.accept("1", request("a"), CHAIN)
        assert queue.jobs() == [] and queue.accept("1", request("a"), CHAIN)
        assert [job.details for job in queue.jobs()] == [("a",)]


def test_a_file_that_is_not_a_queue(tmp_path, empty_store):
    (tmp_path / "text").write_text("no database, but long enough to be read as one" * 100)
    with pytest.raises(UnlearnError, match=r"^queue = .*text' cannot be used \(file is not a database\)"):
        Queue(tmp_path / "text")
    before = (empty_store.folder / "mlflow.db").read_bytes()
    with pytest.raises(UnlearnError, match="it is another program's database"):
        Queue(empty_store.folder / "mlflow.db")
    assert (empty_store.folder / "mlflow.db").read_bytes() == before
    with pytest.raises(UnlearnError, match="unable to open database file"):
        Queue(tmp_path / "none" / "queue.sqlite")
