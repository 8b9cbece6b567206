"""Snapshots as folders, numbered in the order in which they were written.

    folder/000007/state.json            position, names, callbacks, random generators, SHA-256 of all
    folder/000007/arrays.safetensors    the values of the variables

The hash protects against damage, not against forgery. Nothing in these files is code.
"""

import dataclasses
import json
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from kopt.checkpoint.atomic_files import atomic_folder, remove_folder
from kopt.checkpoint.plain_values import Array
from kopt.checkpoint.snapshot import Snapshot
from kopt.declare.digest import digest_of

FORMAT = 1
STATE, ARRAYS = "state.json", "arrays.safetensors"
SHORT = {1: np.uint8, 2: np.uint16}
"""As what types that NumPy itself does not have are stored, by their size in bytes."""


def write(folder: Path, snapshot: Snapshot, keep: int) -> Path:
    """Writes a snapshot into a new numbered folder and removes the oldest ones.

    Args:
        folder: of all snapshots; made if there is none.
        snapshot: what to write.
        keep: ≥ 1, how many stay.

    Returns:
        The new folder.

    Raises:
        OSError: it cannot be written, as on a full disk; what was there before stays.
    """
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    old = numbered(folder)
    target = folder / f"{number_of(old[-1]) + 1 if old else 1:06d}"
    state, stored = _stored(snapshot)
    with atomic_folder(target) as part:
        save_file(stored, part / ARRAYS)
        (part / STATE).write_text(state, encoding="utf-8")
    for path in old[: max(0, len(old) + 1 - keep)]:
        remove_folder(path)
    return target


def _stored(snapshot: Snapshot) -> tuple[str, dict[str, Array]]:
    """Returns what stands in both files."""
    fields = {f.name: getattr(snapshot, f.name) for f in dataclasses.fields(snapshot) if f.name != "arrays"}
    stored = {name: _storable(array) for name, array in snapshot.arrays.items()}
    state = {"format": FORMAT, **fields, "types": {name: _name_of(x.dtype) for name, x in snapshot.arrays.items()}}
    text = json.dumps(state)
    return json.dumps({"sha256": digest_of(stored, text), "state": text}), stored


def packed(snapshot: Snapshot) -> bytes:
    """Returns a snapshot as bytes, to be sent."""
    from safetensors.numpy import save

    state, stored = _stored(snapshot)
    head = state.encode()
    return len(head).to_bytes(8, "little") + head + save(stored)


def unpacked(sent: bytes) -> Snapshot:
    """Returns the snapshot of `packed`."""
    from safetensors.numpy import load

    end = 8 + int.from_bytes(sent[:8], "little")
    return _snapshot(sent[8:end].decode(), lambda: load(sent[end:]), "what the chief has sent")


def read(path: Path) -> Snapshot:
    """Returns a snapshot.

    Raises:
        ValueError: it is damaged, or of a newer version of kopt.
    """
    from safetensors.numpy import load_file

    try:
        text = (path / STATE).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error
    return _snapshot(text, lambda: load_file(path / ARRAYS), path)


def _snapshot(text: str, arrays: Callable[[], dict[str, Array]], path: object) -> Snapshot:
    try:
        outer = json.loads(text)
        stored = arrays()
        whole = outer["sha256"] == digest_of(stored, outer["state"])
    except Exception as error:  # whatever the readers raise on damaged files
        raise _unreadable(path, error) from error
    if not whole:
        raise ValueError(f"{path}: it is damaged: it does not have the SHA-256 that was saved with it.")
    state = json.loads(outer["state"])
    if (version := state.pop("format")) != FORMAT:
        raise ValueError(f"{path}: it is of format {version}, which a newer version of kopt reads.")
    types = state.pop("types")
    return Snapshot(arrays={name: _restored(array, types[name]) for name, array in stored.items()}, **state)


def _unreadable(path: object, error: Exception) -> ValueError:
    return ValueError(f"{path}: no checkpoint that can be read ({type(error).__name__}: {error}).")


def newest(folder: Path) -> Snapshot | None:
    """Returns the last snapshot that is whole; None where there are none at all.

    Damaged ones are skipped with a warning.

    Raises:
        ValueError: there are some, and all are damaged.
    """
    reasons = list[str]()
    for path in reversed(numbered(folder)):
        try:
            snapshot = read(path)
        except ValueError as error:
            reasons.append(str(error))
            continue
        for reason in reasons:
            warnings.warn(f"{reason} {path} is used.", stacklevel=3)
        return snapshot
    if reasons:
        raise ValueError(f"{folder}: no checkpoint is whole. {' '.join(reasons)}")
    return None


def numbered(folder: Path) -> list[Path]:
    """Returns the folders of snapshots, the oldest first."""
    found = [path for path in folder.iterdir() if _is_snapshot(path)] if folder.is_dir() else []
    return sorted(found, key=number_of)


def number_of(path: Path) -> int:
    """Returns the number of a snapshot."""
    return int(path.name)


def _is_snapshot(path: Path) -> bool:
    """Whether a folder is one, whole or damaged; folders of others are neither read nor removed."""
    if not re.fullmatch("[0-9]{6,}", path.name) or not path.is_dir():
        return False
    return {each.name for each in path.iterdir()} <= {STATE, ARRAYS}


def _storable(array: Array) -> Array:
    array = np.ascontiguousarray(array).reshape(array.shape)
    if _is_odd(array.dtype):
        return array[..., None].view(np.uint8)
    return array.view(SHORT[array.dtype.itemsize]) if array.dtype.isbuiltin == 2 else array


def _restored(array: Array, dtype: str) -> Array:
    if str(array.dtype) == dtype:
        return array
    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    return array.view(kind)[..., 0] if _is_odd(kind) else array.view(kind)


def _name_of(dtype: np.dtype[Any]) -> str:
    return dtype.str if _is_odd(dtype) else str(dtype)


def _is_odd(dtype: np.dtype[Any]) -> bool:
    """Whether only the bytes of numbers can be stored: texts, times, complex, long and turned ones."""
    own = dtype.isbuiltin != 2  # of NumPy, not of ml_dtypes
    return own and (dtype.kind not in "biuf" or dtype.itemsize > 8 or not dtype.isnative)
