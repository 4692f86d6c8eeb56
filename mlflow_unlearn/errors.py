"""The errors that users meet: one clear sentence and an exit code, no traceback."""

import re
from collections.abc import Iterable
from difflib import get_close_matches


class UnlearnError(Exception):
    """Bad input: the message is one sentence that names the bad value and the way out."""

    exit_code = 2

    def __init__(self, message: str, result: object = None) -> None:
        """Keep the sentence alone where a data-loading worker has wrapped it in its traceback.

        ``torch.utils.data`` raises a worker's error again as ``type(error)("Caught … Original Traceback …")``.

        Args:
            message: the sentence.
            result: what the command has found nevertheless, such as the verdict of a review that refuses.
        """
        if "Original Traceback" in message:
            message = message.strip().rsplit("UnlearnError: ", 1)[-1]
        super().__init__(message)
        self.result = result


class NothingToUnlearn(UnlearnError):
    """By a rule, not by a mistake, there is nothing to register: the run ends FAILED, the command with code 3."""

    exit_code = 3


class Refused(UnlearnError):
    """Checked and refused, such as a promotion of what has not passed its review."""

    exit_code = 3


WAYS_OUT = "What can be done now:"
"""The line between a verdict and its ways out."""


class NotPassed(Refused):
    """The verdict of `review`, `audit` or `verify`: no mistake of the user's, and shown without the word *Error*."""

    def __init__(self, message: str, result: object = None, ways_out: Iterable[str] = ()) -> None:
        """The verdict in a sentence.

        Args:
            message: the sentence.
            result: of the command.
            ways_out: lines for people, each a command ready to paste with what it does.
        """
        super().__init__(message, result)
        self.ways_out = list(ways_out)


class AlreadyDone(Exception):
    """What the command is to do was done by the same command before, which was killed a moment later: exit code 0."""

    def __init__(self, message: str, result: object = None) -> None:
        """A sentence, and what is known of what was done."""
        super().__init__(message)
        self.result = result


class NoAnswer(Exception):
    """A server or the way to it failed: nothing is known of what was asked for, nor can anything be decided about it.

    No handler of what is missing or wrong may take it for that.
    """


class BrokenMethod(Exception):
    """A plugin's own code failed: no result of it, which a study or a comparison could go on without."""

    exit_code = 2


class UnlearnWarning(UserWarning):
    """What does not stop a method and may spoil its result; the commands print its sentence alone."""


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
    """The valid names in the place of an unknown one, the nearest one first; no number is a misspelt other number.

    >>> did_you_mean("cta", ["cat", "dog"])
    "did you mean 'cat'? Valid values: 'cat', 'dog'"
    >>> did_you_mean("17", ["1", "7"])
    "valid values: '1', '7'"
    """
    names = list(names)
    near = [] if re.fullmatch(r"[-+.\d]+", name) else get_close_matches(name, names, 1)
    return (f"did you mean {near[0]!r}? Valid values: " if near else "valid values: ") + shortlist(names)
