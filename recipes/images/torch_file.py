"""Tensors of a file that `torch.save` wrote, read without torch and without running what the file says."""

import collections
import io
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..readers.arrays import LARGEST, NOT_READABLE
from ..run.batches import Array
from ..run.errors import DataError

MAGIC = 0x1950A86A20F9469CFC6C
"""What the files of torch before 1.6 begin with."""
KINDS = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ByteStorage": np.uint8,
}


class _Storage:
    """The numbers behind tensors: of one kind, and read when they are known."""

    def __init__(self, kind: str, count: int) -> None:
        self.kind, self.count = np.dtype(KINDS[kind]), count
        self.values: Array | None = None

    def set(self, content: bytes) -> None:
        if len(content) != self.count * self.kind.itemsize:
            raise EOFError
        self.values = np.frombuffer(content, self.kind)


class _Tensor:
    """A view of a storage."""

    def __init__(
        self, storage: _Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: Any
    ) -> None:
        self.storage, self.offset, self.shape, self.strides = storage, int(offset), tuple(shape), tuple(strides)

    def read(self) -> Array:
        values, size = self.storage.values, self.storage.kind.itemsize
        last = self.offset + sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True))
        if values is None or not all(n > 0 for n in self.shape) or min(self.strides, default=0) < 0:
            return np.zeros(self.shape, self.storage.kind)
        if self.offset < 0 or last >= self.storage.count:
            raise ValueError("a tensor beyond its numbers")
        steps = tuple(s * size for s in self.strides)
        return np.lib.stride_tricks.as_strided(values[self.offset :], self.shape, steps, writeable=False).copy()


class _Unpickler(pickle.Unpickler):
    """Knows tensors and dictionaries; every other class or function is an error."""

    def __init__(self, file: BinaryIO, find: Callable[[Any], _Storage]) -> None:
        super().__init__(file, encoding="latin1")
        self._find = find

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) in (("torch._utils", "_rebuild_tensor_v2"), ("torch._utils", "_rebuild_parameter")):
            return _Tensor if name == "_rebuild_tensor_v2" else lambda tensor, *_: tensor
        if module == "torch" and name in KINDS:
            return name
        raise pickle.UnpicklingError(f"it holds {module}.{name}")

    def persistent_load(self, pid: Any) -> _Storage:
        return self._find(pid)


def read_tensors(path: Path) -> dict[str, Array]:
    """Returns the tensors of a file by name.

    Raises:
        DataError: the file is missing, damaged, larger than it looks, or holds more than tensors.
    """
    storages: dict[str, _Storage] = {}

    def find(pid: Any) -> _Storage:
        kind, key, count = str(pid[1]), str(pid[2]), int(pid[4])
        if kind not in KINDS or not 0 <= count * np.dtype(KINDS[kind]).itemsize <= LARGEST:
            raise ValueError(f"{count} numbers of {kind}")
        return storages.setdefault(key, _Storage(kind, count))

    try:
        with path.open("rb") as file:
            content = (
                _read_archive(file, find, storages) if zipfile.is_zipfile(file) else _read_old(file, find, storages)
            )
        if not isinstance(content, dict) or not all(isinstance(value, _Tensor) for value in content.values()):
            raise ValueError("no tensors by name")
        if sum(int(np.prod(value.shape)) for value in content.values()) > path.stat().st_size:
            raise ValueError("its tensors are larger than the file")
        return {str(key): value.read() for key, value in content.items()}
    except (*NOT_READABLE, pickle.UnpicklingError, AttributeError, IndexError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else f"not tensors of torch ({error})"
        raise DataError(f"{path}: {reason}. Check the path or get it again.") from error


def _read_archive(file: BinaryIO, find: Callable[[Any], _Storage], storages: dict[str, _Storage]) -> Any:
    with zipfile.ZipFile(file) as archive:
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise ValueError("compressed, as torch never writes it")
        (name,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
        content = _Unpickler(io.BytesIO(archive.read(name)), find).load()
        for key, storage in storages.items():
            storage.set(archive.read(f"{name.removesuffix('data.pkl')}data/{key}"))
    return content


def _read_old(file: BinaryIO, find: Callable[[Any], _Storage], storages: dict[str, _Storage]) -> Any:
    file.seek(0)
    if _Unpickler(file, find).load() != MAGIC:
        raise ValueError("its first bytes are others")
    _Unpickler(file, find).load()  # the version of the protocol
    _Unpickler(file, find).load()  # the machine
    content = _Unpickler(file, find).load()
    for key in _Unpickler(file, find).load():
        storage = storages[str(key)]
        (count,) = struct.unpack("<q", file.read(8))
        if count != storage.count:
            raise ValueError("a storage of another length")
        storage.set(file.read(count * storage.kind.itemsize))
    return content
