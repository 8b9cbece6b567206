"""The errors that end a run with one line on stderr, and their exit codes."""

import errno
import os


class RecipeError(Exception):
    """Ends a run with one line on stderr and an exit code."""

    code = 1


class UsageError(RecipeError):
    """A flag is wrong."""

    code = 2


class DataError(RecipeError):
    """A file is missing or not what it should be."""

    code = 3


class DiskError(DataError):
    """There is no room on the disk."""


class DivergedError(RecipeError):
    """The loss, a gradient or a weight is no longer finite."""

    code = 4


class AlreadyDoneError(RecipeError):
    """The run is there already, complete."""

    code = 0


class LostError(RecipeError):
    """Another worker of the run is gone, or never came."""

    code = 5


class EndedError(RecipeError):
    """This worker has nothing more to do, while the chief goes on.

    Args:
        code: of the process.
    """

    def __init__(self, code: int) -> None:
        super().__init__()
        self.code = code


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def is_full_disk(error: BaseException | None) -> bool:
    """Returns whether an error comes from a full disk: not all who write tell by an `OSError`."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in FULL:
            return True
        if any(f"{os.strerror(number)}" in str(error) for number in FULL):
            return True
        error = error.__cause__ or error.__context__
    return False
