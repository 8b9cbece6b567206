"""Facts about a run for its metrics and its model card: memory, versions, the command, tables."""

import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .command_line import program
from .flags import flatten


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


def revision() -> str | None:
    """Returns the commit of the clone that the recipes are in, "+" after it if files have changed since.

    `None` without a clone or without git.
    """
    place = Path(__file__).parent

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", str(place), *arguments], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        if not git("ls-files", "--", str(Path(__file__))):  # a clone of something else that this was installed in
            return None
        return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def command(recipe: str, flags: Any, arguments: Sequence[str] | None) -> str:
    """Returns the command that repeats a run.

    Args:
        recipe: its name.
        flags: dataclass of its flags.
        arguments: those that were given on the command line; `None` takes the flags that are not their defaults.
    """
    words = arguments_of(flatten(flags), flatten(type(flags)())) if arguments is None else arguments
    return f"{program(recipe)} {shlex.join(words)}".rstrip()


def arguments_of(flags: Mapping[str, Any], defaults: Mapping[str, Any]) -> list[str]:
    """Returns the arguments for those flags, by name, that are not their defaults."""
    words: list[str] = []
    for key, value in flags.items():
        if value == defaults[key]:
            continue
        flag = "--" + key.replace("_", "-")
        if isinstance(value, bool):
            words.append(flag if value else "--no-" + flag.removeprefix("--"))
        else:
            words += [word for v in (value if isinstance(value, list) else [value]) for word in (flag, str(v))]
    return words


def rows_of_card(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the lines of a model card that every recipe has, from the facts of the run."""
    epoch = metrics["best_epoch"]
    best = "" if epoch is None else f", weights of epoch {epoch}, the best on the validation set"
    return {
        "Epochs": f"{metrics['epochs']}{', interrupted' if metrics['interrupted'] else ''}{best}",
        "Optimizer": metrics["optimizer"],
        "Learning rate": f"{metrics['learning_rate']:g}",
        "Batch size": metrics["batch_size"],
        "Seed": metrics["seed"],
        "Seconds of training": metrics["train_seconds"],
        "Versions": ", ".join(f"{name} {version}" for name, version in metrics["versions"].items()),
        "Git revision": metrics["revision"] or "unknown: not run from a clone",
    }


def table(rows: Mapping[str, Any]) -> str:
    """Returns a Markdown table of two columns."""
    lines = [f"| {key} | {value} |" for key, value in rows.items()]
    return "\n".join(["| | |", "|---|---|", *lines])
