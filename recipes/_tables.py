"""Labelled texts from CSV, TSV, JSONL and Parquet files, and from the `datasets` library."""

import csv
import dataclasses
import json
import math
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from recipes import _data
from recipes._cli import DataError, UsageError

HUB = "https://huggingface.co"
TIMEOUT = 5.0
SHOWN = 5
"""How many line numbers of skipped rows are named."""
SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")
SPLITS = {"train": ("train",), "validation": ("validation", "valid", "dev"), "test": ("test",)}

Record = Mapping[str, Any] | str
"""The cells of a row by column, or what is wrong with it."""
OnBadRow = Literal["error", "skip"]


class Columns(NamedTuple):
    """Where the parts of an example stand."""

    text: str
    pair: str | None
    label: str | None
    """`None` reads texts without labels."""


@dataclasses.dataclass(frozen=True)
class Texts:
    """Texts, with the second text of each and its label where there are such."""

    texts: list[str]
    pairs: list[str] | None
    labels: list[str] | None
    places: list[int]
    """Line or row of each in its source."""
    source: str
    unit: str = "line"

    def __len__(self) -> int:
        """Returns how many texts there are."""
        return len(self.texts)

    def take(self, rows: Iterable[int]) -> "Texts":
        """Returns some of the rows."""
        rows = [int(row) for row in rows]
        parts = [None if p is None else [p[row] for row in rows] for p in (self.texts, self.pairs, self.labels)]
        places = [self.places[row] for row in rows]
        return Texts(parts[0] or [], parts[1], parts[2], places, self.source, self.unit)


class BadRows:
    """What is done about rows that cannot be used: an error for the first, or a line that counts them."""

    def __init__(self, source: str, unit: str, policy: OnBadRow) -> None:
        self._source, self._unit, self._policy = source, unit, policy
        self._found: dict[str, list[int]] = {}

    def add(self, place: int, reason: str) -> None:
        """Notes a bad row.

        Raises:
            DataError: bad rows are errors.
        """
        if self._policy == "error":
            raise DataError(f"{self._source}, {self._unit} {place}: {reason}. Mend it or add --on-bad-row skip.")
        self._found.setdefault(reason, []).append(place)

    def report(self, rows: int) -> None:
        """Prints how many of so many rows were left out, if any, and where the first of them stand."""
        if not self._found:
            return
        parts = []
        for reason, places in self._found.items():
            shown = ", ".join(map(str, places[:SHOWN])) + (", ..." if len(places) > SHOWN else "")
            parts.append(f"{len(places)} x {reason} ({self._unit} {shown})")
        skipped = sum(map(len, self._found.values()))
        print(f"data: {self._source}: skipped {skipped} of {rows} rows: {'; '.join(parts)}.", file=sys.stderr)


def read_table(path: Path, columns: Columns, on_bad_row: OnBadRow) -> Texts:
    """Returns the texts in a file; its suffix says how it is written.

    CSV is quoted as RFC 4180 has it and has a line of column names, and so has TSV, in which quotes mean nothing.

    Raises:
        DataError: the file is missing, of another kind, lacks a column, holds a bad row or no good one.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise DataError(f"{path}: expected a file that ends in {', '.join(SUFFIXES)}.")
    read = {".csv": _read_csv, ".tsv": _read_tsv, ".jsonl": _read_jsonl, ".parquet": _read_parquet}[suffix]
    try:
        rows = list(read(path))
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}. Check the path.") from error
    return collect(rows, columns, path.name, "row" if suffix == ".parquet" else "line", on_bad_row)


def read_texts(path: Path, columns: Columns, on_bad_row: OnBadRow) -> Texts:
    """Returns the texts in a table, or the lines of a file of any other kind.

    Raises:
        DataError: as `read_table`.
    """
    if path.suffix.lower() in SUFFIXES:
        return read_table(path, columns, on_bad_row)
    if columns.pair is not None:
        raise DataError(f"{path}: pairs of texts need a table, a file that ends in {', '.join(SUFFIXES)}.")
    try:
        lines = _lines(path)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}. Check the path.") from error
    rows: list[tuple[int, Record]] = [(i + 1, {columns.text: line}) for i, line in enumerate(lines) if line.strip()]
    return collect(rows, columns, path.name, "line", on_bad_row)


def collect(rows: list[tuple[int, Record]], columns: Columns, source: str, unit: str, on_bad_row: OnBadRow) -> Texts:
    """Returns the good ones of rows that were read.

    Args:
        rows: place and record of each.
        columns: which cells to take.
        source: begins the messages.
        unit: of the places.
        on_bad_row: what to do about the others.

    Raises:
        DataError: a column is missing, a row is bad, or none is good.
    """
    names = list(dict.fromkeys(name for _, record in rows if not isinstance(record, str) for name in record))
    if names:
        for flag, name in (("text", columns.text), ("text-pair", columns.pair), ("label", columns.label)):
            if name is not None and name not in names:
                raise DataError(
                    f"{source}: no column {name!r} (it has {', '.join(names)}). Name it by --{flag}-column."
                )
    bad = BadRows(source, unit, on_bad_row)
    good: list[tuple[str, str | None, str | None]] = []
    places = []
    for place, record in rows:
        try:
            good.append(_example(record, columns))
            places.append(place)
        except ValueError as flaw:
            bad.add(place, str(flaw))
    bad.report(len(rows))
    if not good:
        raise DataError(f"{source}: no {'usable row' if rows else 'rows'}.")
    texts, pairs, labels = ([cell or "" for cell in column] for column in zip(*good, strict=True))
    return Texts(
        texts, None if columns.pair is None else pairs, None if columns.label is None else labels, places, source, unit
    )


def _example(record: Record, columns: Columns) -> tuple[str, str | None, str | None]:
    """Returns text, pair and label, or raises ValueError with what is wrong."""
    if isinstance(record, str):
        raise ValueError(record)
    text = _text(record, columns.text)
    pair = None if columns.pair is None else _text(record, columns.pair)
    return text, pair, None if columns.label is None else _label(record, columns.label)


def _text(record: Mapping[str, Any], name: str) -> str:
    value = record.get(name)
    if value is None or value == "" or (isinstance(value, str) and not value.strip()):
        raise ValueError(f"empty {name!r}")
    if not isinstance(value, str):
        raise ValueError(f"{name!r} is no text but {type(value).__name__}")
    if any("\ud800" <= c <= "\udfff" for c in value):
        raise ValueError(f"{name!r} is not UTF-8")
    return value.strip()


def _label(record: Mapping[str, Any], name: str) -> str:
    value = record.get(name)
    if value is None or (isinstance(value, float) and math.isnan(value)) or not str(value).strip():
        raise ValueError(f"empty {name!r}")
    if not isinstance(value, (str, bool, int, float)):
        raise ValueError(f"{name!r} is no label but {type(value).__name__}")
    if isinstance(value, float) and value.is_integer():  # a column of numbers with gaps is read as floats
        value = int(value)
    return str(value).strip()


# ----------------------------------------------------------------------------------------------------------- readers


def _lines(path: Path) -> list[str]:
    # Bytes that are no UTF-8 come through as surrogates, so that one of them costs a row, not the file.
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        return list(file)


def _read_csv(path: Path) -> Iterator[tuple[int, Record]]:
    return _named(path, _cells(_lines(path)))


def _read_tsv(path: Path) -> Iterator[tuple[int, Record]]:
    lines = _lines(path)
    return _named(path, ((i + 1, line.rstrip("\r\n").split("\t")) for i, line in enumerate(lines) if line.strip()))


def _cells(lines: list[str]) -> Iterator[tuple[int, list[str] | str]]:
    """Gives line number and cells of each record, or what is wrong; reading goes on in the line after."""
    start = 0
    while start < len(lines):
        reader = csv.reader(lines[start:], strict=True)
        line = start + 1
        try:
            for cells in reader:
                if cells:
                    yield line, cells
                line = start + reader.line_num + 1
            return
        except csv.Error as error:
            unclosed = "unexpected end" in str(error)
            yield line, "a quote that is never closed" if unclosed else f"broken quotes or cells ({error})"
            start = line


def _named(path: Path, rows: Iterator[tuple[int, list[str] | str]]) -> Iterator[tuple[int, Record]]:
    _, names = next(rows, (0, "the file is empty"))
    if isinstance(names, str):
        raise DataError(f"{path.name}: no line of column names: {names}.")
    for name in names:
        if names.count(name) > 1:
            raise DataError(f"{path.name}: two columns are called {name!r}. Rename one.")
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


def _read_jsonl(path: Path) -> Iterator[tuple[int, Record]]:
    for i, line in enumerate(_lines(path)):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError:
            record = "not valid JSON"
        yield i + 1, record if isinstance(record, (dict, str)) and record != line.strip() else "no JSON object"


def _read_parquet(path: Path) -> Iterator[tuple[int, Record]]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise DataError(f"{path}: reading Parquet needs pyarrow: pip install pyarrow.") from error
    with path.open("rb") as file:
        try:
            table = parquet.read_table(file)
        except (ArrowException, OSError) as error:
            raise DataError(f"{path}: not a readable Parquet file ({str(error).splitlines()[0]}).") from error
    for i, record in enumerate(table.to_pylist()):
        yield i + 1, record


def read_dataset(name: str, columns: Columns, on_bad_row: OnBadRow) -> dict[str, Texts]:
    """Returns the splits "train", "validation" and "test", as far as they have labels, of a data set.

    Args:
        name: as `datasets.load_dataset` takes it; a configuration may follow after a colon.
        columns: which columns to take.
        on_bad_row: what to do about bad rows.

    Raises:
        UsageError: the `datasets` library is missing.
        DataError: the data set cannot be had, has no such split or column, or a bad row.
    """
    path, _, config = name.partition(":")
    if not Path(path).exists() and not _data.is_reachable(HUB, TIMEOUT):
        # The library takes what is in its cache then, instead of asking a server for minutes.
        os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"
    try:
        import datasets
    except ImportError as error:
        raise UsageError("--dataset needs the library `datasets`: pip install datasets.") from error
    try:
        found = datasets.load_dataset(path, config or None)
    except Exception as error:  # the library raises what its servers, scripts and file formats raise
        raise DataError(f"--dataset {name}: {type(error).__name__}: {' '.join(str(error).split())[:300]}") from error
    splits = {}
    for split, names in SPLITS.items():
        part = next((found[n] for n in names if n in found), None)
        if part is None:
            continue
        feature = part.features.get(columns.label)
        rows: list[tuple[int, Record]] = [(i + 1, dict(record)) for i, record in enumerate(part)]
        if hasattr(feature, "int2str"):
            if all(record[columns.label] == -1 for _, record in rows):  # type: ignore[index]
                print(f"data: {name}: the split {split} has no labels and is left out.", file=sys.stderr)
                continue
            rows = [(i, _with_name(record, columns.label, feature)) for i, record in rows]
        splits[split] = collect(rows, columns, f"{name} {split}", "row", on_bad_row)
    if "train" not in splits:
        raise DataError(f"--dataset {name}: no split called train (it has {', '.join(found)}).")
    return splits


def _with_name(record: Any, column: str | None, feature: Any) -> dict[str, Any]:
    number = record[column]
    named = None if number is None or number < 0 else feature.int2str(number)
    return {**record, column: named}
