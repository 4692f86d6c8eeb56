"""A version is complete, or marked: what was killed while it was marked is finished or taken back."""

import os
import signal

import mlflow
import pytest
import torch
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from mlflow_unlearn import config
from mlflow_unlearn.errors import AlreadyDone
from mlflow_unlearn.evidence.record import DIGEST_TAG, sha256
from mlflow_unlearn.registry import tracking
from mlflow_unlearn.registry.dead import PROCESS_TAG, of_run, this_process
from mlflow_unlearn.registry.registration import (
    complete,
    describe_version,
    next_number,
    register,
)
from mlflow_unlearn.registry.versions import REGISTERING_TAG, find_version

PLAIN = {"pip_requirements": ["torch"], "serialization_format": "pickle"}
COMMAND = config.Data(data="digits")


def log():
    """Log a small model in the active run, as ours."""
    model, own = torch.nn.Linear(1, 1), of_run(mlflow.active_run().info.run_id)
    info = mlflow.pytorch.log_model(model, name="model", **PLAIN)
    if own is not None:
        mlflow.MlflowClient().set_logged_model_tags(info.model_id, {PROCESS_TAG: own.name})
    return info


@pytest.fixture
def killed(empty_store):
    """Run a command's body in a process that ends by SIGKILL."""

    def run(body, command=COMMAND):
        child = os.fork()
        if not child:
            try:
                with tracking.run("data", command) as run_id:
                    body(tracking.client(), run_id)
                    os.kill(os.getpid(), signal.SIGKILL)
            finally:
                os._exit(1)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
        return empty_store.runs()[0].info.run_id

    return run


def models(store):
    experiments = [experiment.experiment_id for experiment in store.client.search_experiments()]
    return store.client.search_logged_models(experiments)


def test_all_is_there_at_once_and_the_mark_goes_last(empty_store):
    client = empty_store.client
    assert next_number(client, "new") == "1"
    with mlflow.start_run() as run:
        version = register(client, log(), "new", tags={"a": "b"}, description="x" * 6000)
        assert dict(version.tags) == {"a": "b", REGISTERING_TAG: run.info.run_id}
        assert len(version.description) == 5000
        complete(client, version)
        describe_version(client, version, "y" * 6000)
    found = find_version(client, "models:/new/1")
    assert (dict(found.tags), found.description, found.run_id) == ({"a": "b"}, "y" * 5000, run.info.run_id)
    [model] = models(empty_store)
    assert model.tags["mlflow.modelVersions"] == '[{"name": "new", "version": 1}]'
    assert next_number(client, "new") == "2"


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("name", ["clf", "new"])
def test_a_failure_leaves_neither_version_nor_logged_model(store, name, error):
    before, known = store.everything_registered(), len(models(store))
    with pytest.raises(error, match="stop"), tracking.run("data", COMMAND):
        register(store.client, log(), name, tags={}, description="")
        assert store.everything_registered() != before and len(models(store)) == known + 1
        raise error("stop")
    assert store.everything_registered() == before  # clf/1 and its name are still there
    assert len(models(store)) == known


def test_a_failure_is_tidied_up_where_no_note_can_be_written(store, tmp_path, monkeypatch):
    """As in a container without a home: the command itself knows what it has begun."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    before, known = store.everything_registered(), len(models(store))
    with pytest.raises(RuntimeError), tracking.run("data", COMMAND):
        register(store.client, log(), "clf", tags={}, description="")
        raise RuntimeError
    assert store.everything_registered() == before
    assert len(models(store)) == known


def test_what_could_not_be_tidied_up_is_known_to_the_next_command(empty_store, monkeypatch):
    """The server was away as the command failed: its note still says what it was registering."""

    def away(*_):
        raise MlflowException("away")

    child = os.fork()
    if not child:
        monkeypatch.setattr(tracking, "take_back", away)
        try:
            with tracking.run("data", COMMAND):
                register(tracking.client(), log(), "new", tags={}, description="")
                raise RuntimeError
        finally:
            os._exit(1)
    os.waitpid(child, 0)
    assert REGISTERING_TAG in empty_store.tags("1", "new")
    with pytest.raises(AlreadyDone), tracking.run("data", COMMAND):
        pytest.fail("what the note names was complete but for its mark")
    assert REGISTERING_TAG not in empty_store.tags("1", "new")


def test_a_lost_answer_is_not_taken_for_an_earlier_version_of_the_run(empty_store, monkeypatch):
    """A project's run may register one name twice."""
    client, create = empty_store.client, MlflowClient.create_model_version
    with mlflow.start_run():
        complete(client, register(client, log(), "new", tags={}, description=""))
        lost = [True]

        def unanswered(*arguments, **options):
            version = create(*arguments, **options)
            if lost.pop() if lost else False:
                raise MlflowException("API request to http://server failed with exception ('Connection broken')")
            return version

        monkeypatch.setattr(MlflowClient, "create_model_version", unanswered)
        assert str(register(client, log(), "new", tags={}, description="").version) == "2"
    assert empty_store.versions("new") == ["1", "2"]


def test_a_version_that_is_complete_stays(empty_store):
    client = empty_store.client
    with pytest.raises(RuntimeError), tracking.run("data", COMMAND):
        complete(client, register(client, log(), "new", tags={}, description=""))
        log()
        raise RuntimeError
    assert empty_store.versions("new") == ["1"] and len(models(empty_store)) == 1


def test_another_program_s_logged_model_stays(empty_store):
    """The run may be a project's, which has logged a model before it called us."""
    with pytest.raises(RuntimeError), tracking.run("data", COMMAND):
        theirs = mlflow.pytorch.log_model(torch.nn.Linear(1, 1), name="theirs", **PLAIN)
        log()
        raise RuntimeError
    assert [model.model_id for model in models(empty_store)] == [theirs.model_id]


def test_a_logged_model_of_a_killed_command_is_deleted(empty_store, killed, capsys):
    run_id = killed(lambda client, run_id: log())
    assert len(models(empty_store)) == 1
    with tracking.run("data", COMMAND):
        pass
    assert not models(empty_store)
    found = empty_store.client.get_run(run_id)
    assert (found.info.status, found.data.tags["unlearn.error"]) == ("KILLED", "its process died")
    assert f"run {run_id} had died and is closed as KILLED" in " ".join(capsys.readouterr().err.split())


def test_nested_runs_of_a_killed_command_are_closed(empty_store, killed):
    def nested(client, run_id):
        inner = tracking.nested_run("inner")
        other = tracking.nested_run("under another run", parent=tracking.client().create_run("1").info.run_id)
        inner.__enter__(), other.__enter__()
        os.kill(os.getpid(), signal.SIGKILL)

    killed(nested)
    with tracking.run("data", COMMAND) as own:
        pass
    states = {run.data.tags["mlflow.runName"]: run.info.status for run in empty_store.runs() if run.info.run_id != own}
    assert states["inner"] == states["under another run"] == states["data"] == "KILLED"


def test_what_was_registered_is_finished_and_not_done_twice(empty_store, killed):
    """Tags and description came with it; only the mark was left."""
    run_id = killed(lambda client, _: register(client, log(), "new", tags={"a": "b"}, description="text"))
    with pytest.raises(AlreadyDone, match=rf"^Registered new version 1: .* in run {run_id}\.$"):
        with tracking.run("data", COMMAND):
            pytest.fail("it was done before")
    assert dict(find_version(empty_store.client, "models:/new/1").tags) == {"a": "b"}
    assert [run.info.status for run in empty_store.runs()] == ["FINISHED"], "what was done before makes no run"
    with tracking.run("data", COMMAND):  # once
        pass


def test_with_other_options_it_is_another_command(empty_store, killed):
    killed(lambda client, _: register(client, log(), "new", tags={}, description=""))
    with tracking.run("data", config.Data(data="digits,train=50%")):
        pass
    assert empty_store.versions("new") == ["1"] and REGISTERING_TAG not in empty_store.tags("1", "new")


def test_without_its_evidence_it_is_taken_back(empty_store, killed):
    killed(lambda client, _: register(client, log(), "new", tags={"unlearn.evidence_sha256": "0"}, description=""))
    with tracking.run("data", COMMAND):
        pass
    assert empty_store.everything_registered() == {} and not models(empty_store)


def test_a_command_that_runs_is_left_alone(empty_store):
    client = empty_store.client
    with tracking.run("data", COMMAND) as run_id:
        register(client, log(), "new", tags={}, description="")
        child = os.fork()
        if not child:
            try:
                with tracking.run("data", COMMAND):
                    os._exit(0)
            finally:
                os._exit(1)
        os.waitpid(child, 0)
        assert client.get_run(run_id).info.status == "RUNNING"
        assert REGISTERING_TAG in empty_store.tags("1", "new")


def test_what_others_have_written_is_neither_finished_nor_deleted(store):
    """A version in service whose tags, and whose run's, say that it was left by a command that died here."""
    client = store.client
    with mlflow.start_run() as run:
        info = log()
    client.create_model_version("clf", info.model_uri, tags={REGISTERING_TAG: run.info.run_id}, run_id=run.info.run_id)
    log_of_nobody = client.create_logged_model(run.info.experiment_id, source_run_id=run.info.run_id)
    client.update_run(run.info.run_id, status="RUNNING")
    for process in (this_process(), f"{this_process().rpartition(' ')[0]} 1", "0" * 32):
        client.set_tag(run.info.run_id, PROCESS_TAG, process)
        client.set_tag(run.info.run_id, "unlearn.command", "data")
        with tracking.run("data", COMMAND):
            pass
    assert store.versions() == ["1", "2"] and store.tags("2")[REGISTERING_TAG] == run.info.run_id
    assert client.get_run(run.info.run_id).info.status == "RUNNING"
    assert log_of_nobody.model_id in [model.model_id for model in models(store)]


def test_a_version_that_names_the_run_of_a_killed_command_is_not_its_own(empty_store, killed, tmp_path):
    """Nor is a model of the right name, whose evidence is not what that command had written."""
    client = empty_store.client

    def body(client, run_id):
        register(client, log(), "own", tags={DIGEST_TAG: "a" * 64}, description="")

    run_id = killed(body)
    client.create_registered_model("other")
    client.create_model_version("other", str(tmp_path), run_id=run_id, tags={REGISTERING_TAG: run_id})
    client.log_text(run_id, "{}", "evidence/evidence.json")
    client.set_model_version_tag("own", "1", DIGEST_TAG, sha256(b"{}"))
    with tracking.run("data", COMMAND):
        pass
    assert empty_store.versions("other") == ["1"] and empty_store.tags("1", "other")[REGISTERING_TAG] == run_id
    assert "own" not in {model.name for model in client.search_registered_models()}
