"""The names of classes as a file beside a model."""

import json
from collections.abc import Sequence
from pathlib import Path

from ..readers.files import read_json
from ..run.errors import DataError
from ..run.folder import atomic

FILE = "labels.json"


def write_names(folder: Path, names: Sequence[str]) -> None:
    """Writes the names of the classes, in the order of the logits."""
    with atomic(folder / FILE) as path:
        path.write_text(json.dumps(list(names), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_names(folder: Path) -> list[str]:
    """Returns the names of the classes.

    Raises:
        DataError: the file is missing or holds something else.
    """
    path = folder / FILE
    names = read_json(path)
    if not isinstance(names, list) or len(names) < 2 or not all(isinstance(name, str) for name in names):
        raise DataError(f"{path}: expected a list of at least two names.")
    return names
