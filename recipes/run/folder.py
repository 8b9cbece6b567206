"""The folder of a run: which one it is, who may write to it, and its files, each written at once or not at all."""

import contextlib
import csv
import json
import math
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from . import signals
from .command_line import parse
from .errors import AlreadyDoneError, DataError, DiskError, UsageError, is_full_disk
from .flags import FREE, RunFlags, cadence, settings

FILES = (
    "model.keras",
    "config.yaml",
    "metrics.json",
    "history.csv",
    "README.md",
    "curves.png",
    "confusion.png",
    "errors.png",
    "training_rows.npy",
)
OTHERS = ("labels.json", "scores.png", "vocabulary.json", "interactions.npz", "learning_rate.png", "learning_rate.json")
"""Files that only some recipes write, or only with some flags."""
CHECKPOINTS = "checkpoints"
TRIALS = "trials"
"""Folder of what trainings beside that of a run have come to, until the run is complete."""
FOLDERS = ("logs", "adapter", "base", "model", CHECKPOINTS, TRIALS)
LOCK = ".lock"
NEW, READY, OLD = ".new", ".ready", ".old"
"""Folders in the folder of a run: a run that will replace it, that run when it takes its place, and what gives way."""
SMALL = 50_000_000
"""Bytes for what a run writes beside checkpoints and model: events, pictures, tables."""
LONGEST = 200
"""Bytes of a name; file systems take 255, and files on the way to their place have longer ones."""


def choose_folder(flags: RunFlags, recipe: str, label: str) -> Path:
    """Returns the folder of the run, which may not exist yet.

    Args:
        flags: of the run.
        recipe: its name, which names the folder of its runs.
        label: what the name of the run begins with if it is not given.

    Raises:
        UsageError: the flags name none that can be.
    """
    cadence(flags.save_every)
    named = flags.output_dir is not None or flags.run_name is not None
    if flags.resume not in ("never", "auto"):
        if named or flags.overwrite:
            raise UsageError("--resume with a folder: leave out --run-name, --output-dir and --overwrite.")
        folder = Path(flags.resume)
        if not folder.is_dir():
            raise UsageError(f"--resume {folder}: no such folder. Give never, auto or the folder of a run.")
        return folder
    if flags.resume == "auto" and not named:
        raise UsageError("--resume auto: give --run-name too, so that the next start finds this run.")
    name = flags.run_name or f"{label.lower()}-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    if flags.run_name is not None and (Path(name).name != name or name.startswith(".")):
        raise UsageError(f"--run-name {name}: expected a plain name. Use --output-dir for a path.")
    folder = flags.output_dir or Path("saved_models") / recipe / name
    _check_names(folder)
    if not named:
        folder = _free(folder)
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file. Choose another --output-dir.")
    return folder


def _check_names(folder: Path) -> None:
    for part in folder.parts:
        try:
            size = max(len(part.encode()), len(os.fsencode(part)))
        except UnicodeEncodeError:
            raise UsageError(f"{part!a}: no name that this locale has letters for. Choose another one.") from None
        if size > LONGEST:
            raise UsageError(f"{part[:20]}...: a name of {size} bytes. Choose one of at most {LONGEST}.")
        if not part.isprintable():
            raise UsageError(f"{part!a}: a name with letters that cannot be printed. Choose another one.")


def _free(folder: Path) -> Path:
    """Returns the folder, or another one if there is one already, as of a run that began in the same second."""
    tried, number = folder, 1
    while tried.exists():
        number += 1
        tried = folder.with_name(f"{folder.name}-{number}")
    return tried


class Folder:
    """The folder of a run while it is trained: no other process writes there.

    Args:
        flags: all flags of the recipe.
        recipe: its name.
        label: what the name of the run begins with if it is not given.

    Raises:
        UsageError: the folder cannot be used, or another process uses it.
        AlreadyDoneError: `--resume` finds the run complete.
    """

    def __init__(self, flags: Any, recipe: str, label: str) -> None:
        self._flags, run = flags, flags.run
        self.home = choose_folder(run, recipe, label)
        """Where the run will be."""
        self._made = list[Path]()
        self._lock: Any = None
        if not run.dry_run:
            self._take()
        try:
            self.path, self.resumes = self._decide()
            """Where it is until then, and whether it goes on from a checkpoint there."""
        except BaseException:
            self.close()
            raise

    def _take(self) -> None:
        import filelock

        try:
            for folder in reversed([self.home, *self.home.parents]):
                if not folder.exists():
                    folder.mkdir(exist_ok=True)
                    self._made.append(folder)
            lock = filelock.FileLock(self.home / LOCK)
            lock.acquire(timeout=0)
        except (filelock.Timeout, OSError) as error:
            self.close()
            if isinstance(error, filelock.Timeout):
                raise UsageError(f"{self.home}: another process trains there. Choose another --run-name.") from error
            raise UsageError(f"{self.home}: {error.strerror}. Choose another --output-dir.") from error
        self._lock = lock
        if not (self.home / LOCK).exists():  # the other process has just ended and removed it
            self.close()
            raise UsageError(f"{self.home}: another process was there a moment ago. Start again.")

    def close(self) -> None:
        """Lets others write there, and removes the folder if nothing was written."""
        if self._lock is not None:
            with contextlib.suppress(OSError):
                (self.home / LOCK).unlink()
            self._lock.release()
            self._lock = None
        for folder in reversed(self._made):
            with contextlib.suppress(OSError):
                folder.rmdir()

    def _decide(self) -> tuple[Path, bool]:
        from kopt.checkpoint import remove_leftovers

        run, home = self._flags.run, self.home
        if self._lock is not None:
            with signals.held(""):
                _end_replacement(home)
            signals.check()
            remove_leftovers(home)
        content = {path.name for path in home.iterdir()} - {LOCK} if home.is_dir() else set[str]()
        if not content:
            if run.resume not in ("never", "auto"):
                raise UsageError(f"--resume {home}: the folder is empty.")
            return home, False
        is_run = (home / "config.yaml").is_file()
        if run.resume == "never" and not run.overwrite:
            hint = "--overwrite, or --resume auto to go on" if checkpoints(home) else "--overwrite"
            raise UsageError(f"{home} is not empty. Choose another --run-name or --output-dir, or add {hint}.")
        if not is_run:
            what = "--resume" if run.resume != "never" else "--overwrite"
            raise UsageError(f"{home} is not a run (it has no config.yaml), so {what} leaves it alone.")
        path = home / NEW if run.overwrite else home
        if run.resume == "never" or not checkpoints(path):
            if run.resume not in ("never", "auto"):
                raise UsageError(f"--resume {home}: there is no checkpoint.")
            if not run.overwrite and _is_complete(home):
                raise UsageError(f"{home}: a complete run without checkpoints. Choose another --run-name.")
            return path, False
        self._check_same(path)
        return path, True

    def _check_same(self, path: Path) -> None:
        """Checks that the flags are those of the run that goes on.

        Raises:
            UsageError: they are not.
            AlreadyDoneError: the run is complete, and not longer with these flags.
        """
        before, now = settings(_flags_of(path, type(self._flags))), settings(self._flags)
        differ = [name for name in now if name not in FREE and now[name] != before[name]]
        if differ:
            listed = ", ".join(f"--{name.replace('_', '-')} (was {before[name]}, is {now[name]})" for name in differ)
            raise UsageError(f"{path}: the run that goes on has other flags: {listed}.")
        if _is_complete(path) and all(now[name] == before[name] for name in ("epochs", "max_steps")):
            raise AlreadyDoneError(
                f"{path}: the run is complete. A larger --epochs or --max-steps would go on with it."
            )

    def check_room(self, model: Any, trials: int) -> None:
        """Raises `DiskError` if there is no room for what a run writes.

        Args:
            model: with a built optimizer.
            trials: trainings beside this one whose checkpoints are on the disk together.
        """
        run = self._flags.run
        weights = sum(v.value.dtype.size * math.prod(v.shape) for v in model.variables)
        everything = weights + sum(v.value.dtype.size * math.prod(v.shape) for v in model.optimizer.variables)
        best = weights if run.early_stopping is not None else 0
        needed = (run.keep + 1 + 2 * trials) * (everything + best) + everything + SMALL
        free = shutil.disk_usage(self.home).free
        if free < needed:
            raise DiskError(
                f"{self.home}: the run needs {needed / 1e6:,.0f} MB of disk for checkpoints and model, and "
                f"{free / 1e6:,.0f} MB are free. Make room, choose a smaller --keep or another --output-dir."
            )

    def open(self) -> None:
        """Removes what a run before has left, unless it goes on, and writes `config.yaml`.

        Raises:
            UsageError: the folder cannot be made.
        """
        if self.resumes:
            return
        if self.path != self.home:
            shutil.rmtree(self.path, ignore_errors=True)
        else:
            _remove(self.path)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"{self.path}: {error.strerror}. Choose another --output-dir.") from error
        self.write_flags()

    def write_flags(self) -> None:
        """Writes `config.yaml`."""
        with atomic(self.path / "config.yaml") as file:
            file.write_text(yaml.safe_dump(settings(self._flags), sort_keys=False), encoding="utf-8")

    def publish(self) -> None:
        """Puts a complete run where it will be, in place of the one before."""
        if self.path != self.home:
            with signals.held(""):
                _end_replacement(self.home)
            if not self.path.exists():  # one that a signal has ended waits there, and the one before stays
                self.path = self.home


def checkpoints(folder: Path) -> list[Path]:
    """Returns the checkpoints of a run, by their names alone: whether they are whole is seen when one is read."""
    found = folder / CHECKPOINTS
    return [path for path in found.iterdir() if re.fullmatch("[0-9]{6,}", path.name)] if found.is_dir() else []


def _is_complete(folder: Path) -> bool:
    try:
        return not json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["interrupted"]
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _remove(folder: Path) -> None:
    """Removes the files of a run."""
    for name in (*FILES, *OTHERS):
        (folder / name).unlink(missing_ok=True)
    for name in FOLDERS:
        shutil.rmtree(folder / name, ignore_errors=True)


def _end_replacement(home: Path) -> None:
    """Puts a complete new run in the place of the old one, from wherever a killed process left off."""
    new, ready, old = home / NEW, home / READY, home / OLD
    if _is_complete(new):
        old.mkdir(exist_ok=True)
        for name in {*FILES, *OTHERS, *FOLDERS, *(path.name for path in new.iterdir())}:
            if (home / name).exists():
                os.replace(home / name, old / name)
        os.replace(new, ready)  # from here on what lies in `home` is new
    if ready.is_dir():
        for path in ready.iterdir():
            os.replace(path, home / path.name)
        ready.rmdir()
    shutil.rmtree(old, ignore_errors=True)


def atomic(path: Path) -> contextlib.AbstractContextManager[Path]:
    """Gives a temporary path to write to, which becomes `path` when the block ends without an error or a signal."""
    from kopt.checkpoint import atomic_file  # here, for it imports Keras

    return signals.ended(atomic_file(path), f"{path} is written.")


def atomic_folder(path: Path) -> contextlib.AbstractContextManager[Path]:
    """Gives a temporary folder to write to, and renames it to `path`, which may be an empty folder, as `atomic`."""
    from kopt.checkpoint import atomic_folder

    return signals.ended(atomic_folder(path), f"{path} is written.")


def check_empty(folder: Path) -> None:
    """Checks that something can be exported to a folder.

    Raises:
        UsageError: it is not empty, or a file.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"--to {folder}: is not an empty folder.")


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Gives a temporary folder to write what is exported to, as `atomic_folder`; folders above it are made.

    Raises:
        UsageError: it cannot be written.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with atomic_folder(folder) as part:
            yield part
    except OSError as error:
        if is_full_disk(error):
            raise
        raise UsageError(f"--to {folder}: {error.strerror}.") from error


def save_model(folder: Path, model: Any) -> None:
    """Writes `model.keras`."""
    with atomic(folder / "model.keras") as path:
        model.save(path)


def write_history(folder: Path, history: Sequence[Mapping[str, float]]) -> None:
    """Writes `history.csv`, one row an epoch."""
    with atomic(folder / "history.csv") as path, path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(history[0]) if history else ["epoch"])
        writer.writeheader()
        writer.writerows({key: float(f"{value:.6g}") for key, value in row.items()} for row in history)


def save_results(folder: Path, metrics: Mapping[str, Any], history: Sequence[Mapping[str, float]], card: str) -> None:
    """Writes `history.csv`, the model card as `README.md`, and `metrics.json`, each at once or not at all."""
    write_history(folder, history)
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
        raise DataError(f"{folder}: no complete run. Give the folder of a finished run.")
    return _flags_of(folder, kind)


def _flags_of(folder: Path, kind: type) -> Any:
    return parse(["--config", str(folder / "config.yaml")], {"train": kind}, "config.yaml")


def load_model(path: Path) -> Any:
    """Returns the model in a run folder or `.keras` file, without its optimizer.

    Raises:
        DataError: there is none, or it cannot be read.
    """
    import keras

    import kopt.peft  # noqa: F401  # so that Keras knows the adapters

    file = path / "model.keras" if path.is_dir() else path
    if not file.is_file():
        raise DataError(f"{file}: no such file. Give a run folder or a .keras file as --model.")
    try:
        return keras.models.load_model(file, compile=False)
    except Exception as error:  # Keras raises whatever zipfile, json, h5py and the layers raise
        raise DataError(f"{file}: not a model that Keras can load ({type(error).__name__}).") from error
