"""Requests that a server or a network fails: what may be asked again, and what was done although no answer came.

MLflow's client itself asks again, and forgets two cases. It does not when an answer breaks off; and it does when one
was lost, whatever the request: what was to be created once is there twice then.
"""

import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

from mlflow.environment_variables import MLFLOW_HTTP_REQUEST_MAX_RETRIES
from mlflow.exceptions import MlflowException

from mlflow_unlearn.console import first_line
from mlflow_unlearn.errors import NoAnswer

T = TypeVar("T")

_PAUSES = (0.2, 1.0, 4.0)
"""Seconds before each further attempt."""
LONGEST = 60.0
"""Seconds after which no further attempt is begun: MLflow's client has asked again for as long by itself."""
LONGEST_ANSWER = 180.0
"""Seconds for the whole of an answer: a timeout ends silence alone, and `Retry-After` may name hours."""
_BRIEF = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "4", "MLFLOW_HTTP_REQUEST_TIMEOUT": "30"}
"""Of MLflow's client: half a minute of retries. Its defaults, 7 and 120, are 20 minutes before silence fails."""
_SIGNS = re.compile(  # in one line of a message
    # MLflow's own words for a request without an answer; those of requests and urllib3; what a busy store answers.
    r"API request to .* failed with|Connection (broken|aborted|reset|refused)|IncompleteRead|[Rr]ead timed out|"
    r"Max retries exceeded|RemoteDisconnected|(429|50[0234]) (Client|Server) Error|\((429|50[0234])\)|"
    r"SlowDown|ServiceUnavailable",
)


def unanswered(error: BaseException) -> bool:
    """Whether it says that a request got no answer, so that nothing is known of what the request was about.

    >>> unanswered(OSError("('Connection broken: IncompleteRead(1 bytes read, 1 more expected)')"))
    True
    >>> unanswered(FileNotFoundError("No such file or directory: 'model.pt2'"))
    False
    """
    if isinstance(error, OSError):  # requests' errors too, which have no number
        return isinstance(error, ConnectionError | TimeoutError) or (error.errno is None and _signs(error))
    # A server that gives a reason has answered.
    return isinstance(error, MlflowException) and error.error_code == "INTERNAL_ERROR" and _signs(error)


def _signs(error: Exception) -> bool:
    return _SIGNS.search(str(error)) is not None


def persistently(step: Callable[[], T]) -> T:
    """Take a step, again if it gets no answer; it must do no harm to take it twice.

    Raises:
        NoAnswer: it never did.
    """
    began = time.monotonic()
    for pause in (*_PAUSES, None):
        try:
            return step()
        except (MlflowException, OSError) as error:
            if not unanswered(error):
                raise
            if pause is None or time.monotonic() - began > LONGEST:
                line = next((line for line in str(error).splitlines() if _SIGNS.search(line)), "")
                raise NoAnswer(first_line(OSError(line)) if line else first_line(error)) from error
        time.sleep(pause)
    raise AssertionError("unreachable")


def awaited(step: Callable[[], T]) -> T:
    """Take a step that changes nothing, for as long as a complete answer may take.

    Raises:
        NoAnswer: it has not ended by then.
    """
    results: list[T] = []
    failures: list[BaseException] = []

    def take() -> None:
        try:
            results.append(step())
        except BaseException as error:
            failures.append(error)

    taking = threading.Thread(target=take, daemon=True)
    taking.start()
    taking.join(LONGEST_ANSWER)
    if failures:
        raise failures[0]
    if not results:
        raise NoAnswer(f"an answer was not complete after {LONGEST_ANSWER:g} seconds")
    return results[0]


@contextmanager
def brief_retries() -> Iterator[None]:
    """For commands that only list: inside the block MLflow's client gives up earlier, unless its user says when."""
    ours = {name: value for name, value in _BRIEF.items() if name not in os.environ}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name in ours:
            os.environ.pop(name, None)


def unhurried(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment for a command that does more, started inside of `brief_retries`."""
    return {name: value for name, value in environment.items() if _BRIEF.get(name) != value}


def once(create: Callable[[], T], created: Callable[[], T | None]) -> T:
    """Create something that must not be there twice.

    Args:
        create: asks for it, a single time.
        created: finds it, where no answer said whether it was created.

    Raises:
        NoAnswer: nothing is known of it.
    """

    def attempt() -> T:
        before = MLFLOW_HTTP_REQUEST_MAX_RETRIES.get_raw()
        MLFLOW_HTTP_REQUEST_MAX_RETRIES.set("0")
        try:
            return create()
        except (MlflowException, OSError) as error:
            if not unanswered(error):
                raise
            lost = error
        finally:
            if before is None:
                MLFLOW_HTTP_REQUEST_MAX_RETRIES.unset()
            else:
                MLFLOW_HTTP_REQUEST_MAX_RETRIES.set(before)
        there = persistently(created)
        if there is None:
            raise lost
        return there

    return persistently(attempt)
