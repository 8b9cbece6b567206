"""The errors that end a run with one line on stderr, and their exit codes."""


class RecipeError(Exception):
    """Ends a run with one line on stderr and an exit code."""

    code = 1


class UsageError(RecipeError):
    """A flag is wrong."""

    code = 2


class DataError(RecipeError):
    """A file is missing or not what it should be."""

    code = 3


class DivergedError(RecipeError):
    """The loss is no longer finite."""

    code = 4
