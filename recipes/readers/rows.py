"""Rows of tables one at a time, so that a file may be larger than memory."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from ..run.errors import DataError
from .delimited import read_delimited
from .formats import JSON, PARQUET, SUFFIXES, Format, plain_suffix, unit_of
from .json_rows import read_json_rows
from .parquet import read_parquet
from .records import BadRows, FlawError, OnBadRow, Record, missing_column

Row = TypeVar("Row")


def read_rows(path: Path, form: Format | None = None) -> Iterator[tuple[int, Record]]:
    """Returns the rows of a file as they are read, each after its number.

    The ending of its name says whether it is a delimited text, JSON or Parquet; the first two may be packed with gzip
    or bzip2. With a delimiter or names of columns in `form`, a file of any other name is a delimited text.

    Args:
        path: of the file.
        form: how it is written; `None` says nothing about it.

    Raises:
        DataError: the file is of another kind; when it is read, it is missing, damaged or without names or rows.
    """
    form, suffix = form or Format(), plain_suffix(path)
    if suffix in JSON:
        return read_json_rows(path, form.encoding)
    if suffix in PARQUET:
        return read_parquet(path)
    if suffix not in SUFFIXES and form.delimiter is None and form.columns is None:
        raise DataError(f"{path}: expected a file that ends in {', '.join(SUFFIXES)}, or --delimiter.")
    return read_delimited(path, form)


class _Wanted:
    """Columns that some row must have."""

    def __init__(self, source: str, advice: Mapping[str, str], same: bool) -> None:
        self._source, self._advice, self._same = source, advice, same
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
            name = self.lacking[0]
            raise missing_column(self._source, name, self._names, self._advice[name])


def good_rows(
    path: Path,
    convert: Callable[[Mapping[str, Any]], Row],
    advice: Mapping[str, str],
    on_bad_row: OnBadRow,
    form: Format | None = None,
) -> Iterator[tuple[int, Row]]:
    """Yields the number of each good row of a file, and what `convert` makes of it.

    Args:
        path: of the file.
        convert: raises FlawError for a row that cannot be used.
        advice: the columns that there must be, and what to do where one is missing.
        on_bad_row: what to do about the other rows.
        form: how the file is written; `None` says nothing about it.

    Raises:
        DataError: as `read_rows`; a column is missing, a row is bad, or none is good.
    """
    rows, same = read_rows(path, form), plain_suffix(path) not in JSON
    return sort_out(rows, convert, advice, on_bad_row, path.name, unit_of(path), same)


def sort_out(
    rows: Iterator[tuple[int, Record]],
    convert: Callable[[Mapping[str, Any]], Row],
    advice: Mapping[str, str],
    on_bad_row: OnBadRow,
    source: str,
    unit: str,
    same: bool = True,
) -> Iterator[tuple[int, Row]]:
    """Yields the number of each good one of some rows, and what `convert` makes of it.

    Args:
        rows: number and record of each.
        convert: raises FlawError for a row that cannot be used.
        advice: the columns that there must be, and what to do where one is missing.
        on_bad_row: what to do about the other rows.
        source: what messages begin with.
        unit: what the numbers count.
        same: whether all rows have the same columns.

    Raises:
        DataError: a column is missing, a row is bad, or none is good.
    """
    wanted, bad = _Wanted(source, advice, same), BadRows(source, unit, on_bad_row)
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
            yield place, row
    wanted.check()
    bad.report(count)
    if not good:
        raise DataError(f"{source}: no {'usable row' if count else 'rows'}.")
