"""The folder of a run: which one it is, and its files, each written at once or not at all."""

import contextlib
import csv
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from .command_line import parse
from .errors import DataError, UsageError
from .flags import RunFlags, settings

FILES = ("model.keras", "config.yaml", "metrics.json", "history.csv", "README.md", "confusion.png", "errors.png")
OTHERS = ("labels.json", "vocabulary.json", "interactions.npz")
"""Files that only some recipes write."""
FOLDERS = ("logs", "adapter")


def choose_folder(flags: RunFlags, recipe: str, label: str) -> Path:
    """Returns the folder of the run, which may not exist yet.

    Args:
        flags: of the run.
        recipe: its name, which names the folder of its runs.
        label: what the name of the run begins with if it is not given.

    Raises:
        UsageError: it is not empty, and `--overwrite` is not given or it does not hold a run.
    """
    name = flags.run_name or f"{label.lower()}-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    if Path(name).name != name:
        raise UsageError(f"--run-name {name}: expected a plain name. Use --output-dir for a path.")
    folder = flags.output_dir or Path("saved_models") / recipe / name
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file. Choose another --output-dir.")
    if folder.is_dir() and any(folder.iterdir()):
        if not flags.overwrite:
            raise UsageError(f"{folder} is not empty. Choose another --run-name or --output-dir, or add --overwrite.")
        if not (folder / "config.yaml").is_file():
            raise UsageError(f"{folder} is not a run (it has no config.yaml), so --overwrite leaves it alone.")
    return folder


def open_folder(folder: Path, flags: Any) -> None:
    """Creates the folder, removes the files of an earlier run, and writes `config.yaml`."""
    for name in (*FILES, *OTHERS):
        (folder / name).unlink(missing_ok=True)
    for name in FOLDERS:
        shutil.rmtree(folder / name, ignore_errors=True)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{folder}: {error.strerror}. Choose another --output-dir.") from error
    with atomic(folder / "config.yaml") as file:
        file.write_text(yaml.safe_dump(settings(flags), sort_keys=False), encoding="utf-8")


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Gives a temporary path to write to, and renames it to `path` when the block ends without an error."""
    temporary = path.with_name(f".{os.getpid()}-{path.name}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Gives a temporary folder to write to, and renames it to `path`, which may be an empty folder, as `atomic`."""
    temporary = path.with_name(f".{os.getpid()}-{path.name}")
    temporary.mkdir()
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def save_run(
    folder: Path, model: Any, metrics: Mapping[str, Any], history: Sequence[Mapping[str, float]], card: str
) -> None:
    """Writes `model.keras`, `metrics.json`, `history.csv` and `README.md`, each at once or not at all.

    Args:
        folder: of the run.
        model: to save; `None` if its trained weights are saved otherwise.
        metrics: of the run.
        history: one row an epoch.
        card: the model card.
    """
    if model is not None:
        with atomic(folder / "model.keras") as path:
            model.save(path)
    with atomic(folder / "history.csv") as path, path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(history[0]) if history else ["epoch"])
        writer.writeheader()
        writer.writerows({key: float(f"{value:.6g}") for key, value in row.items()} for row in history)
    with atomic(folder / "README.md") as path:
        path.write_text(card, encoding="utf-8")
    # The last file: a folder with metrics.json is complete.
    with atomic(folder / "metrics.json") as path:
        path.write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")


def read_flags(folder: Path, kind: type) -> Any:
    """Returns the flags of a finished run.

    Args:
        folder: of the run.
        kind: dataclass of the flags.

    Raises:
        DataError: the folder holds no complete run.
    """
    if not (folder / "config.yaml").is_file() or not (folder / "metrics.json").is_file():
        raise DataError(f"{folder}: no complete run. Give the folder of a finished run as --model.")
    return parse(["--config", str(folder / "config.yaml")], {"train": kind}, "config.yaml")


def load_model(path: Path) -> Any:
    """Returns the model in a run folder or `.keras` file, without its optimizer.

    Raises:
        DataError: there is none, or it cannot be read.
    """
    import keras

    file = path / "model.keras" if path.is_dir() else path
    if not file.is_file():
        raise DataError(f"{file}: no such file. Give a run folder or a .keras file as --model.")
    try:
        return keras.models.load_model(file, compile=False)
    except Exception as error:  # Keras raises whatever zipfile, json, h5py and the layers raise
        raise DataError(f"{file}: not a model that Keras can load ({type(error).__name__}).") from error
