"""Labelled texts from CSV, TSV, JSONL and Parquet files, and from the `datasets` library."""

import dataclasses
import math
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ..readers import network
from ..readers.rows import SUFFIXES, BadRows, OnBadRow, Record, read_lines, read_rows, unit_of
from ..run.errors import DataError, UsageError

HUB = "https://huggingface.co"
SPLITS = {"train": ("train",), "validation": ("validation", "valid", "dev"), "test": ("test",)}


class Columns(NamedTuple):
    """The columns of an example."""

    text: str
    pair: str | None
    label: str | None
    """`None` reads texts without labels."""


@dataclasses.dataclass(frozen=True)
class Texts:
    """Texts, with their second texts and their labels if there are any."""

    texts: list[str]
    pairs: list[str] | None
    labels: list[str] | None
    places: list[int]
    """Line or row of each in its source."""
    source: str
    unit: str = "line"

    def __len__(self) -> int:
        """Returns the number of texts."""
        return len(self.texts)

    def take(self, rows: Iterable[int]) -> "Texts":
        """Returns some of the rows."""
        rows = [int(row) for row in rows]
        parts = [None if p is None else [p[row] for row in rows] for p in (self.texts, self.pairs, self.labels)]
        places = [self.places[row] for row in rows]
        return Texts(parts[0] or [], parts[1], parts[2], places, self.source, self.unit)


def read_table(path: Path, columns: Columns, on_bad_row: OnBadRow) -> Texts:
    """Returns the texts in a file; its suffix says how it is written.

    CSV is quoted as RFC 4180 has it and has a line of column names, and so has TSV, in which quotes mean nothing.

    Raises:
        DataError: the file is missing, of another kind, lacks a column, holds a bad row or no good one.
    """
    return collect(list(read_rows(path)), columns, path.name, unit_of(path), on_bad_row)


def read_texts(path: Path, columns: Columns, on_bad_row: OnBadRow) -> Texts:
    """Returns the texts in a table, or the lines of a file of any other kind.

    Raises:
        DataError: as `read_table`.
    """
    if path.suffix.lower() in SUFFIXES:
        return read_table(path, columns, on_bad_row)
    if columns.pair is not None:
        raise DataError(f"{path}: pairs of texts need a table, a file that ends in {', '.join(SUFFIXES)}.")
    lines = enumerate(read_lines(path), 1)
    rows: list[tuple[int, Record]] = [(i, {columns.text: line}) for i, line in lines if line.strip()]
    return collect(rows, columns, path.name, "line", on_bad_row)


def collect(rows: list[tuple[int, Record]], columns: Columns, source: str, unit: str, on_bad_row: OnBadRow) -> Texts:
    """Returns the texts in those of the rows that can be used.

    Args:
        rows: place and record of each.
        columns: which cells to take.
        source: what messages begin with.
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
                    f"{source}: no column {name!r} (it has {', '.join(names)}). Set it with --{flag}-column."
                )
    bad = BadRows(source, unit, on_bad_row)
    good: list[tuple[str, str | None, str | None]] = []
    places = []
    for place, record in rows:
        try:
            good.append(_read_example(record, columns))
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


def _read_example(record: Record, columns: Columns) -> tuple[str, str | None, str | None]:
    """Returns text, pair and label, or raises ValueError with what is wrong."""
    if isinstance(record, str):
        raise ValueError(record)
    text = _read_text(record, columns.text)
    pair = None if columns.pair is None else _read_text(record, columns.pair)
    return text, pair, None if columns.label is None else _read_label(record, columns.label)


def _read_text(record: Mapping[str, Any], name: str) -> str:
    value = record.get(name)
    if value is None or value == "" or (isinstance(value, str) and not value.strip()):
        raise ValueError(f"empty {name!r}")
    if not isinstance(value, str):
        raise ValueError(f"{name!r} is no text but {type(value).__name__}")
    if any("\ud800" <= c <= "\udfff" for c in value):
        raise ValueError(f"{name!r} is not UTF-8")
    return value.strip()


def _read_label(record: Mapping[str, Any], name: str) -> str:
    value = record.get(name)
    if value is None or (isinstance(value, float) and math.isnan(value)) or not str(value).strip():
        raise ValueError(f"empty {name!r}")
    if not isinstance(value, (str, bool, int, float)):
        raise ValueError(f"{name!r} is no label but {type(value).__name__}")
    if isinstance(value, float) and value.is_integer():  # a column of numbers with gaps is read as floats
        value = int(value)
    return str(value).strip()


def read_dataset(name: str, columns: Columns, on_bad_row: OnBadRow) -> dict[str, Texts]:
    """Returns the splits "train", "validation" and "test", as far as they have labels, of a data set.

    Args:
        name: as `datasets.load_dataset` takes it; a configuration may follow after a colon.
        columns: which columns to take.
        on_bad_row: what to do about bad rows.

    Raises:
        UsageError: the `datasets` library is missing.
        DataError: the data set is not available, or lacks a split or a column, or has a bad row.
    """
    path, _, config = name.partition(":")
    if not Path(path).exists() and not network.is_reachable(HUB):
        # Then the library takes what is in its cache, instead of asking a server for minutes.
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
            rows = [(i, _name_label(record, columns.label, feature)) for i, record in rows]
        splits[split] = collect(rows, columns, f"{name} {split}", "row", on_bad_row)
    if "train" not in splits:
        raise DataError(f"--dataset {name}: no split called train (it has {', '.join(found)}).")
    return splits


def _name_label(record: Any, column: str | None, feature: Any) -> dict[str, Any]:
    number = record[column]
    named = None if number is None or number < 0 else feature.int2str(number)
    return {**record, column: named}
