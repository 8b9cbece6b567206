"""One trial: a run of the recipe in a process of its own, which is watched through the files of its folder."""

import csv
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import kopt

from ..run.folder import CHECKPOINTS, LOCK
from .tuned import Tuned


class Process:
    """A run of the recipe. It goes on from the last checkpoint in its folder, if there is one.

    Args:
        tuned: the recipe.
        words: flags of this run.
        folder: of the run.
        threads: cores that it may use; `None` leaves it to TensorFlow.
    """

    def __init__(self, tuned: Tuned, words: Sequence[str], folder: Path, threads: int | None) -> None:
        self.folder = folder
        self._log = folder.with_suffix(".log")
        place = ["--output-dir", str(folder), "--resume", "auto", "--progress", "plain"]
        # The library of this process, wherever the other one starts; a folder `kopt` there must not be taken for it.
        root = str(Path(kopt.__file__).parents[1])
        path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = os.environ | {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}
        if threads is not None:
            names = ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OMP_NUM_THREADS")
            environment = dict.fromkeys(names, str(threads)) | environment
        folder.parent.mkdir(exist_ok=True)
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "kopt", tuned.name, *tuned.words, *words, *place],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,  # Ctrl-C is for the process that started it
            )

    def history(self) -> list[dict[str, float]]:
        """Returns the epochs that are done, one row each."""
        try:
            with (self.folder / "history.csv").open(newline="", encoding="utf-8") as file:
                return [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]
        except FileNotFoundError:
            return []

    def metrics(self) -> dict[str, Any]:
        """Returns what the run has come to, once it is complete."""
        found: dict[str, Any] = json.loads((self.folder / "metrics.json").read_text(encoding="utf-8"))
        return found

    def code(self) -> int | None:
        """Returns the exit code; `None` while the process works."""
        return self._process.poll()

    def error(self) -> str:
        """Returns why the process has failed, in a line."""
        lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()
        told = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
        code = self._process.returncode
        if code < 0:
            return f"killed by signal {-code}"
        return told[-1] if told else f"exit code {code}; see {self._log}"

    def kill(self) -> None:
        """Ends the process; what it has written stays."""
        self._process.kill()
        self._process.wait()

    def tidy(self) -> None:
        """Removes the checkpoints: nothing goes on from them."""
        shutil.rmtree(self.folder / CHECKPOINTS, ignore_errors=True)


def is_taken(folder: Path) -> bool:
    """Returns whether a process trains there: one that a search has left when it was killed."""
    import filelock

    if not (folder / LOCK).exists():
        return False
    lock = filelock.FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        return True
    lock.release()
    return False


def kept_value(metrics: dict[str, Any], metric: str) -> float:
    """Returns a metric of the validation set, by its name in the history, of the model that a run has kept."""
    value = metrics.get(f"validation_{metric.removeprefix('val_')}")
    return float(value) if isinstance(value, (int, float)) else math.nan
