"""Labelled texts from files of rows, and from the `datasets` library."""

import dataclasses
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ..readers import network
from ..readers.files import read_lines
from ..readers.formats import SUFFIXES, Format, plain_suffix, unit_of
from ..readers.records import FlawError, OnBadRow, Record, check_text
from ..readers.rows import good_rows, sort_out
from ..run.errors import DataError, UsageError
from .labels import SEPARATOR, Label, Wanted

LARGEST = 2**30
"""Characters of all texts, which are held in memory."""
LONGEST_LABEL = 1000
"""Characters."""
HUB = "https://huggingface.co"
SPLITS = {"train": ("train",), "validation": ("validation", "valid", "dev"), "test": ("test",)}


class Columns(NamedTuple):
    """The columns of an example."""

    text: str
    pair: str | None
    label: str | None
    """`None` reads texts without labels."""
    task: Wanted = "single-label"
    """Whether a text has one label, or several: a list, or one after the other; "auto" takes both but splits none."""
    separator: str = SEPARATOR
    """What is between several labels in one cell."""


@dataclasses.dataclass(frozen=True)
class Texts:
    """Texts, with their second texts and their labels if there are any."""

    texts: list[str]
    pairs: list[str] | None
    labels: list[Label] | None
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
        texts, places = [self.texts[row] for row in rows], [self.places[row] for row in rows]
        pairs = None if self.pairs is None else [self.pairs[row] for row in rows]
        labels = None if self.labels is None else [self.labels[row] for row in rows]
        return Texts(texts, pairs, labels, places, self.source, self.unit)


def read_table(path: Path, columns: Columns, on_bad_row: OnBadRow, form: Format | None = None) -> Texts:
    """Returns the texts in a file of rows, written as `form` and its name say.

    Raises:
        DataError: the file is missing, of another kind, lacks a column, holds a bad row or no good one.
    """
    rows = good_rows(path, _converter(columns), _advice(columns), on_bad_row, form)
    return _collect(rows, columns, path.name, unit_of(path))


def read_texts(path: Path, columns: Columns, on_bad_row: OnBadRow, form: Format | None = None) -> Texts:
    """Returns the texts in a table, or the lines of a file of any other kind, .txt among them.

    Raises:
        DataError: as `read_table`.
    """
    if plain_suffix(path) in SUFFIXES and plain_suffix(path) != ".txt":
        return read_table(path, columns, on_bad_row, form)
    if columns.pair is not None:
        raise DataError(f"{path}: pairs of texts need a table, a file that ends in {', '.join(SUFFIXES)}.")
    lines = enumerate(read_lines(path, None if form is None else form.encoding), 1)
    rows: Iterator[tuple[int, Record]] = ((i, {columns.text: line}) for i, line in lines if line.strip())
    return _collect(
        sort_out(rows, _converter(columns), _advice(columns), on_bad_row, path.name, "line"), columns, path.name, "line"
    )


Example = tuple[str, str | None, Label | None]
"""Text, pair and label."""


def _advice(columns: Columns) -> dict[str, str]:
    flags = {columns.text: "text", columns.pair: "text-pair", columns.label: "label"}
    return {name: f"Set it with --{flag}-column." for name, flag in flags.items() if name is not None}


def _collect(rows: Iterable[tuple[int, Example]], columns: Columns, source: str, unit: str) -> Texts:
    places, texts, pairs, labels = list[int](), list[str](), list[str](), list[Label]()
    size = 0
    for place, (text, pair, label) in rows:
        size += len(text) + len(pair or "")
        if size > LARGEST:
            raise DataError(f"{source}: more than {LARGEST:,} characters of text. Give fewer rows.")
        places.append(place)
        texts.append(text)
        pairs.append(pair or "")
        labels.append("" if label is None else label)
    pair_or_none, label_or_none = None if columns.pair is None else pairs, None if columns.label is None else labels
    return Texts(texts, pair_or_none, label_or_none, places, source, unit)


def _converter(columns: Columns) -> Callable[[Mapping[str, Any]], Example]:
    """Returns a function of a record that gives text, pair and label, or raises FlawError with what is wrong."""

    def convert(record: Mapping[str, Any]) -> Example:
        text = _read_text(record, columns.text)
        pair = None if columns.pair is None else _read_text(record, columns.pair)
        return text, pair, None if columns.label is None else _read_labels(record, columns.label, columns)

    return convert


def _read_text(record: Mapping[str, Any], name: str) -> str:
    value = record.get(name)
    if value is None or value == "" or (isinstance(value, str) and not value.strip()):
        raise FlawError(f"empty {name!r}")
    if not isinstance(value, str):
        raise FlawError(f"{name!r} is no text but {type(value).__name__}")
    return check_text(value, name)


def _read_labels(record: Mapping[str, Any], name: str, columns: Columns) -> Label:
    value, several = record.get(name), columns.task == "multi-label"
    if isinstance(value, (list, tuple)) and (several or columns.task == "auto"):
        return tuple(dict.fromkeys(_read_label(part, name) for part in value))
    if not several:
        return _read_label(value, name)
    if value is None or not str(value).strip():  # a text may have no label
        return ()
    parts = value.split(columns.separator) if isinstance(value, str) else [value]
    return tuple(dict.fromkeys(_read_label(part, name) for part in parts if str(part).strip()))


def _read_label(value: Any, name: str) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)) or not str(value).strip():
        raise FlawError(f"empty {name!r}")
    if not isinstance(value, (str, bool, int, float)):
        raise FlawError(f"{name!r} is no label but {type(value).__name__}")
    if isinstance(value, float) and value.is_integer():  # a column of numbers with gaps is read as floats
        value = int(value)
    text = check_text(str(value), name)
    if len(text) > LONGEST_LABEL:
        raise FlawError(f"{name!r} has more than {LONGEST_LABEL} characters; a label is a name")
    return text


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
        rows: Iterable[tuple[int, Record]] = ((i + 1, dict(record)) for i, record in enumerate(part))
        if split != "train" and all(record.get(columns.label) == -1 for record in part):
            print(f"data: {name}: the split {split} has no labels and is left out.", file=sys.stderr)
            continue
        if hasattr(feature, "int2str"):
            rows = ((i, _name_label(record, columns.label, feature)) for i, record in rows)
        place = f"{name} {split}"
        good = sort_out(iter(rows), _converter(columns), _advice(columns), on_bad_row, place, "row")
        splits[split] = _collect(good, columns, place, "row")
    if "train" not in splits:
        raise DataError(f"--dataset {name}: no split called train (it has {', '.join(found)}).")
    return splits


def _name_label(record: Any, column: str | None, feature: Any) -> dict[str, Any]:
    number = record[column]
    named = None if number is None or number < 0 else feature.int2str(number)
    return {**record, column: named}
