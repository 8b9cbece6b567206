"""Features of users and items, from files of rows: what classes a column has, and which ones each id is in."""

import dataclasses
import functools
import itertools
import reprlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ...readers.formats import Format
from ...readers.records import FlawError, OnBadRow
from ...readers.rows import good_rows
from ...run.batches import Array
from ...run.errors import DataError
from .cells import read_cell, read_key, read_number, read_title
from .interactions import Vocabulary

CLASSES = 10
"""A column of numbers with more values than this is cut into this many classes."""
UNIQUE_TEXT_ROWS = 50
"""Above this many rows a column of all-different texts (a title, an id) is not used as a feature."""


@dataclasses.dataclass(frozen=True)
class Feature:
    """A feature of all users or all items."""

    name: str
    keys: list[str]
    """Meaning of the numbers from 1 up; 0 is none."""
    values: Array
    """Numbers [rows of the vocabulary, width], filled up with 0; row 0 is the unknown id."""
    bounds: tuple[float, ...] = ()
    """Of a column of numbers that was cut: where its classes begin and end, one more than there are classes."""

    @functools.cached_property
    def _known(self) -> Vocabulary:
        return Vocabulary(self.keys)

    def find(self, texts: Sequence[str]) -> list[int]:
        """Returns the numbers of values, without those that have none."""
        if not self.bounds:
            return [number for number in map(self._known.find, texts) if number]
        values = [value for value in map(read_number, texts) if value is not None]
        return [1 + int(i) for i in np.searchsorted(self.bounds[1:-1], values)]

    def describe(self, rows: Mapping[int, Sequence[str]], size: int) -> "Feature":
        """Returns the same feature of other ids.

        Args:
            rows: values by the number of an id.
            size: how many numbers there are.
        """
        found = {row: self.find(texts) for row, texts in rows.items()}
        values = np.zeros((size, max(1, *map(len, found.values())) if found else 1), np.int32)
        for row, numbers in found.items():
            values[row, : len(numbers)] = numbers
        return dataclasses.replace(self, values=values)


class Table(NamedTuple):
    """Titles and features of all users or all items."""

    titles: list[str]
    """One for each number of the vocabulary; the id itself if it has no title."""
    features: list[Feature]


Sides = tuple[Sequence[Feature], Sequence[Feature]]
"""Features of users and of items."""


def read_table(
    path: Path,
    key_column: str,
    title_column: str | None,
    vocabulary: Vocabulary,
    on_bad_row: OnBadRow,
    form: Format | None = None,
    *,
    add: bool = False,
    like: Sequence[Feature] | None = None,
) -> Table:
    """Returns the features and titles in a file.

    A cell holds several values if it is a list, a text with |, or declared so as RecBole does it. Numbers with many
    values are cut at their deciles.

    Args:
        path: of a file of rows.
        key_column: the ids. Each other column but the title is a feature.
        title_column: what is shown for an id; `None`, and an empty cell, show the id.
        vocabulary: the ids that count.
        on_bad_row: what to do about rows that cannot be used.
        form: how the file is written.
        add: whether other ids are added to the vocabulary; if not, their rows are left out.
        like: the features to read, with their classes; `None` makes them from the columns.

    Raises:
        DataError: the file is missing, of another kind, lacks the ids, holds a bad row or none that counts.
    """
    before = len(vocabulary)
    shown: dict[int, str] = {}
    names: dict[str, None] = {}
    found: dict[int, dict[str, list[str]]] = {}

    def convert(record: Mapping[str, Any]) -> None:
        names.update(dict.fromkeys(record))
        key = read_key(record.get(key_column), key_column)
        number = vocabulary.find(key)
        if not number and not add:
            return
        if number in found:
            raise FlawError("repeated id", f" {reprlib.repr(key)}")
        title = "" if title_column is None else read_title(record.get(title_column), title_column)
        cells = {
            name: read_cell(value, name) for name, value in record.items() if name not in (key_column, title_column)
        }
        number = number or vocabulary.number(key)
        shown[number], found[number] = title or key, cells

    advice = f"Give the ids the name that they have among the interactions, {key_column!r}."
    for _ in good_rows(path, convert, {key_column: advice}, on_bad_row, form):
        pass
    if not any(number < before for number in found):
        raise DataError(f"{path.name}: no id in {key_column!r} is among the interactions. Write them alike.")
    if title_column is not None and title_column not in names:
        _print_note(path, f"no column {title_column!r}, ids are shown instead. Set it with --title-column")
    titles = [shown.get(number, key) for number, key in enumerate(["", *vocabulary.keys])]
    wanted = [name for name in names if name not in (key_column, title_column)]
    features = []
    for name in wanted if like is None else [feature.name for feature in like if _is_there(path, feature.name, names)]:
        cells = {number: row[name] for number, row in found.items() if row.get(name)}
        plain = _find_classes(path, name, cells) if like is None else next(f for f in like if f.name == name)
        features += [] if plain is None else [plain.describe(cells, len(vocabulary))]
    return Table(titles, features)


def _is_there(path: Path, name: str, names: Mapping[str, None]) -> bool:
    if name not in names:
        _print_note(path, f"no column {name!r}, which is a feature of the model: new ids have none")
    return name in names


def _print_note(path: Path, text: str) -> None:
    print(f"data: {path.name}: {text}.", file=sys.stderr)


def _find_classes(path: Path, name: str, cells: Mapping[int, list[str]]) -> Feature | None:
    """Returns a column as a feature of no ids yet, or `None` and says so if it tells nothing.

    Args:
        path: of the file.
        name: of the column.
        cells: values of a row by the number of its id; no row is empty.
    """
    every = [value for values in cells.values() for value in values]
    if not every:
        _print_note(path, f"the column {name!r} is left out: it is empty")
        return None
    nobody, numbers = np.zeros((0, 1), np.int32), [read_number(value) for value in every]
    if len(every) == len(cells) and None not in numbers:
        if len(set(numbers)) > CLASSES:
            bounds = _cut(np.array(numbers, np.float64))
            keys = [f"{float(f'{a:.10g}')} to {float(f'{b:.10g}')}" for a, b in itertools.pairwise(bounds)]
            return Feature(name, keys, nobody, bounds)
    elif len(cells) > UNIQUE_TEXT_ROWS and len(set(every)) == len(every):
        _print_note(path, f"the column {name!r} is left out: its {len(every)} values all differ")
        return None
    return Feature(name, list(dict.fromkeys(every)), nobody)


def _cut(numbers: Array) -> tuple[float, ...]:
    """Returns the least number, the deciles between which there are numbers, and the largest one."""
    edges = np.unique(np.quantile(numbers, np.arange(1, CLASSES) / CLASSES))
    edges = edges[edges < numbers.max()]  # deciles that are equal, or the largest number, bound no class
    edges = edges[np.isin(np.arange(len(edges)), np.searchsorted(edges, numbers))]
    return tuple(map(float, (numbers.min(), *edges, numbers.max())))


def move_rows(table: Table, like: Sequence[Feature], numbers: Array, known: Vocabulary) -> Table:
    """Returns titles and features for the numbers of another vocabulary.

    Args:
        table: what is known.
        like: the features that are wanted; those that the table has not read as these have no values.
        numbers: of the rows in the other vocabulary.
        known: the other vocabulary.
    """
    titles = ["", *known.keys]
    for number, title in zip(numbers, table.titles, strict=True):
        titles[number] = title
    features = []
    for feature in like:
        found = [f.values for f in table.features if (f.name, f.keys) == (feature.name, feature.keys)]
        values = np.zeros((len(known), found[0].shape[1] if found else 1), np.int32)
        if found:
            values[numbers] = found[0]
        features.append(dataclasses.replace(feature, values=values))
    return Table(titles, features)
