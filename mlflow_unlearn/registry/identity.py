"""The user who runs the command: the tracking server's own answer, where it authenticates."""

import getpass

import mlflow
from mlflow.exceptions import MlflowException
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.rest_utils import http_request

from mlflow_unlearn.evidence.record import Person

_CURRENT = "/api/2.0/mlflow/users/current"


def whoami() -> Person:
    """Our user on the tracking server; the machine's user where it does not authenticate.

    Raises:
        MlflowException: the server cannot be asked.
    """
    uri = mlflow.get_tracking_uri()
    if uri.startswith(("http://", "https://")):
        answer = http_request(get_default_host_creds(uri), _CURRENT, "GET", raise_on_status=False)
        if answer.status_code == 200:
            return Person(name=str(answer.json()["user"]["username"]), authenticated=True)
        # A server without users does not have this endpoint.
        if answer.status_code != 404:
            raise MlflowException(f"the tracking server does not report the current user (status {answer.status_code})")
    return Person(name=local_user(), authenticated=False)


def local_user() -> str:
    """The machine's name of the user."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"  # a container's user has no name
