"""Rows of CSV, TSV, JSONL and Parquet files one at a time, so that a file may be larger than memory."""

import collections
import contextlib
import csv
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from ..run.errors import DataError

SHOWN = 5
"""How many line numbers of skipped rows are printed."""
SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")
BATCH = 4096
"""Rows of a Parquet file that are held at once."""
BUFFER = 2**18
"""Bytes of a column of a Parquet file that are read at once, where it would read a whole group of rows."""

Record = Mapping[str, Any] | str
"""The cells of a row by column, or a text that says what is wrong with the row."""
OnBadRow = Literal["error", "skip"]
Row = TypeVar("Row")


class BadRows:
    """Rows that cannot be used: an error at the first one, or one line at the end that counts them."""

    def __init__(self, source: str, unit: str, policy: OnBadRow) -> None:
        self._source, self._unit, self._policy = source, unit, policy
        self._count = collections.Counter[str]()
        self._places: dict[str, list[int]] = {}

    def add(self, place: int, reason: str, detail: str = "") -> None:
        """Notes a bad row.

        Args:
            place: its line or row.
            reason: what is wrong; rows of one reason are counted together.
            detail: follows the reason in an error.

        Raises:
            DataError: bad rows are errors.
        """
        if self._policy == "error":
            place_name = f"{self._source}, {self._unit} {place}"
            raise DataError(f"{place_name}: {reason}{detail}. Fix the row, or pass --on-bad-row skip.")
        self._count[reason] += 1
        places = self._places.setdefault(reason, [])
        if len(places) < SHOWN:
            places.append(place)

    def report(self, rows: int) -> None:
        """Prints how many of the rows were skipped, if any were, and where the first of them are."""
        if not self._count:
            return
        parts = []
        for reason, count in self._count.items():
            shown = ", ".join(map(str, self._places[reason])) + (", ..." if count > SHOWN else "")
            parts.append(f"{count} x {reason} ({self._unit} {shown})")
        skipped = self._count.total()
        print(f"data: {self._source}: skipped {skipped} of {rows} rows: {'; '.join(parts)}.", file=sys.stderr)


def unit_of(path: Path) -> str:
    """Returns what the row numbers of a file count: "row" or "line"."""
    return "row" if path.suffix.lower() == ".parquet" else "line"


def read_rows(path: Path) -> Iterator[tuple[int, Record]]:
    """Returns the rows of a file as they are read, each after its number; its suffix says how the file is written.

    CSV is quoted as RFC 4180 has it and has a line of column names, and so has TSV, in which quotes mean nothing.
    Bytes that are no UTF-8 come through as surrogates, so that one of them costs a row, not the file.

    Raises:
        DataError: the file is of another kind; when it is read, it is missing, damaged or without names or rows.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise DataError(f"{path}: expected a file that ends in {', '.join(SUFFIXES)}.")
    return {".csv": _read_csv, ".tsv": _read_tsv, ".jsonl": _read_jsonl, ".parquet": _read_parquet}[suffix](path)


def read_lines(path: Path) -> Iterator[str]:
    """Yields the lines of a text file, with what ends them.

    Raises:
        DataError: the file cannot be read.
    """
    with _explain_errors(path), path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        yield from file


@contextlib.contextmanager
def _explain_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}. Check the path.") from error


def _read_csv(path: Path) -> Iterator[tuple[int, Record]]:
    return _name_cells(path, _split_cells(read_lines(path)))


def _read_tsv(path: Path) -> Iterator[tuple[int, Record]]:
    lines = enumerate(read_lines(path), 1)
    return _name_cells(path, ((i, line.rstrip("\r\n").split("\t")) for i, line in lines if line.strip()))


def _split_cells(lines: Iterator[str]) -> Iterator[tuple[int, list[str] | str]]:
    """Yields line number and cells of each record, or what is wrong; reading goes on in the line after.

    A quote that is not closed takes in lines up to the limit of csv on the length of a cell, and these are all that
    is kept.
    """
    begun: list[str] = []
    again = collections.deque[str]()

    def feed() -> Iterator[str]:
        while again:
            begun.append(again.popleft())
            yield begun[-1]
        for line in lines:
            begun.append(line)
            yield line

    number = 1
    while True:
        try:
            for cells in csv.reader(feed(), strict=True):
                if cells:
                    yield number, cells
                number += len(begun)
                begun.clear()
            return
        except csv.Error as error:
            unclosed = "unexpected end" in str(error)
            yield number, "a quote that is never closed" if unclosed else f"broken quotes or cells ({error})"
            again.extendleft(reversed(begun[1:]))
            begun.clear()
            number += 1


def _name_cells(path: Path, rows: Iterator[tuple[int, list[str] | str]]) -> Iterator[tuple[int, Record]]:
    _, names = next(rows, (0, "the file is empty"))
    if isinstance(names, str):
        raise DataError(f"{path.name}: no line of column names: {names}.")
    _check_names(path, names)
    found = False
    for line, cells in rows:
        found = True
        if isinstance(cells, str):
            yield line, cells
        elif len(cells) != len(names):
            yield line, f"{len(cells)} cells instead of {len(names)}"
        else:
            yield line, dict(zip(names, cells, strict=True))
    if not found:
        raise DataError(f"{path.name}: no rows below the line of column names.")


def _check_names(path: Path, names: list[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise DataError(f"{path.name}: two columns are called {name!r}. Rename one.")


def _read_jsonl(path: Path) -> Iterator[tuple[int, Record]]:
    for number, line in enumerate(read_lines(path), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            yield number, "not valid JSON"
        else:
            yield number, record if isinstance(record, dict) else "no JSON object"


def _read_parquet(path: Path) -> Iterator[tuple[int, Record]]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise DataError(f"{path}: reading Parquet needs pyarrow: pip install pyarrow.") from error
    with _explain_errors(path), path.open("rb") as file:
        number = 0
        try:
            found = parquet.ParquetFile(file, buffer_size=BUFFER)
            names = found.schema_arrow.names
            _check_names(path, names)
            for batch in found.iter_batches(BATCH):
                for cells in zip(*map(_read_column, batch.columns), strict=True):
                    number += 1
                    yield number, dict(zip(names, cells, strict=True))
        except (ArrowException, OSError, ValueError, OverflowError) as error:
            first, _, _ = str(error).partition("\n")
            raise DataError(f"{path}: not a readable Parquet file ({first}).") from error


def _read_column(column: Any) -> list[Any]:
    """Returns the cells of a column of Parquet as objects of Python."""
    import pyarrow

    if pyarrow.types.is_timestamp(column.type) and column.type.unit == "ns":  # Python has no nanoseconds
        column = column.cast(pyarrow.timestamp("us", column.type.tz), safe=False)
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        cells = column.cast(pyarrow.binary()).to_pylist()
        return [None if cell is None else cell.decode(errors="surrogateescape") for cell in cells]


# ------------------------------------------------------------------------------------------------------------- flaws


class FlawError(ValueError):
    """What is wrong with a row, and what follows it where rows are not counted."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason + detail)
        self.reason, self.detail = reason, detail


class _Wanted:
    """Columns that some row of a file must have."""

    def __init__(self, path: Path, advice: Mapping[str, str]) -> None:
        self._source, self._advice = path.name, advice
        self._same = path.suffix.lower() != ".jsonl"
        self._names: dict[str, None] = {}
        self.lacking = list(advice)

    def see(self, record: Record) -> None:
        """Notes which columns a row has.

        Raises:
            DataError: one is missing, and other rows have the same columns.
        """
        if not isinstance(record, str):
            self._names |= dict.fromkeys(record)
            self.lacking = [name for name in self.lacking if name not in record]
            if self._same:
                self.check()

    def check(self, rows: Iterable[tuple[int, Record]] = ()) -> None:
        """Looks for what is still missing in the rest of the rows.

        Raises:
            DataError: it is not there.
        """
        for _, record in rows if self.lacking else ():
            self.see(record)
            if not self.lacking:
                break
        if self.lacking and self._names:
            name, names = self.lacking[0], ", ".join(self._names)
            raise DataError(f"{self._source}: no column {name!r} (it has {names}). {self._advice[name]}")


def good_rows(
    path: Path, convert: Callable[[Mapping[str, Any]], Row], advice: Mapping[str, str], on_bad_row: OnBadRow
) -> Iterator[Row]:
    """Yields what `convert` makes of the good rows.

    Args:
        path: of the file.
        convert: raises FlawError for a row that cannot be used.
        advice: the columns that there must be, and what to do where one is missing.
        on_bad_row: what to do about the other rows.
    """
    rows, wanted = read_rows(path), _Wanted(path, advice)
    bad = BadRows(path.name, unit_of(path), on_bad_row)
    count = good = 0
    for place, record in rows:
        count += 1
        if wanted.lacking:
            wanted.see(record)
        try:
            if isinstance(record, str):
                raise FlawError(record)
            row = convert(record)
        except FlawError as flaw:
            if on_bad_row == "error":  # a column that is nowhere tells more than the row that lacks it
                wanted.check(rows)
            bad.add(place, flaw.reason, flaw.detail)
        else:
            good += 1
            yield row
    wanted.check()
    bad.report(count)
    if not good:
        raise DataError(f"{path.name}: no {'usable row' if count else 'rows'}.")
