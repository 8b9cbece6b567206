"""The optimizers of a comparison: names with arguments, which may be lists of others."""

from collections.abc import Iterator

from ..run.errors import UsageError

USUAL = "adamw, momentum, lion, muon, soap, adabound, schedulefreeadamw, prodigy"
"""Those that are compared when none are given."""
OF_TASKS = {
    "multimodal": 'adamw, muon, route routes=[[image, muon], [words, lazyadam], ["", adamw]], '
    "switch first=adamw second=lbfgs after=360 sparse=exact"
}
"""The same, of tasks that are about certain ones."""
CLOSING = {"[": "]", "{": "}", "(": ")"}


def given(text: str | None, task: str) -> list[str]:
    """Returns the optimizers in `--optimizers`, each with single spaces between name and arguments.

    Raises:
        UsageError: there is none, one is there twice, or a bracket or quotation mark is not closed.
    """
    parts = split(OF_TASKS.get(task, USUAL) if text is None else text, ",")
    found = [" ".join(split(part, " ")) for part in parts]
    if not found:
        raise UsageError("--optimizers: give at least one.")
    for entry in found:
        if found.count(entry) > 1:
            raise UsageError(f"--optimizers {entry}: is there twice.")
    return found


def words(entry: str) -> list[str]:
    """Returns the name of an optimizer and its arguments."""
    return split(entry, " ")


def split(text: str, at: str) -> list[str]:
    """Returns the parts of a text that are not empty, between letters `at` outside of brackets and quotation marks.

    Raises:
        UsageError: a bracket or a quotation mark is not closed.
    """
    return [part.strip() for part in _parts(text, at) if part.strip()]


def _parts(text: str, at: str) -> Iterator[str]:
    begun, open_ends = 0, list[str]()
    for i, letter in enumerate(text):
        if open_ends and letter == open_ends[-1]:
            open_ends.pop()
        elif open_ends and open_ends[-1] in "\"'":
            continue
        elif letter in CLOSING or letter in "\"'":
            open_ends.append(CLOSING.get(letter, letter))
        elif letter == at and not open_ends:
            yield text[begun:i]
            begun = i + 1
    if open_ends:
        raise UsageError(f"--optimizers {text}: {open_ends[-1]} is missing.")
    yield text[begun:]
