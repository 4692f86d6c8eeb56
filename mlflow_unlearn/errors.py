"""The errors that users meet: one clear sentence and an exit code, no traceback."""


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
    """There is nothing to register, by a rule and not by a mistake: the run ends FAILED, the command with code 3."""

    exit_code = 3


class Refused(UnlearnError):
    """Judged and refused: a review that is not passed, a difference that `verify` finds, what may not be promoted."""

    exit_code = 3


class UnlearnWarning(UserWarning):
    """What does not stop a method and may spoil its result; the commands print its sentence alone."""
