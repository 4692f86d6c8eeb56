"""The run of a command: how it ends, what it records, and the store's first answer."""

import os
import socket

import mlflow
import pytest
from mlflow.exceptions import MlflowException
from servers import free_port

from mlflow_unlearn import config
from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.registry import tracking

HIDDEN = config.Unlearn(model_uri="models:/clf/1", forget="group:patient=17", hash_ids=True)


@pytest.mark.parametrize(
    ("error", "raised", "status", "tag"),
    [
        (UnlearnError("no such file: give another"), UnlearnError, "FAILED", "no such file: give another"),
        (OSError(28, "No space left"), UnlearnError, "FAILED", "a file cannot be read or written ([Errno 28] No space"),
        (MlflowException("gone\nTraceback"), UnlearnError, "FAILED", "MlflowException: gone"),
        (ZeroDivisionError("0"), ZeroDivisionError, "FAILED", "ZeroDivisionError: 0"),
        (KeyboardInterrupt(), KeyboardInterrupt, "KILLED", "stopped by a signal"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_how_a_run_ends(empty_store, error, raised, status, tag):
    with pytest.raises(raised), tracking.run("data", config.Data(data="digits")):
        raise error
    [run] = empty_store.runs()
    assert run.info.status == status
    assert run.data.tags["unlearn.error"].startswith(tag)
    assert run.data.params == {"unlearn.data": "digits", "unlearn.ids": "None", "unlearn.debug": "False"}
    assert mlflow.active_run() is None


def test_runs_that_start_meanwhile_can_be_tagged_with_ours(empty_store):
    with tracking.run("data", config.Data(data="digits")) as run_id:
        assert (os.environ["MLFLOW_UNLEARN_RUN_ID"], os.environ["MLFLOW_UNLEARN_COMMAND"]) == (run_id, "data")
    assert not {"MLFLOW_UNLEARN_RUN_ID", "MLFLOW_UNLEARN_COMMAND"} & os.environ.keys()


def test_hashed_ids_are_in_no_option_and_no_error(empty_store):
    assert tracking.recorded_options(HIDDEN, "forget") == {"forget": "group:…"}
    with pytest.raises(UnlearnError, match="patient 17"), tracking.run("unlearn", HIDDEN):
        raise UnlearnError("patient 17 is unknown")
    [run] = empty_store.runs()
    assert "17" not in run.data.tags["unlearn.error"] and run.data.params["unlearn.forget"] == "group:…"


@pytest.mark.parametrize(("error", "status"), [(UnlearnError("bad"), "FAILED"), (KeyboardInterrupt(), "KILLED")])
def test_nested_runs_end_by_themselves(empty_store, error, status):
    with tracking.run("data", config.Data(data="digits")) as parent:
        with pytest.raises(type(error)), tracking.nested_run("trial 0") as first:
            raise error
        with tracking.nested_run("trial 1", parent=first) as second:
            pass
    runs = {run.info.run_id: run for run in empty_store.runs()}
    assert {run_id: runs[run_id].info.status for run_id in (parent, first, second)} == {
        **{parent: "FINISHED", first: status, second: "FINISHED"}
    }
    assert runs[first].data.tags["mlflow.parentRunId"] == parent
    assert runs[second].data.tags["mlflow.parentRunId"] == first


def test_a_lost_run_is_closed_once(empty_store):
    with tracking.run("data", config.Data(data="digits")) as finished:
        pass
    lost = empty_store.client.create_run(mlflow.get_run(finished).info.experiment_id).info.run_id
    for run_id in (finished, lost):
        tracking.fail_lost_run(run_id)
    assert mlflow.get_run(finished).info.status == "FINISHED"
    assert mlflow.get_run(lost).info.status == "FAILED"
    assert mlflow.get_run(lost).data.tags["unlearn.error"] == "a process of this command was killed"


def test_a_server_that_never_answers(store, monkeypatch):
    """It takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        uri = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        with pytest.raises(UnlearnError) as refused:
            tracking.connect(patience=1)
    assert str(refused.value).startswith(
        f"the tracking store {uri} cannot be reached (no answer within 1 seconds): start it, or set MLFLOW_TRACKING_URI"
    )


def test_retries_of_the_user_do_not_lengthen_the_first_question(store, monkeypatch):
    """They hold for what comes after it."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "7")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    with pytest.raises(UnlearnError, match="cannot be reached") as refused:
        tracking.connect(patience=8)
    assert "no answer within" not in str(refused.value)
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "7"
    assert "MLFLOW_HTTP_REQUEST_TIMEOUT" not in os.environ
