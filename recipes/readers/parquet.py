"""Rows of Parquet files."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..run.errors import DataError
from .files import explain_errors
from .records import Record

BATCH = 4096
"""Rows that are held at once."""
BUFFER = 2**18
"""Bytes of a column that are read at once, where it would read a whole group of rows."""


def read_parquet(path: Path) -> Iterator[tuple[int, Record]]:
    """Yields the number and the cells of each row.

    Raises:
        DataError: the file cannot be read, or pyarrow is missing.
    """
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise DataError(f"{path}: reading Parquet needs pyarrow: pip install pyarrow.") from error
    with explain_errors(path), path.open("rb") as file:
        number = 0
        try:
            found = parquet.ParquetFile(file, buffer_size=BUFFER)
            names = found.schema_arrow.names
            for name in names:
                if names.count(name) > 1:
                    raise DataError(f"{path.name}: two columns are called {name!r}. Rename one.")
            for batch in found.iter_batches(BATCH):
                for cells in zip(*map(_read_column, batch.columns), strict=True):
                    number += 1
                    yield number, dict(zip(names, cells, strict=True))
        except (ArrowException, OSError, ValueError, OverflowError, MemoryError) as error:
            first, _, _ = str(error).partition("\n")
            raise DataError(f"{path}: not a readable Parquet file ({first}).") from error


def _read_column(column: Any) -> list[Any]:
    """Returns the cells of a column as objects of Python."""
    import pyarrow

    if pyarrow.types.is_timestamp(column.type) and column.type.unit == "ns":  # Python has no nanoseconds
        column = column.cast(pyarrow.timestamp("us", column.type.tz), safe=False)
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        cells = column.cast(pyarrow.binary()).to_pylist()
        return [None if cell is None else cell.decode(errors="surrogateescape") for cell in cells]
