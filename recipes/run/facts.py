"""Facts about a run for its metrics and its model card: memory, versions, the command, tables."""

import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from .command_line import program


def peak_memory() -> float | None:
    """Returns the largest memory of the process so far in MB, or `None` if the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "darwin" else 1)
    return round(kilobytes / 1024, 1)


def versions() -> dict[str, str]:
    """Returns the versions that a result depends on."""
    import keras
    import tensorflow as tf

    import kopt

    return {
        "kopt": kopt.__version__,
        "keras": keras.__version__,
        "tensorflow": tf.__version__,
        "python": platform.python_version(),
    }


def command(recipe: str, arguments: Sequence[str]) -> str:
    """Returns the command that starts a recipe with these arguments."""
    return f"{program(recipe)} {shlex.join(arguments)}".rstrip()


def table(rows: Mapping[str, Any]) -> str:
    """Returns a Markdown table of two columns."""
    lines = [f"| {key} | {value} |" for key, value in rows.items()]
    return "\n".join(["| | |", "|---|---|", *lines])
