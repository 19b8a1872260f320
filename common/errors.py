"""The exceptions that commands turn into a single line and exit code 2."""


class UserError(Exception):
    """Something the user can mend: a file, a key, a value.

    The message is one line that says what was wrong, where, and what to do.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


class DivergenceError(UserError):
    """Training ended because a loss is not finite; the last checkpoint is from before."""


def reason_of(error: Exception) -> str:
    """Why FFmpeg or the system refused, in words, without numbers and paths."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
