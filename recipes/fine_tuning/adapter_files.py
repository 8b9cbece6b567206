"""The adapter of a run as files: where it is, and how it comes into a model again."""

import json
from pathlib import Path
from typing import Any

from ..run.errors import DataError, UsageError
from .methods import Method

CONFIG = "adapter_config.json"


def folder_of(path: Path, flag: str = "--adapter") -> Path:
    """Returns the folder of the adapter that a flag names, which may be a run.

    Raises:
        DataError: there is none.
    """
    for folder in (path, path / "adapter"):
        if (folder / CONFIG).is_file():
            return folder
    raise DataError(f"{flag} {path}: no {CONFIG} there. Give a folder that save_pretrained wrote, or a run.")


def check_kind(path: Path, name: str, method: Method) -> None:
    """Checks that a saved adapter is of a method.

    Raises:
        UsageError: it is of another one.
        DataError: it cannot be read.
    """
    from kopt import peft

    assert method.make is not None
    wanted, _ = method.make(peft, None, None, 0.0, 1)
    folder = folder_of(path)
    try:
        kind = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        found = (kind.get("peft_type"), bool(kind.get("use_dora")))
    except (OSError, ValueError, AttributeError) as error:
        raise DataError(f"{folder / CONFIG}: not a readable configuration of an adapter.") from error
    if found != (wanted.peft_type, bool(wanted.fixed.get("use_dora"))):
        kinds = "DoRA" if found[1] else found[0]
        raise UsageError(f"--adapter {path}: holds {kinds}, which --method {name} does not make.")


def load(model: Any, path: Path, base: str | None = None) -> None:
    """Puts a saved adapter into a model.

    Args:
        model: the base.
        path: folder of the adapter, or of a run.
        base: folder of the Hugging Face model that the base was read from, if it was.

    Raises:
        DataError: it cannot be read or does not fit the model.
    """
    from kopt import peft

    folder = folder_of(path)
    try:
        peft.load_adapter(model, folder, base_model=base)
    except ValueError as error:
        raise DataError(f"--adapter {path}: {' '.join(str(error).split())}") from error


def save(model: Any, folder: Path, base: str | None = None, task: str | None = None) -> None:
    """Writes the adapter of a model as Hugging Face peft does.

    Args:
        model: with the adapter.
        folder: to write.
        base: as for `load`.
        task: `task_type` of the configuration.
    """
    from kopt import peft

    peft.save_pretrained(model, folder, base_model=base, task_type=task)
