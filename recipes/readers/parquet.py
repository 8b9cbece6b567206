"""Rows of Parquet files."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..run.errors import DataError
from .files import LONGEST_LINE, explain_errors
from .records import Record

BATCH = 4096
"""Rows that are held at once."""
CHARACTERS = 2**28
"""Characters of a column that are held at once, if a group of rows repeats long texts."""
BUFFER = 2**18
"""Bytes of a column that are read at once, where it would read a whole group of rows."""


def read_parquet(path: Path) -> Iterator[tuple[int, Record]]:
    """Yields the number and the cells of each row.

    Raises:
        DataError: the file cannot be read, or pyarrow is missing.
    """
    try:
        import pyarrow
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise DataError(f"{path}: reading Parquet needs pyarrow: pip install pyarrow.") from error
    with explain_errors(path), path.open("rb") as file:
        number = 0
        try:
            found = parquet.ParquetFile(file, buffer_size=BUFFER)
            names = found.schema_arrow.names
            texts = [field.name for field in found.schema_arrow if pyarrow.types.is_string(field.type)]
            for name in names:
                if names.count(name) > 1:
                    raise DataError(f"{path.name}: two columns are called {name!r}. Rename one.")
            for group in range(found.num_row_groups):
                longest = _longest_text(path, group, texts)
                if longest > LONGEST_LINE:
                    raise DataError(f"{path.name}: a text of more than {LONGEST_LINE:,} characters.")
                for batch in found.iter_batches(max(1, min(BATCH, CHARACTERS // longest)), row_groups=[group]):
                    for cells in zip(*map(_read_column, batch.columns), strict=True):
                        number += 1
                        yield number, dict(zip(names, cells, strict=True))
        except (ArrowException, OSError, ValueError, OverflowError, MemoryError) as error:
            first, _, _ = str(error).partition("\n")
            raise DataError(f"{path}: not a readable Parquet file ({first}).") from error


def _longest_text(path: Path, group: int, names: list[str]) -> int:
    """Returns the length of the longest text that a group of rows may repeat, at least 1.

    A file of some bytes can hold one long text and repeat it in each of its rows: in memory those would be gigabytes.
    """
    import pyarrow.compute
    from pyarrow import parquet

    longest = 1
    with path.open("rb") as file:
        found = parquet.ParquetFile(file, buffer_size=BUFFER, read_dictionary=names)
        for batch in found.iter_batches(1, row_groups=[group], columns=names) if names else ():
            for column in batch.columns:
                longest = max(
                    longest, pyarrow.compute.max(pyarrow.compute.binary_length(column.dictionary)).as_py() or 1
                )
            break
    return longest


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
