"""Files and folders that are there whole or not at all, whatever ends the process: a signal, a full disk, the power.

What is being written has another name, in the same folder. Its content is on the disk before it gets its own.
"""

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

_PART = ".part-"


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Gives the path of a file to write, which becomes `path` when the block ends without an error.

    Args:
        path: the file, which may exist; its folder must.
    """
    target = Path(path)
    part = _part_of(target)
    try:
        yield part
        _sync(part)
        os.replace(part, target)
        _sync_folder(target.parent)
    finally:
        part.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Gives a new folder to write to, which becomes `path` when the block ends without an error.

    Args:
        path: the folder; it must not exist, or be empty. The folder that it is in must exist.
    """
    target = Path(path)
    part = _part_of(target)
    part.mkdir()
    try:
        yield part
        for folder, _, files in os.walk(part):
            for name in files:
                _sync(Path(folder, name))
            _sync_folder(Path(folder))
        os.replace(part, target)
        _sync_folder(target.parent)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def write_files(directory: Path, files: dict[str, bytes]) -> None:
    """Writes files into a folder, which is made if there is none.

    All are on the disk before the first gets its name; then they get them in the order given.
    """
    directory.mkdir(parents=True, exist_ok=True)
    parts = {name: _part_of(directory / name) for name in files}
    try:
        for name, part in parts.items():
            part.write_bytes(files[name])
            _sync(part)
        for name, part in parts.items():
            os.replace(part, directory / name)
        _sync_folder(directory)
    finally:
        for part in parts.values():
            part.unlink(missing_ok=True)


def check_writable(directory: Path) -> None:
    """Makes a folder if there is none.

    Raises:
        OSError: nothing can be written there.
    """
    directory.mkdir(parents=True, exist_ok=True)
    part = _part_of(directory / "try")
    part.mkdir()
    part.rmdir()


def remove_folder(path: Path) -> None:
    """Removes a folder that nobody may see half removed."""
    part = _part_of(path)
    os.replace(path, part)
    shutil.rmtree(part)


def remove_leftovers(directory: str | os.PathLike[str]) -> None:
    """Removes what a killed process was writing into a folder. Only for folders that no other process writes to."""
    for part in Path(directory).glob(f"{_PART}*"):
        if part.is_dir():
            shutil.rmtree(part)
        else:
            part.unlink()


def _part_of(path: Path) -> Path:
    """Returns a new name beside `path`, with its suffix: some writers look at that."""
    suffix = path.suffix[-16:]
    return path.with_name(f"{_PART}{secrets.token_hex(8)}{suffix}")


def _sync(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    if os.name == "nt":  # folders cannot be opened there
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
