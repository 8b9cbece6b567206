"""Reads the rows of methods of fine-tuning: `adapters/<task>/<method>.json`, each a run that `kopt bench` has made.

A row has the fields of `MethodResult`, the `versions` that it depends on, and the `arguments` of the recipe.
"""

import json
from pathlib import Path
from typing import NamedTuple

from kopt.board.reader import FOLDER


class MethodResult(NamedTuple):
    """How a method of fine-tuning does on a task, by one run."""

    task: str
    method: str
    model: str
    data: str
    metric: str
    """What was measured on the test set."""
    value: float
    before: float | None
    """The same without the training, where the recipe measures it."""
    trained_parameters: int
    """With the head, where there is one."""
    file_bytes: int | None
    """Of the adapter's file, which holds the head too; None where the whole model is saved."""
    peak_memory_mb: float | None
    """Of the process, imports included; None if the system does not tell."""
    seconds: float
    """Of training, the compilation included."""
    learning_rate: float


def adapters(folder: Path = FOLDER) -> dict[str, dict[str, MethodResult]]:
    """Returns the results by task and by method, sorted; none where nothing has run."""
    found = dict[str, dict[str, MethodResult]]()
    for path in sorted((folder / "adapters").glob("*/*.json")):
        row = json.loads(path.read_text(encoding="utf-8"))
        found.setdefault(path.parent.name, {})[path.stem] = MethodResult(*(row[key] for key in MethodResult._fields))
    return found
