"""Interactions of users with items, from files of rows."""

import array
import dataclasses
import reprlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ...readers.formats import Format
from ...readers.records import FlawError, OnBadRow
from ...readers.rows import good_rows
from ...run.batches import Array
from .cells import read_key, read_label, read_time


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


def renumber(whole: Interactions, users: Vocabulary, items: Vocabulary) -> Interactions:
    """Returns the interactions with the numbers of other vocabularies, to which ids that they lack are added."""
    user = np.array([0, *map(users.number, whole.users.keys)], np.int32)[whole.user]
    item = np.array([0, *map(items.number, whole.items.keys)], np.int32)[whole.item]
    return Interactions(users, items, user, item, whole.label, whole.time, whole.source)


def in_order(whole: Interactions) -> Array:
    """Returns the rows from the first to the last."""
    return np.arange(len(whole)) if whole.time is None else np.argsort(whole.time, kind="stable")


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
        user, item = read_key(record.get(user_name), user_name), read_key(record.get(item_name), item_name)
        label = 0.0 if label_name is None else read_label(record.get(label_name), label_name)
        time = 0.0 if time_name is None else read_time(record.get(time_name), time_name, time_format)
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
