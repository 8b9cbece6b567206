"""Keeps the notes that TensorFlow writes when it is loaded out of what the commands print.

The first import of the package: Python loads all of it before the first line of a command runs.
"""

import contextlib
import importlib
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

COMMANDS = ("kopt", "recipes")
"""Packages whose modules are commands: recipes of a clone are started by their own name, too."""


def is_command(words: Sequence[str]) -> bool:
    """Returns whether this process is a command of kopt, and no program that imports it.

    Args:
        words: what Python was started with, see `started_with`.
    """
    rest = iter(words[1:])
    for word in rest:
        if word == "-m":
            return next(rest, "").partition(".")[0] in COMMANDS
        if not word.startswith("-"):
            path = Path(word)
            return path.stem == COMMANDS[0] or (path.stem == "__main__" and not {*COMMANDS}.isdisjoint(path.parts))
        if word in ("-W", "-X"):
            next(rest, None)
    return False


def started_with() -> Sequence[str]:
    """Returns what this process was started with; of one that multiprocessing has spawned, what its parent was."""
    return [sys.executable, *sys.argv] if "--multiprocessing-fork" in sys.orig_argv else sys.orig_argv


@contextlib.contextmanager
def filtered_stderr() -> Iterator[None]:
    """Holds back what native code writes to stderr, then prints it without the lines that are known noise.

    `TF_CPP_MIN_LOG_LEVEL` does not reach them: they are written before TensorFlow has read it.
    """
    noise: tuple[str, ...] = ("absl::InitializeLog()", "cudart_stub.cc", "CUDA_ERROR_NO_DEVICE", "oneDNN custom")
    if not Path("/dev/nvidiactl").exists():  # on a machine with a GPU a failing driver is news
        noise += ("cuInit",)
    sys.stderr.flush()
    with tempfile.TemporaryFile() as held:
        saved = os.dup(2)
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(saved, 2)
            os.close(saved)
            held.seek(0)
            for line in held.read().decode(errors="replace").splitlines():
                if not any(known in line for known in noise):
                    print(line, file=sys.stderr)


if is_command(started_with()):
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    with filtered_stderr():
        importlib.import_module("keras")
