"""What libraries say to those who write programs with them, kept from the terminal of a command."""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

_TELL_NOTHING = {
    "mlflow.pytorch": "Saving pytorch model by Pickle or CloudPickle format",  # the user has chosen it
    "mlflow.utils.requirements_utils": "contains a local version label",  # the requirements that we log have none
    "mlflow.store.db.utils": "database tables",
}
"""Loggers of MLflow, and a part of what they say that no user of a command can act on."""
_INSTALLED = re.compile(r"[/\\\\](site|dist)-packages[/\\\\]")
_ABOUT_CALLS = (DeprecationWarning, PendingDeprecationWarning, FutureWarning)


@contextmanager
def quiet_libraries(debug: bool) -> Iterator[None]:
    """Inside the block, unless ``debug`` is on; what a library reports as an error is always shown."""
    filters = {} if debug else {name: partial(_says_more, text) for name, text in _TELL_NOTHING.items()}
    for name, one in filters.items():
        logging.getLogger(name).addFilter(one)
    try:
        yield
    finally:
        for name, one in filters.items():
            logging.getLogger(name).removeFilter(one)


def _says_more(text: str, record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR or text not in record.getMessage()


def for_authors(category: type[Warning], file: str) -> bool:
    """Whether a warning is about a call in an installed library, which only its authors can change.

    >>> for_authors(FutureWarning, "/venv/lib/site-packages/timm/layers.py"), for_authors(FutureWarning, "mine.py")
    (True, False)
    """
    return issubclass(category, _ABOUT_CALLS) and _INSTALLED.search(file) is not None
