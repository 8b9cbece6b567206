"""Interactions of users with items, and features of both, from files of rows."""

import array
import dataclasses
import datetime
import itertools
import math
import reprlib
import sys
from collections.abc import Iterable, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..readers.formats import Format
from ..readers.records import FlawError, OnBadRow, Tokens, check_text
from ..readers.rows import good_rows
from ..run.batches import Array
from ..run.errors import DataError

CLASSES = 10
"""A column of numbers with more values than this is cut into this many classes."""
MAX_VALUES_PER_ROW = 8
"""Values of a feature that are read from one row; more are left out."""
UNIQUE_TEXT_ROWS = 50
"""Above this many rows a column of all-different texts (a title, an id) is not used as a feature."""
LARGEST = float(np.finfo(np.float32).max)


class Vocabulary:
    """Numbers for ids: from 1 up in the order of appearance; 0 is unknown."""

    def __init__(self, keys: Iterable[str] = ()) -> None:
        self.keys: list[str] = []
        """`keys[i - 1]` has the number i."""
        self._numbers: dict[str, int] = {}
        for key in keys:
            self.number(key)

    def number(self, key: str) -> int:
        """Returns the number of an id, a new one if it is new."""
        found = self._numbers.get(key)
        if found is None:
            self.keys.append(key)
            found = self._numbers[key] = len(self.keys)
        return found

    def find(self, key: str) -> int:
        """Returns the number of an id, 0 if it is unknown."""
        return self._numbers.get(key, 0)

    def __len__(self) -> int:
        """Returns how many numbers are in use, 0 included: the rows of a table."""
        return len(self.keys) + 1


class Columns(NamedTuple):
    """The columns of an interaction; `None` if there is none."""

    user: str
    item: str
    label: str | None
    time: str | None


@dataclasses.dataclass(frozen=True)
class Interactions:
    """Which user chose which item, with labels and times if there are any."""

    users: Vocabulary
    items: Vocabulary
    user: Array
    item: Array
    label: Array | None
    time: Array | None
    """Seconds."""
    source: str

    def __len__(self) -> int:
        """Returns the number of interactions."""
        return len(self.user)

    def take(self, rows: Array) -> "Interactions":
        """Returns some of the interactions, by index or mask, with the same vocabularies."""
        label, time = (None if part is None else part[rows] for part in (self.label, self.time))
        return Interactions(self.users, self.items, self.user[rows], self.item[rows], label, time, self.source)


@dataclasses.dataclass(frozen=True)
class Feature:
    """A feature of all users or all items."""

    name: str
    keys: list[str]
    """Meaning of the numbers from 1 up; 0 is none."""
    values: Array
    """Numbers [rows of the vocabulary, width], filled up with 0; row 0 is the unknown id."""


class Table(NamedTuple):
    """Titles and features of all users or all items."""

    titles: list[str]
    """One for each number of the vocabulary; the id itself if it has no title."""
    features: list[Feature]


def read_interactions(
    path: Path,
    columns: Columns,
    on_bad_row: OnBadRow,
    users: Vocabulary | None = None,
    items: Vocabulary | None = None,
    *,
    form: Format | None = None,
    time_format: str | None = None,
) -> Interactions:
    """Returns the interactions in a file.

    Args:
        path: of a file of rows, which is not held in memory.
        columns: which cells to take.
        on_bad_row: what to do about rows that cannot be used.
        users: those that there may be; `None` takes those of the file.
        items: the same for items.
        form: how the file is written.
        time_format: of the times, as `strptime` takes it; `None` for seconds and ISO 8601.

    Raises:
        DataError: the file is missing, of another kind, lacks a column, holds a bad row or no good one.
    """
    user_name, item_name, label_name, time_name = columns
    known_users, known_items = (Vocabulary() if known is None else known for known in (users, items))

    def convert(record: Mapping[str, Any]) -> tuple[str, str, float, float]:
        user, item = _read_key(record.get(user_name), user_name), _read_key(record.get(item_name), item_name)
        label = 0.0 if label_name is None else _read_label(record.get(label_name), label_name)
        time = 0.0 if time_name is None else _read_time(record.get(time_name), time_name, time_format)
        if users is not None and not users.find(user):
            raise FlawError("unknown user", f" {reprlib.repr(user)}")
        if items is not None and not items.find(item):
            raise FlawError("unknown item", f" {reprlib.repr(item)}")
        return user, item, label, time

    flags = {name: f"Set it with --{part}-column." for part, name in columns._asdict().items() if name is not None}
    user, item, label, time = array.array("i"), array.array("i"), array.array("f"), array.array("d")
    # Only rows that are good in every part give numbers, so that each id has an interaction.
    for _, (user_key, item_key, value, moment) in good_rows(path, convert, flags, on_bad_row, form):
        user.append(known_users.number(user_key))
        item.append(known_items.number(item_key))
        if columns.label is not None:
            label.append(value)
        if columns.time is not None:
            time.append(moment)
    return Interactions(
        known_users,
        known_items,
        np.frombuffer(user, np.int32),
        np.frombuffer(item, np.int32),
        None if columns.label is None else np.frombuffer(label, np.float32),
        None if columns.time is None else np.frombuffer(time, np.float64),
        path.name,
    )


# ------------------------------------------------------------------------------------------------------------- cells


def _write_number(value: int | float | Decimal) -> str:
    """Returns a number as text, alike for 5 and 5.0: a column of whole numbers with gaps is read as floats."""
    return str(int(value) if value % 1 == 0 else value)


def _read_key(value: Any, name: str) -> str:
    if isinstance(value, str):
        key = check_text(value, name)
    elif isinstance(value, (int, float, Decimal)) and not isinstance(value, bool):
        if isinstance(value, float) and math.isinf(value):
            raise FlawError(f"{name!r} is no id", f" but {value}")
        key = "" if value != value else _write_number(value)
    elif value is None:
        key = ""
    else:
        raise FlawError(f"{name!r} is no id", f" but {type(value).__name__}")
    if not key:
        raise FlawError(f"empty {name!r}")
    return key


def _read_number(value: Any) -> float | None:
    """Returns a finite number, or `None`."""
    if isinstance(value, str):
        if "_" in value:  # Python's own way of grouping digits
            return None
    elif isinstance(value, bool) or not isinstance(value, (int, float, Decimal)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def _read_label(value: Any, name: str) -> float:
    number = _read_number(value)
    if number is None or abs(number) > LARGEST:
        if _is_empty(value):
            raise FlawError(f"empty {name!r}")
        comma = isinstance(value, str) and "," in value and _read_number(value.replace(",", ".")) is not None
        detail = f" but {reprlib.repr(value)}" + (" (write a point instead of the comma)" if comma else "")
        raise FlawError(f"{name!r} is no finite number", detail)
    return number


def _read_time(value: Any, name: str, pattern: str | None) -> float:
    if pattern is not None and not _is_empty(value):
        try:
            return _seconds(datetime.datetime.strptime(str(value).strip(), pattern))
        except ValueError:
            raise FlawError(f"{name!r} is not as in --time-format", f" but {reprlib.repr(value)}") from None
    number = _read_number(value)
    if number is not None:
        return number
    if _is_empty(value):
        raise FlawError(f"empty {name!r}")
    try:
        # Parquet has times and days of its own, which write themselves as ISO 8601.
        return _seconds(datetime.datetime.fromisoformat(str(value).strip()))
    except ValueError:
        hint = " (set --time-format, such as %d/%m/%Y)" if isinstance(value, str) else ""
        raise FlawError(
            f"{name!r} is neither a finite number nor an ISO 8601 time", f" but {reprlib.repr(value)}{hint}"
        ) from None


def _seconds(moment: datetime.datetime) -> float:
    return (moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)).timestamp()


# ---------------------------------------------------------------------------------------------------------- features


def read_table(
    path: Path,
    key_column: str,
    title_column: str | None,
    vocabulary: Vocabulary,
    on_bad_row: OnBadRow,
    form: Format | None = None,
) -> Table:
    """Returns the features and titles in a file.

    A cell holds several values if it is a list, a text with |, or declared so as RecBole does it. Numbers with many
    values are cut at their deciles.

    Args:
        path: of a file of rows.
        key_column: the ids. Each other column but the title is a feature.
        title_column: what is shown for an id; `None`, and an empty cell, show the id.
        vocabulary: the ids that count; other rows are left out.
        on_bad_row: what to do about rows that cannot be used.
        form: how the file is written.

    Raises:
        DataError: the file is missing, of another kind, lacks the ids, holds a bad row or none that counts.
    """
    titles = ["", *vocabulary.keys]
    names: dict[str, None] = {}
    found: dict[int, dict[str, list[str]]] = {}

    def convert(record: Mapping[str, Any]) -> None:
        names.update(dict.fromkeys(record))
        key = _read_key(record.get(key_column), key_column)
        number = vocabulary.find(key)
        if not number:
            return
        if number in found:
            raise FlawError("repeated id", f" {reprlib.repr(key)}")
        title = "" if title_column is None else _read_title(record.get(title_column), title_column)
        cells = {
            name: _read_cell(value, name) for name, value in record.items() if name not in (key_column, title_column)
        }
        titles[number], found[number] = title or key, cells

    advice = f"Give the ids the name that they have among the interactions, {key_column!r}."
    for _ in good_rows(path, convert, {key_column: advice}, on_bad_row, form):
        pass
    if not found:
        raise DataError(f"{path.name}: no id in {key_column!r} is among the interactions. Write them alike.")
    if title_column is not None and title_column not in names:
        _print_note(path, f"no column {title_column!r}, ids are shown instead. Set it with --title-column")
    features = []
    for name in names:
        if name not in (key_column, title_column):
            cells = {number: row.get(name, []) for number, row in found.items()}
            feature = _make_feature(path, name, cells, len(vocabulary))
            features += [] if feature is None else [feature]
    return Table(titles, features)


def _read_title(value: Any, name: str) -> str:
    if isinstance(value, (list, dict)):
        raise FlawError(f"{name!r} is no title but {type(value).__name__}")
    return " ".join(_read_text(value, name).split())


def _read_cell(value: Any, name: str) -> list[str]:
    """Returns the first values in a cell, each once."""
    if isinstance(value, Tokens):
        value = value.split()
    parts = value.split("|") if isinstance(value, str) else value if isinstance(value, list) else [value]
    return [text for text in dict.fromkeys(_read_text(part, name) for part in parts) if text][:MAX_VALUES_PER_ROW]


def _read_text(value: Any, name: str) -> str:
    """Returns a value as text, "" if there is none."""
    if isinstance(value, str):
        return check_text(value, name)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, (bool, datetime.date)):
        return str(value)
    if not isinstance(value, (int, float, Decimal)):
        raise FlawError(f"{name!r} is no text or number but {type(value).__name__}")
    return _write_number(value)


def _print_note(path: Path, text: str) -> None:
    print(f"data: {path.name}: {text}.", file=sys.stderr)


def _make_feature(path: Path, name: str, cells: dict[int, list[str]], size: int) -> Feature | None:
    """Returns a column as a feature, or `None` and says so if it tells nothing.

    Args:
        path: of the file.
        name: of the column.
        cells: values of a row by the number of its id.
        size: rows of the vocabulary.
    """
    cells = {row: values for row, values in cells.items() if values}
    every = [value for values in cells.values() for value in values]
    if not every:
        _print_note(path, f"the column {name!r} is left out: it is empty")
        return None
    known, numbers = Vocabulary(), [_read_number(value) for value in every]
    if len(every) == len(cells) and None not in numbers:
        if len(set(numbers)) > CLASSES:
            classes, meanings = _cut(np.array(numbers, np.float64))
            known = Vocabulary(meanings[i] for i in np.unique(classes))
            cells = {row: [meanings[i]] for row, i in zip(cells, classes, strict=True)}
    elif len(cells) > UNIQUE_TEXT_ROWS and len(set(every)) == len(every):
        _print_note(path, f"the column {name!r} is left out: its {len(every)} values all differ")
        return None
    values = np.zeros((size, max(map(len, cells.values()))), np.int32)
    for row, texts in cells.items():
        values[row, : len(texts)] = [known.number(text) for text in texts]
    return Feature(name, known.keys, values)


def _cut(numbers: Array) -> tuple[Array, list[str]]:
    """Returns the class of each number, cut at the deciles, and what the classes mean."""
    least, most = numbers.min(), numbers.max()
    edges = np.unique(np.quantile(numbers, np.arange(1, CLASSES) / CLASSES))
    edges = edges[edges < most]  # deciles that are equal, or the largest number, bound no class
    bounds = [float(f"{bound:.10g}") for bound in (least, *edges, most)]
    return np.searchsorted(edges, numbers), [f"{a} to {b}" for a, b in itertools.pairwise(bounds)]
