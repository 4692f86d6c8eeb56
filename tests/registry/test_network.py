"""What gets no answer is asked for again, and created once; end_to_end/test_faults.py does so with a real server."""

import os

import pytest
import requests
from mlflow.exceptions import MlflowException, RestException

from mlflow_unlearn.errors import NoAnswer
from mlflow_unlearn.registry import network
from mlflow_unlearn.registry.network import once, persistently, unanswered

LOST = MlflowException("API request to http://server/api failed with exception ('Connection broken')")


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(network, "_PAUSES", (0.0, 0.0, 0.0))


def failing(times: int, error: Exception = LOST, value: object = "there"):
    """A step that fails so many times, and how often it was taken."""
    taken = []

    def step():
        taken.append(os.environ.get("MLFLOW_HTTP_REQUEST_MAX_RETRIES"))
        if len(taken) <= times:
            raise error
        return value

    return step, taken


def test_an_answer_is_awaited_four_times():
    step, taken = failing(3)
    assert persistently(step) == "there"
    assert len(taken) == 4
    step, taken = failing(4)
    with pytest.raises(NoAnswer, match="Connection broken"):
        persistently(step)
    assert len(taken) == 4


def test_the_reason_is_that_of_the_file():
    error = MlflowException(f"The following failures occurred:\n##### File a #####\n{LOST.message}")
    with pytest.raises(NoAnswer, match="^API request to"):
        persistently(failing(4, error)[0])


@pytest.mark.parametrize(
    "error",
    [
        RestException({"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "API request to x failed with"}),
        MlflowException("No such file: /artifacts/503/model"),
        FileNotFoundError(2, "Connection broken"),
        PermissionError(13, "Permission denied"),
        requests.HTTPError("404 Client Error: NOT FOUND"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_is_answered_is_not_asked_again(error):
    assert not unanswered(error)
    step, taken = failing(1, error)
    with pytest.raises(type(error)):
        persistently(step)
    assert len(taken) == 1


@pytest.mark.parametrize(
    "error",
    [
        LOST,
        ConnectionResetError(104, "Connection reset by peer"),
        requests.ConnectionError("('Connection aborted.', RemoteDisconnected('…'))"),
        requests.HTTPError("503 Server Error: Service Unavailable for url: http://server"),
        MlflowException("An error occurred (503) when calling the GetObject operation: Please reduce your rate"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_is_not_answered_is_unknown(error):
    assert unanswered(error)


def test_what_was_created_although_no_answer_came_is_found(monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "5")
    create, created = failing(1)
    find, found = failing(1, value="found")
    assert once(create, find) == "found"
    assert created == ["0"], "MLflow itself did not ask again"
    assert found == ["5", "5"], "and did so where that does no harm"


def test_what_was_not_created_is_created_then(monkeypatch):
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", raising=False)
    create, created = failing(2)
    assert once(create, lambda: None) == "there"
    assert created == ["0"] * 3
    assert "MLFLOW_HTTP_REQUEST_MAX_RETRIES" not in os.environ
