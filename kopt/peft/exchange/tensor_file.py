"""Safetensors files: reading shapes alone, or tensors of any precision as float32, and atomic writing."""

import contextlib
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
READABLE = ("F64", "F32", "F16", "BF16")


@contextlib.contextmanager
def _opened(path: pathlib.Path) -> Iterator[Any]:
    import ml_dtypes  # noqa: F401 - TensorFlow's own; NumPy knows bfloat16 by it
    import safetensors

    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            yield file
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is no complete safetensors file ({error}). Save or download it again.") from None


def read_shapes(path: pathlib.Path) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of the tensors in a safetensors file.

    Raises:
        ValueError: the file is cut short, or is not a safetensors file.
    """
    with _opened(path) as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


def read_tensors(path: pathlib.Path) -> tuple[dict[str, Array], dict[str, str]]:
    """Returns all tensors of a safetensors file as float32, and the metadata.

    Raises:
        ValueError: the file is damaged, or a tensor has another type than floating point.
    """
    tensors = {}
    with _opened(path) as file:
        for name in file.keys():  # noqa: SIM118 - no mapping
            kind = file.get_slice(name).get_dtype()
            if kind not in READABLE:
                raise ValueError(
                    f"{path}: {name} has the type {kind}. Received where {', '.join(READABLE)} can be read."
                )
            tensors[name] = file.get_tensor(name).astype("float32")
        return tensors, file.metadata() or {}


def encode(tensors: dict[str, Array], metadata: dict[str, str]) -> bytes:
    """Returns tensors as a safetensors file of float32."""
    from safetensors.numpy import save

    content: bytes = save({name: np.ascontiguousarray(t, "float32") for name, t in tensors.items()}, metadata)
    return content


def write_files(directory: pathlib.Path, files: dict[str, bytes]) -> None:
    """Writes files so that each is there whole or not at all, in the order given."""
    directory.mkdir(parents=True, exist_ok=True)
    parts = {name: directory / f".{name}.{os.getpid()}.part" for name in files}
    try:
        for name, content in files.items():
            with parts[name].open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        for name, part in parts.items():
            part.replace(directory / name)
    finally:
        for part in parts.values():
            part.unlink(missing_ok=True)
