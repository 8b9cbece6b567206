"""Rows of tables written as text, with what lies between cells found by itself where it is clear."""

import collections
import csv
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from ..run.errors import DataError
from .files import read_lines
from .formats import Format, plain_suffix
from .records import Record, Tokens, list_names

LONGEST_ROW = 2**20
"""Characters of the longest row that is read, and after which a quote counts as never closed."""
READ_AGAIN = 2**26
"""Characters after broken quotes that are read again before the file is given up, beside four times what was read."""
SAMPLE = 20
"""Rows that show what is between cells."""
MOST_COLUMNS = 10_000
FIRST = "The first line must have the names of the columns; else give them with --columns."
DELIMITERS = (",", ";", "\t", "|", "::")
USUAL = {".csv": ",", ".dat": "::"}
"""What is between the cells of files that end so; of others a tab."""
GENRES = (
    *("unknown", "action", "adventure", "animation", "children", "comedy", "crime", "documentary", "drama", "fantasy"),
    *("film_noir", "horror", "musical", "mystery", "romance", "sci_fi", "thriller", "war", "western"),
)


class Layout(NamedTuple):
    """How a file is written that says nothing about itself."""

    delimiter: str
    names: Sequence[str]
    encoding: str | None = None


RATINGS = ("user", "item", "rating", "timestamp")
LAYOUTS = {
    "u.data": Layout("\t", RATINGS),
    "u.item": Layout("|", ("item", "title", "date", "video_date", "url", *GENRES), "iso-8859-1"),
    "u.user": Layout("|", ("user", "age", "gender", "occupation", "zip")),
    "ratings.dat": Layout("::", RATINGS),
    "movies.dat": Layout("::", ("item", "title", "genres"), "iso-8859-1"),
    "users.dat": Layout("::", ("user", "gender", "age", "occupation", "zip")),
}
"""The files of MovieLens 100K and 1M by their names."""


def read_delimited(path: Path, form: Format) -> Iterator[tuple[int, Record]]:
    """Yields the line and the cells of each row.

    Cells are quoted as RFC 4180 has it; between tabs, and between several characters, quotes mean nothing, unless the
    name of the file ends in .csv. The first line has the names of the columns, unless `form` gives them.

    Raises:
        DataError: the file cannot be read, or has no names or rows.
    """
    lines = read_lines(path, form.encoding)
    sample = list(itertools.islice(lines, SAMPLE))
    layout = None if form.delimiter or form.columns else _known_layout(path, sample)
    if layout is not None and layout.encoding is not None and form.encoding is None:
        lines, sample = read_lines(path, layout.encoding), []
    begin = 1
    if layout is not None:
        delimiter, names = layout.delimiter, list(layout.names)
    else:
        delimiter, names = form.separator, list(form.names)
        if sample and sample[0].strip().lower().startswith("sep=") and len(sample[0].strip()) == 5:  # of Excel
            delimiter, begin = delimiter or sample.pop(0).strip()[4], 2
        delimiter = delimiter or _find_delimiter(path, sample)
    all_lines = itertools.chain(sample, lines)
    quoted = len(delimiter) == 1 and (delimiter != "\t" or plain_suffix(path) == ".csv")
    if quoted:
        # Blanks before a quote are no part of a cell where they follow every delimiter.
        first = sample[0] if sample and delimiter != " " else ""
        spaced = 0 < first.count(delimiter) == first.count(f"{delimiter} ")
        rows = _split_quoted(path, all_lines, delimiter, spaced, begin)
    else:
        rows = _split_plain(all_lines, delimiter, begin)
    return _name_cells(path, rows, names)


def _known_layout(path: Path, sample: Sequence[str]) -> Layout | None:
    name = path.name.lower().removesuffix(".gz").removesuffix(".bz2")
    layout = LAYOUTS.get(name)
    fits = layout is not None and sample and len(sample[0].split(layout.delimiter)) == len(layout.names)
    return layout if fits else None


def _find_delimiter(path: Path, sample: Sequence[str]) -> str:
    """Returns what is between the cells: the usual for the name of the file, unless another alone fits."""
    usual = USUAL.get(plain_suffix(path), "\t")
    counts = {delimiter: _count_cells(sample, delimiter) for delimiter in (usual, *DELIMITERS)}
    several = [delimiter for delimiter, count in counts.items() if count and count[0] > 1]
    even = [delimiter for delimiter in several if len(set(counts[delimiter])) == 1]
    if usual in even or not several:
        return usual
    if len(even) == 1:
        return even[0]
    return usual if usual in several or len(several) != 1 else several[0]


def _count_cells(sample: Sequence[str], delimiter: str) -> list[int]:
    """Returns how many cells each of some rows has."""
    if len(delimiter) > 1:
        return [len(line.split(delimiter)) for line in sample if line.strip()]
    try:
        return [len(cells) for cells in csv.reader(sample, delimiter=delimiter, skipinitialspace=True) if cells]
    except csv.Error:
        return [len(line.split(delimiter)) for line in sample[:1]]


def _split_plain(lines: Iterator[str], delimiter: str, begin: int) -> Iterator[tuple[int, list[str] | str]]:
    for number, line in enumerate(lines, begin):
        if line.strip():
            yield number, line.rstrip("\r\n").split(delimiter)


def _split_quoted(
    path: Path, lines: Iterator[str], delimiter: str, spaced: bool, number: int
) -> Iterator[tuple[int, list[str] | str]]:
    """Yields line number and cells of each record, or what is wrong; reading goes on in the line after.

    A quote that is not closed takes in lines up to the length of the longest row, and these are all that is kept.
    """
    begun: list[str] = []
    again = collections.deque[str]()
    size = repeated = read = 0

    def feed() -> Iterator[str]:
        nonlocal size, read
        while True:
            new = not again
            line = again.popleft() if again else next(lines, None)
            if line is None:
                return
            read += len(line) if new else 0
            begun.append(line)
            size += len(line)
            if size > LONGEST_ROW:
                raise csv.Error("too long")
            yield line

    csv.field_size_limit(LONGEST_ROW)
    while True:
        try:
            for cells in csv.reader(feed(), strict=True, delimiter=delimiter, skipinitialspace=spaced):
                if cells:
                    yield number, cells
                number += len(begun)
                begun.clear()
                size = 0
            return
        except csv.Error as error:
            reason = str(error)
            if "unexpected end" in reason:
                yield number, "a quote that is never closed"
            elif reason == "too long":
                yield number, f"a row of more than {LONGEST_ROW:,} characters, or a quote that is never closed"
            else:
                yield number, f"broken quotes or cells ({reason})"
            repeated += size
            if repeated > READ_AGAIN + 4 * read:
                raise DataError(f"{path.name}: too many rows with broken quotes, up to line {number}.") from error
            again.extendleft(reversed(begun[1:]))
            begun.clear()
            size = 0
            number += 1


def _name_cells(
    path: Path, rows: Iterator[tuple[int, list[str] | str]], names: list[str]
) -> Iterator[tuple[int, Record]]:
    given = bool(names)
    types = [""] * len(names)
    if not given:
        _, found = next(rows, (0, "the file is empty"))
        if isinstance(found, str):
            raise DataError(f"{path.name}: no line of column names: {found}.")
        names, types = _read_names(path, found)
    tokens = [name for name, kind in zip(names, types, strict=True) if kind == "token_seq"]
    count, empty = len(names), True
    for line, cells in rows:
        if given and empty and [cell.strip() for cell in cells] == names:
            raise DataError(f"{path.name}: its first line has the names of the columns. Leave out --columns.")
        if empty and not given and count == 1 and len(cells) > 1 and not isinstance(cells, str):
            raise DataError(
                f"{path.name}: one cell in its first line, {names[0]!r}, and {len(cells)} in the next. {FIRST}"
            )
        empty = False
        if isinstance(cells, str):
            yield line, cells
            continue
        if len(cells) > count and not any(cell.strip() for cell in cells[count:]):
            cells = cells[:count]  # a delimiter after the last cell
        if len(cells) != count:
            yield line, f"{len(cells)} cells instead of {count}"
            continue
        record = dict(zip(names, cells, strict=True))
        yield line, record | {name: Tokens(record[name]) for name in tokens} if tokens else record
    if empty:
        raise DataError(f"{path.name}: no rows{'' if given else ' below the line of column names'}.")


def _read_names(path: Path, cells: list[str]) -> tuple[list[str], list[str]]:
    """Returns the names of columns and the types that RecBole writes after them, as in user_id:token."""
    names = [cell.strip() for cell in cells]
    while len(names) > 1 and not names[-1]:  # a delimiter after the last name
        names.pop()
    if len(names) > MOST_COLUMNS:
        raise DataError(f"{path.name}: {len(names):,} columns; expected at most {MOST_COLUMNS:,}.")
    if not "".join(names).isprintable():
        text = list_names(names).encode("ascii", "backslashreplace").decode()
        raise DataError(f"{path.name}: names of columns that are not UTF-8 ({text}). Set --encoding, such as cp1252.")
    parts = [name.rpartition(":") for name in names]
    if all(kind in ("token", "float", "token_seq", "float_seq") and name for name, _, kind in parts):
        names, types = [name for name, _, _ in parts], [kind for _, _, kind in parts]
    else:
        types = [""] * len(names)
    names = [name or f"column {i}" for i, name in enumerate(names, 1)]
    for name, count in collections.Counter(names).items():
        if count > 1:
            raise DataError(f"{path.name}: two columns are called {name!r}. Rename one.")
    return names, types
