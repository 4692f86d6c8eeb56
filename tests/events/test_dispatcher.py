"""Jobs on a real store, with commands as real processes."""

import json
import os
import shutil
import threading
import time
from contextlib import closing, contextmanager

import pytest
from listeners import SECRET, VARIABLE, wait_for
from mlflow import MlflowClient
from stores import call

from mlflow_unlearn.events.dispatcher import Dispatcher
from mlflow_unlearn.events.findings import STEP_TAG, registered_by
from mlflow_unlearn.events.queue import Queue
from mlflow_unlearn.events.rules import read_file
from mlflow_unlearn.events.webhook import RegistryEvent
from mlflow_unlearn.registry import tracking

HEAD = "secret: env:LISTEN_SECRET\nattempts: 2\nbackoff: 0.1\nsweep: 86400\nmodels:\n"


@contextmanager
def dispatching(folder, rules, *events, head=HEAD, client=None):
    """The queue of a dispatcher that works these events off."""
    folder.mkdir(exist_ok=True)
    (folder / "listen.yaml").write_text(head + rules)
    file = read_file(str(folder / "listen.yaml"))
    with closing(Queue(file.queue_path)) as queue:
        queue.logs.mkdir(exist_ok=True)
        for number, event in enumerate(events):
            queue.accept(f"{time.time()} {number}", event, file.rule(event.model, event.kind, event.detail).then)
        dispatcher = Dispatcher(file, queue, client or tracking.connect())
        dispatcher.start()
        try:
            yield queue
        finally:
            dispatcher.stop()


def ended(queue, seconds=90):
    def over():
        jobs = queue.jobs()
        return jobs if jobs and all(job.state not in ("waiting", "running") for job in jobs) else None

    return wait_for(over, seconds, lambda: str(queue.jobs()))


def version(number, model="clf"):
    return RegistryEvent("version", "", model, str(number))


def runs(store):
    return [run.data.tags["unlearn.command"] for run in store.runs() if "unlearn.command" in run.data.tags]


@pytest.mark.nightly
def test_a_step_that_fails_is_tried_again_and_others_go_on(chain, tmp_path):
    rules = """
  - {name: clf, when: [version], then: [review, verify], options: {review: {policy: none.yaml}}}
  - {name: "*", when: ["alias:*"], then: [verify]}
"""
    with dispatching(tmp_path / "a", rules, version(2), RegistryEvent("alias", "shadow", "clf", "3")) as queue:
        failed, done = ended(queue)
    assert failed.state == "failed" and failed.steps[0].attempts == 2 and failed.steps[1].began is None
    assert failed.sentence.startswith("review: the policy 'none.yaml' cannot be read (No such file or directory)")
    assert (done.state, done.steps[0].result) == ("done", "models:/clf/3")
    assert (queue.logs / "1-0-review.log").read_text().count("cannot be read") == 2
    # The file is corrected: the job goes on.
    shutil.copy(chain.folder / "lenient.yaml", tmp_path / "a" / "none.yaml")
    with closing(Queue(queue.path)) as again:
        assert again.retry() == [1]
    with dispatching(tmp_path / "a", rules) as queue:
        assert [job.state for job in ended(queue)] == ["done", "done"]


@pytest.mark.nightly
def test_a_refusal_is_not_tried_again_and_ends_the_chain_unless_it_is_to_go_on(chain, tmp_path):
    shutil.copy(chain.folder / "strict.yaml", tmp_path / "strict.yaml")
    rules = """
  - {name: clf, when: [version], then: [review, verify], options: {review: {policy: strict.yaml}}}
  - {name: clf, when: ["alias:a"], then: [review, verify], options: {review: {policy: strict.yaml}}, despite: [review]}
"""
    with dispatching(tmp_path, rules, version(2), RegistryEvent("alias", "a", "clf", "3")) as queue:
        first, second = ended(queue)
    assert first.state == "refused" and [step.state for step in first.steps] == ["refused", "waiting"]
    assert first.sentence.startswith("review: models:/clf/2 does not pass the policy 'strict'")
    assert second.state == "refused" and [step.state for step in second.steps] == ["refused", "done"]
    assert first.steps[0].attempts == 0


class Hiccup(MlflowClient):
    """Of a registry that does not answer searches for runs, until it is well."""

    well = False

    def search_runs(self, *arguments, **options):
        if not self.well:
            raise ConnectionError("no answer")
        return super().search_runs(*arguments, **options)


@pytest.mark.nightly
def test_a_refusal_stays_one(chain, tmp_path):
    """Whatever comes between: a registry that does not answer, a kill, and `--retry`."""
    shutil.copy(chain.folder / "strict.yaml", tmp_path / "strict.yaml")
    rules = "  - {name: clf, when: [version], then: [review, verify], options: {review: {policy: strict.yaml}}}\n"
    tracking.connect()
    client, before = Hiccup(), runs(chain).count("review")
    with dispatching(tmp_path, rules, version(2), client=client) as queue:
        wait_for(lambda: "does not answer" in queue.jobs()[0].sentence or queue.jobs()[0].steps[0].ended)
        [job] = queue.jobs()
        assert job.steps[0].state == "refused"
        client.well = True
        [job] = ended(queue)
    assert job.state == "refused" and job.steps[1].began is None
    assert chain.client.get_run(job.steps[0].run_id).data.tags["unlearn.verdict"] == "fail"
    # Killed between the end of the command and the note of it.
    with closing(Queue(queue.path)) as again:
        again.update_step(job, job.steps[0], state="running", result="", run_id="", sentence="", ended=None)
        again.update(job, state="running", sentence="")
    with dispatching(tmp_path, rules) as queue:
        [job] = ended(queue)
    assert job.state == "refused" and job.sentence.startswith("review: models:/clf/2 does not pass")
    assert runs(chain).count("review") == before + 1
    with closing(Queue(queue.path)) as again:
        assert again.retry([1]) == [1]
    with dispatching(tmp_path, rules) as queue:
        [job] = ended(queue)
    assert job.state == "refused" and job.steps[1].began is None
    assert runs(chain).count("review") == before + 2


@pytest.mark.slow
def test_a_request_that_somebody_else_has_fulfilled_is_not_fulfilled_again(chain, tmp_path):
    """The chain goes on with the version that has; what is about the same requests is not done twice."""
    shutil.copy(chain.folder / "lenient.yaml", tmp_path / "lenient.yaml")
    [request] = chain.requests("1")
    event = RegistryEvent("request", request, "clf", "1")
    before = chain.versions()
    rules = "  - {name: clf, when: [request], then: [unlearn, review], options: {review: {policy: lenient.yaml}}}\n"
    with dispatching(tmp_path, rules, event) as queue:
        [job] = ended(queue)
    assert [step.result for step in job.steps] == ["models:/clf/2"] * 2 and job.state == "done"
    assert job.steps[0].began is None and job.steps[1].run_id and chain.versions() == before
    assert chain.tags("2")["unlearn.verdict"] == "pass"


@pytest.mark.slow
def test_a_tag_that_says_done_does_not_say_by_what(chain, tmp_path):
    """Who may edit tags cannot lead the chain to a version that has not forgotten the samples."""
    [request] = chain.requests("1")
    event, key = RegistryEvent("request", request, "clf", "1"), f"unlearn.request.{request}"
    rules = "  - {name: clf, when: [request], then: [unlearn, verify]}\n"
    before = chain.tags("1")[key]
    chain.client.create_registered_model("other")
    chain.client.create_model_version("other", "models:/clf/2", tags={"unlearn.request_ids": request})
    for number, by in enumerate(("junk", "models:/clf/3", "models:/other/1", "models:/clf/99", "models:/clf/two")):
        chain.client.set_model_version_tag("clf", "1", key, before.replace("models:/clf/2", by))
        with dispatching(tmp_path / str(number), rules, event) as queue:
            [job] = ended(queue)
        assert job.state == "failed" and job.steps[1].began is None
        assert job.sentence.startswith(f"the request {request} of models:/clf/1 was reportedly carried out by '{by}'")
    chain.client.set_model_version_tag("clf", "1", key, before.replace('"models:/clf/2"', '"models:/clf/2", "junk"'))
    with dispatching(tmp_path / "last", rules, event) as queue:
        [job] = ended(queue)
    chain.client.set_model_version_tag("clf", "1", key, before)
    assert job.state == "done" and job.steps[1].result == "models:/clf/2"


def test_a_run_that_says_it_is_a_step_s_does_not_say_what_it_has_registered(chain):
    run = chain.client.create_run("0")
    chain.client.create_registered_model("mine")
    chain.client.create_model_version("mine", "models:/clf/2", run_id=run.info.run_id)
    made = chain.client.create_model_version("clf", "models:/clf/2", run_id=run.info.run_id)

    def found(names, requests=()):
        return registered_by(chain.client, [run], names, requests)

    assert found({"mine"}) == "models:/mine/1" and found({"clf"}) == f"models:/clf/{made.version}"
    assert found({"other"}) is None and found({"clf"}, ["0" * 12]) is None
    chain.client.set_model_version_tag("clf", made.version, "unlearn.request_ids", f"{'1' * 12},{'0' * 12}")
    assert found({"clf"}, ["0" * 12]) == f"models:/clf/{made.version}"
    chain.client.set_model_version_tag("clf", made.version, "unlearn.registering", run.info.run_id)
    assert found({"clf"}) is None
    chain.client.delete_model_version("clf", made.version)


@pytest.mark.nightly
def test_what_a_listener_has_registered_is_not_answered(chain, tmp_path):
    made = chain.client.get_model_version("clf", "2")
    chain.client.set_tag(made.run_id, STEP_TAG, "another-queue/7/0")
    rules = "  - {name: clf, when: [version], then: [verify]}\n"
    with dispatching(tmp_path, rules, version(2), version(3)) as queue:
        own, other = ended(queue)
    assert (own.state, own.sentence) == ("ignored", "registered by step another-queue/7/0")
    assert own.steps[0].began is None and other.state == "done"
    # A tag that names no step that has begun is somebody else's.
    with closing(Queue(queue.path)) as again:
        assert again.accept("later", RegistryEvent("version", "", "clf", "2", time.time() + 600), ("verify",))
    for value in ("anything", f"{queue.id}/9/0", f"{queue.id}/2/0"):  # the last one was over long before
        chain.client.set_tag(made.run_id, STEP_TAG, value)
        with closing(Queue(queue.path)) as again:
            again.update(again.jobs()[2], state="waiting")
            again.update_step(again.jobs()[2], again.jobs()[2].steps[0], state="waiting", began=None)
        with dispatching(tmp_path, rules) as queue:
            assert ended(queue)[2].state == "done"
    chain.client.delete_tag(made.run_id, STEP_TAG)


@pytest.mark.slow
def test_a_command_has_not_the_secret_of_the_webhook(chain, tmp_path, monkeypatch):
    """What it runs may be code of others: a data source, a model, a plugin."""
    monkeypatch.setenv(VARIABLE, SECRET)
    monkeypatch.setenv("LISTEN_OTHER", "seen")
    (tmp_path / "spy.py").write_text(
        "import json, os\ndef data():\n    json.dump(dict(os.environ), open('seen.json', 'w'))\n    raise ValueError\n"
    )
    rules = "  - {name: clf, when: [version], then: [evaluate], options: {evaluate: {data: 'python:spy:data'}}}\n"
    with dispatching(tmp_path, rules, version(2), head=HEAD.replace("attempts: 2", "attempts: 1")) as queue:
        ended(queue)
    seen = json.loads((tmp_path / "seen.json").read_text())
    assert seen["LISTEN_OTHER"] == "seen" and VARIABLE not in seen and SECRET not in seen.values()


@pytest.mark.nightly
def test_an_alias_that_a_listener_has_set_is_not_answered(chain, tmp_path):
    """Nor is it after a restart: a rule that ends with `promote` would call itself."""
    shutil.copy(chain.folder / "lenient.yaml", tmp_path / "lenient.yaml")
    rules = """
  - {name: clf, when: [version, "alias:champion"], then: [review, promote], options: {review: {policy: lenient.yaml}}}
"""
    with dispatching(tmp_path, rules, version(3)) as queue:
        [promoted] = ended(queue)
    assert promoted.state == "done", promoted.sentence
    assert str(chain.client.get_model_version_by_alias("clf", "champion").version) == "3"
    now = promoted.steps[1].ended
    # What somebody sets meanwhile is: on another version, or another alias on this one.
    rules = "  - {name: clf, when: [version, 'alias:*'], then: [verify]}\n"
    set_by_hand = (("champion", "2"), ("shadow", "3"))
    moved = [RegistryEvent("alias", alias, "clf", number, now) for alias, number in (("champion", "3"), *set_by_hand)]
    with dispatching(tmp_path, rules, *moved) as queue:
        _, own, *others = ended(queue)
    assert (own.state, own.sentence) == ("ignored", "set by job 1")
    assert [job.state for job in others] == ["done", "done"]
    chain.client.delete_registered_model_alias("clf", "champion")


class Silent(MlflowClient):
    """Of a registry that is asked and says nothing."""

    def __init__(self):
        super().__init__()
        self.asked, self.end, self.left = threading.Event(), threading.Event(), threading.Event()

    def search_registered_models(self, *arguments, **options):
        self.asked.set()
        self.end.wait(30)
        self.left.set()
        return super().search_registered_models(*arguments, **options)


@pytest.mark.slow
def test_a_registry_that_does_not_answer_is_not_waited_for_at_the_end(chain, tmp_path):
    tracking.connect()
    client = Silent()
    with dispatching(tmp_path, "  - {name: clf, when: [request], then: [unlearn]}\n", client=client):
        assert client.asked.wait(10)
    assert not client.left.is_set()
    client.end.set()
    assert client.left.wait(10)


def test_jobs_that_cannot_begin(chain, tmp_path):
    rules = "  - {name: clf, when: [request], then: [unlearn]}\n  - {name: clf, when: [version], then: [verify]}\n"
    events = (RegistryEvent("request", "0" * 12, "clf", "1"), version(99))
    with dispatching(tmp_path, rules, *events) as queue:
        gone, missing = ended(queue)
        assert gone.state == missing.state == "failed"
        assert gone.sentence == "models:/clf/1 no longer has the request 000000000000: its tag was removed"
        assert "not found" in missing.sentence
    with closing(Queue(queue.path)) as again:
        assert again.retry() == [1, 2]
        again.update(gone, state="done")
    with dispatching(tmp_path, "  - {name: other, when: [version], then: [verify]}\n") as queue:
        [job] = [job for job in ended(queue) if job.kind == "version"]
    assert job.state == "failed" and "the file no longer has a rule for version of 'clf'" in job.sentence


@pytest.mark.nightly
def test_pending_requests_are_found_without_an_event(store, tmp_path):
    """None was sent, or nobody listened."""
    assert call("request", "--model-uri", "models:/clf/1", "--forget", "random:10").code == 0
    [request] = store.requests()
    rules = """
  - {name: other, when: [request], then: [unlearn]}
  - {name: clf, when: [request], then: [unlearn], options: {unlearn: {params: none.json}}}
"""
    with dispatching(
        tmp_path / "a", rules, head=HEAD.replace("86400", "1").replace("attempts: 2", "attempts: 1")
    ) as queue:
        [job] = ended(queue)
        assert (job.details, job.state) == ((request,), "failed")
        time.sleep(2.5)  # and searched again
        assert len(queue.jobs()) == 1
    assert store.versions() == ["1"]


@pytest.mark.nightly
def test_a_listener_that_is_stopped_goes_on_after_its_restart(store, tmp_path, monkeypatch):
    """Its command is stopped as by SIGTERM, and its run is KILLED; that is no attempt."""
    monkeypatch.setenv(VARIABLE, SECRET)
    assert call("request", "--model-uri", "models:/clf/1", "--forget", "random:10").code == 0
    [request] = store.requests()
    rules = "  - {name: clf, when: [request], then: [unlearn], options: {unlearn: {params: {epochs: 200}}}}\n"
    with dispatching(tmp_path / "a", rules, RegistryEvent("request", request, "clf", "1")) as queue:
        wait_for(lambda: "unlearn" in runs(store))
    queue = Queue(queue.path)
    [job] = queue.jobs()
    assert (job.state, job.steps[0].state, job.steps[0].attempts) == ("waiting", "waiting", 0)
    assert [run.info.status for run in store.runs() if run.data.tags.get("unlearn.command") == "unlearn"] == ["KILLED"]
    queue.close()
    quick = rules.replace("200", "1")
    with dispatching(tmp_path / "a", quick) as queue:
        [job] = ended(queue)
    assert job.state == "done" and store.versions() == ["1", "2"]
    environment = [run.data.tags for run in store.runs()][0]
    assert SECRET not in str(environment) and os.environ[VARIABLE] == SECRET


@pytest.mark.nightly
def test_two_requests_are_two_jobs_of_which_the_first_fulfils_both(store, tmp_path):
    """The second was filed before the first unlearning began, and its event came after."""
    for seed in (1, 2):
        assert call("request", "--model-uri", "models:/clf/1", "--forget", f"random:10,seed={seed}").code == 0
    first, second = store.requests()
    rules = "  - {name: clf, when: [request], then: [unlearn, verify], options: {unlearn: {params: {epochs: 1}}}}\n"
    with dispatching(tmp_path / "a", rules, RegistryEvent("request", first, "clf", "1")) as queue:
        wait_for(lambda: queue.jobs()[0].steps[0].state == "running")
        queue.accept("later", RegistryEvent("request", second, "clf", "1"), ("unlearn", "verify"))
        one, *others = ended(queue)
    assert one.state == "done" and store.versions() == ["1", "2"]
    if not others:  # the search for pending requests was quicker than the first step: both joined before it began
        assert {*one.details} == {first, second}
        return
    [two] = others
    assert two.state == "done" and two.sentence == "fulfilled by job 1" and two.steps[0].began is None
