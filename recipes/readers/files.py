"""Files as bytes and as lines of text, unpacked where they are packed, in bounded memory and time."""

import bz2
import codecs
import contextlib
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from ..run.errors import DataError, UsageError

LONGEST_LINE = 2**24
"""Characters of the longest line that is read."""
LARGEST_JSON = 2**30
"""Bytes of the largest JSON document that is read at once."""
UNPACKED = 2**26
"""Bytes that a packed file may hold however small it is."""
LARGEST_RATIO = 200
"""How often a packed file may be larger when it is unpacked; tables seldom reach 20."""
PACKED = (".gz", ".bz2")
MARKS = {  # the longer ones first
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
FOREIGN = {
    b"PK\x03\x04": "a ZIP archive or an Excel workbook. Unpack it, or save it as CSV",
    b"\xd0\xcf\x11\xe0": "an old Excel workbook. Save it as CSV",
    b"PAR1": "a Parquet file. Let its name end in .parquet",
    b"\xfd7zXZ\0": "an xz archive. Unpack it",
    b"\x28\xb5\x2f\xfd": "a Zstandard archive. Unpack it",
    b"7z\xbc\xaf": "a 7z archive. Unpack it",
    b"\x89PNG": "an image",
    b"%PDF": "a PDF document",
    b"SQLite format 3": "an SQLite database. Export the table as CSV",
    b"\x93NUMPY": "an array of NumPy",
    b"\x89HDF": "an HDF5 file",
    b"version https://git-lfs": "the pointer of Git LFS to a file, not the file. Run git lfs pull",
    b"<!doctype html": "a web page, perhaps an error message of a server. Download the file again",
    b"<html": "a web page, perhaps an error message of a server. Download the file again",
}
"""What a file that is not a text may begin with."""


class _Unpacked(io.RawIOBase):
    """The bytes of a packed file, as long as they are not absurdly many."""

    def __init__(self, file: IO[bytes], path: Path) -> None:
        self._file, self._path = file, path
        self._limit = max(UNPACKED, LARGEST_RATIO * path.stat().st_size)
        self._count = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        part = self._file.read(len(buffer))
        buffer[: len(part)] = part
        self._count += len(part)
        if self._count > self._limit:
            raise DataError(
                f"{self._path}: unpacks to more than {LARGEST_RATIO} times its size. "
                "If that is right, unpack it and give the file."
            )
        return len(part)


def _unpack(file: Any, path: Path) -> io.BufferedReader:
    return io.BufferedReader(_Unpacked(file, path), 2**16)


@contextlib.contextmanager
def explain_errors(path: Path) -> Iterator[None]:
    """Turns what the system and the libraries say about a file that cannot be read into an error about data."""
    try:
        yield
    except OSError as error:
        if error.strerror is None:  # of gzip or bz2
            raise DataError(f"{path}: damaged ({error}). Get it again.") from error
        raise DataError(f"{path}: {error.strerror}. Check the path.") from error
    except (EOFError, zlib.error) as error:
        raise DataError(f"{path}: cut short or damaged. Get it again.") from error


@contextlib.contextmanager
def open_bytes(path: Path) -> Iterator[io.BufferedReader]:
    """Opens a file; one that is packed with gzip or bzip2 is unpacked, whatever it is called.

    Raises:
        DataError: it cannot be read, is no regular file, or unpacks to absurdly much.
    """
    with explain_errors(path), contextlib.ExitStack() as stack:
        if path.exists() and not path.is_file():
            kind = "a folder" if path.is_dir() else "no regular file"
            raise DataError(f"{path}: is {kind}. Give a file.")
        file = stack.enter_context(path.open("rb"))
        start = file.peek(3)[:3]
        if start[:2] == b"\x1f\x8b":
            file = _unpack(stack.enter_context(gzip.open(file)), path)
        elif start == b"BZh":
            file = _unpack(stack.enter_context(bz2.open(file)), path)
        yield file


def read_at_most(file: IO[bytes], count: int) -> bytes:
    """Returns what is left of a file, or as many bytes of it; takes no memory for bytes that are not there."""
    parts = []
    while count and (part := file.read(min(count, 2**20))):
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def check_encoding(name: str | None) -> None:
    """Checks the name of an encoding.

    Raises:
        UsageError: Python has none of that name.
    """
    try:
        b"a".decode(name or "utf-8")
    except (LookupError, ValueError, UnicodeError) as error:
        if not isinstance(error, UnicodeDecodeError):  # which one letter is in UTF-16
            raise UsageError(f"--encoding {name}: not an encoding. Give utf-8, cp1252, utf-16, ...") from error


def read_lines(path: Path, encoding: str | None = None, cut: bool = False) -> Iterator[str]:
    """Yields the lines of a text file, with what ends them.

    Args:
        path: of the file, which may be packed.
        encoding: `None` takes UTF-8, or what a byte order mark at the start says; bytes that are no UTF-8 come through
            as surrogates, so that one of them costs a row, not the file.
        cut: whether a line that is too long comes in parts of LONGEST_LINE + 1 characters, and is no error.

    Raises:
        DataError: the file cannot be read, or is no text.
    """
    with open_bytes(path) as file, explain_errors(path):
        start = file.peek(64)[:64]
        for mark, kind in FOREIGN.items():
            if start.lower().startswith(mark.lower()):
                raise DataError(f"{path}: is {kind}.")
        found = encoding or next((name for mark, name in MARKS.items() if start.startswith(mark)), "utf-8")
        errors = "strict" if encoding or found not in ("utf-8", "utf-8-sig") else "surrogateescape"
        text = io.TextIOWrapper(file, encoding=found, errors=errors, newline="")
        number = 0
        try:
            while line := text.readline(LONGEST_LINE + 1):
                number += 1
                if number == 1 and "\0" in line:
                    raise DataError(f"{path}: is no text, or in UTF-16. For that pass --encoding utf-16-le.")
                if len(line) > LONGEST_LINE and not cut:
                    raise DataError(f"{path}: line {number} has more than {LONGEST_LINE:,} characters.")
                yield line
        except UnicodeError as error:
            after = f"after line {number}" if number else "at its start"
            raise DataError(f"{path}: not {found} {after}. Set another --encoding.") from error
        finally:
            with contextlib.suppress(ValueError):  # closed already
                text.detach()


def read_json(path: Path) -> Any:
    """Returns the content of a JSON file.

    Raises:
        DataError: it is missing, too large, or not valid JSON.
    """
    with open_bytes(path) as file, explain_errors(path):
        content = read_at_most(file, LARGEST_JSON + 1)
    if len(content) > LARGEST_JSON:
        raise DataError(f"{path}: more than {LARGEST_JSON:,} bytes.")
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not valid JSON.") from error
