"""The errors that users meet: one clear sentence and an exit code, no traceback."""

import os
import re
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from urllib.parse import unquote


class UnlearnError(Exception):
    """Bad input: the message is one sentence that names the bad value and the way out."""

    exit_code = 2

    def __init__(self, message: str) -> None:
        """Keep the sentence alone where a data-loading worker has wrapped it in its traceback.

        ``torch.utils.data`` raises a worker's error again as ``type(error)("Caught … Original Traceback …")``.
        """
        if "Original Traceback" in message:
            message = message.strip().rsplit("UnlearnError: ", 1)[-1]
        super().__init__(message)


class NothingToUnlearn(UnlearnError):
    """By a rule, not by a mistake, there is nothing to register: the run ends FAILED, the command with code 3."""

    exit_code = 3


class Refused(UnlearnError):
    """Checked and refused: a review that is not passed, a difference that `verify` finds, what may not be promoted."""

    exit_code = 3


class UnlearnWarning(UserWarning):
    """What does not stop a method and may spoil its result; the commands print its sentence alone."""


def first_line(error: BaseException) -> str:
    r"""The first line of an error's message, at most 200 characters of it; its type where there is no message.

    >>> first_line(ValueError("no such thing\nTraceback …")), first_line(KeyError())
    ('no such thing', 'KeyError')
    """
    lines = str(error).strip().splitlines()
    # Before it is shortened: half a password would not be recognised.
    return without_passwords(lines[0])[:200] if lines else type(error).__name__


def shortlist(items: Iterable[object]) -> str:
    """The first ten of the items and their count, for an error message.

    >>> shortlist(["a", "b"])
    "'a', 'b'"
    >>> shortlist(range(12))
    '0, 1, 2, 3, 4, 5, 6, 7, 8, 9, … (12 in all)'
    """
    items = list(items)
    more = f", … ({len(items)} in all)" if len(items) > 10 else ""
    return ", ".join(map(repr, items[:10])) + more


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """The valid names in the place of an unknown one, the nearest one first.

    >>> did_you_mean("cta", ["cat", "dog"])
    "did you mean 'cat'? Valid values: 'cat', 'dog'"
    """
    names = list(names)
    near = get_close_matches(name, names, 1)
    return (f"did you mean {near[0]!r}? Valid values: " if near else "valid values: ") + shortlist(names)


def without_passwords(sentence: str) -> str:
    """A sentence as it may be shown and stored: without any password of a URL or of MLflow's.

    >>> without_passwords("nothing answers at http://me:secret@host:1, as before")
    'nothing answers at http://me:***@host:1, as before'
    """
    uris = [uri for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI") if (uri := os.environ.get(name))]
    for uri in uris:
        sentence = sentence.replace(uri, hidden_password(uri))
    # Those of MLflow also where they stand alone, as in a driver's error about a URL that it cannot take apart.
    for secret in sorted({*_secrets(uris)}, key=len, reverse=True):
        sentence = re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", "***", sentence)
    sentence = re.sub(r"(\w://[^\s:/@]*):[^\s/]*@", r"\1:***@", sentence)
    return re.sub(r"([?&]pass\w*=)[^&\s'\"]+", r"\1***", sentence)


def _secrets(uris: list[str]) -> Iterator[str]:
    """Of MLflow's own, and whatever may be left of them; short ones would hide half of every sentence."""
    found = [os.environ.get(name, "") for name in ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")]
    for uri in uris:
        if match := re.match(r".*?://[^:@/]*:(.*)@", uri):
            found += [match[1], *re.split("[/?#@]", match[1])]
    yield from (secret for each in found for secret in (each, unquote(each)) if len(secret) > 3)


def hidden_password(url: str) -> str:
    """A URL as it may be shown.

    >>> hidden_password("postgresql://me:secret@host/db")
    'postgresql://me:***@host/db'
    """
    # By its look, since a URL with a slip is shown too, in the sentence that refuses it.
    shown = re.sub(r"(pass\w*=)[^&]*", r"\1***", url)
    return re.sub(r"^(.*?://[^:@/]*|[^:@]*(?=:(?!//))):.*@", r"\1:***@", shown)
