"""Lists of what to recommend: for users that a command names or a file holds, printed or written to a file."""

import contextlib
import csv
import dataclasses
import itertools
import json
import reprlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from ..readers.formats import Format
from ..readers.records import OnBadRow
from ..readers.rows import good_rows
from ..run.batches import Array
from ..run.errors import DataError, UsageError
from ..run.folder import atomic
from .batches import by_user
from .data.cells import read_cell, read_key
from .flags import Train, Unknown
from .ranking import best
from .saved_run import Saved
from .scoring import Scorer

SCORES = 4_000_000
"""Scores that are held in memory at a time."""
SHOWN = 5
"""Users that a message names."""
FIELDS = ("user", "rank", "item", "title", "score", "basis")
"""Columns of the files that are written."""
Basis = Literal["history", "features", "popularity"]
SUFFIXES = (".csv", ".jsonl")


class Asked(NamedTuple):
    """A user to recommend to."""

    key: str
    features: list[list[int]]
    """Numbers of classes, for each feature of the model; the file may say nothing about them."""


class Listed(NamedTuple):
    """What is recommended to a user."""

    key: str
    basis: Basis
    """What the scores are from; those of popularity say how often an item was chosen."""
    items: Array
    """Numbers, the best first."""
    scores: Array


def read_users(path: Path, column: str, saved: Saved, on_bad_row: OnBadRow, form: Format) -> Iterator[Asked]:
    """Returns the users in a file, as they are read.

    Args:
        path: of a file of rows.
        column: the ids. Columns that are called as a feature of the model give features.
        saved: whose features count.
        on_bad_row: what to do about rows that cannot be used.
        form: how the file is written.

    Raises:
        DataError: the file is missing, of another kind, lacks the column, holds a bad row or no good one.
    """
    features = saved.features[0]

    def convert(record: Mapping[str, Any]) -> Asked:
        key = read_key(record.get(column), column)
        return Asked(key, [f.find(read_cell(record.get(f.name), f.name)) for f in features])

    advice = "It is called as in the training, by --user-column; --columns names the columns of a file without names."
    return (asked for _, asked in good_rows(path, convert, {column: advice}, on_bad_row, form))


def once(asked: Iterable[Asked]) -> Iterator[Asked]:
    """Yields each user once: the first counts."""
    met = set[str]()
    for user in asked:
        if user.key not in met:
            met.add(user.key)
            yield user


class Lists:
    """Makes lists of items, the best first.

    Args:
        saved: the model, and the interactions that it was trained on.
        flags: of the run.
        k: how many items.
        exclude_seen: whether items that the user has chosen are left out.
    """

    def __init__(self, saved: Saved, flags: Train, k: int, exclude_seen: bool) -> None:
        self.saved, self.scorer, self.k, self.exclude_seen = saved, Scorer(saved, flags), k, exclude_seen
        self._seen, self._begin = by_user(saved.train)
        # Of an item without interactions a model that reads no features knows nothing.
        self.listed = (saved.popularity > 0) | bool(saved.features[1])
        """Mask [items] of those that may be in a list."""
        self.listed[0] = False
        self._stored = [np.asarray(values) for values in saved.model.users.values] if saved.features[0] else []

    def bases(self) -> list[Basis]:
        """Returns what the scores of each number of a user are from; 0 is unknown."""
        known = self._begin[1:] > self._begin[:-1]
        described = np.zeros(len(known), bool)
        for values in self._stored:
            described |= values.any(1)
        found: list[Basis] = ["popularity"]
        for seen, told in zip(known[1:], described[1:], strict=True):
            found.append("history" if seen else "features" if told else "popularity")
        return found

    def seen(self, number: int) -> Array:
        """Returns the items that a user has chosen."""
        return self._seen[self._begin[number] : self._begin[number + 1]]

    def make(self, asked: Iterable[Asked]) -> Iterator[Listed]:
        """Yields a list for each user, for as many at a time as memory is meant to hold."""
        users, at_once = iter(asked), max(1, SCORES // len(self.saved.items))
        while some := list(itertools.islice(users, at_once)):
            yield from self._list(some)

    def _list(self, asked: Sequence[Asked]) -> Iterator[Listed]:
        numbers = np.array([self.saved.users.find(user.key) for user in asked], np.int32)
        known = (self._begin[numbers + 1] > self._begin[numbers]) & (numbers > 0)
        values = [self._values(user, number) for user, number in zip(asked, numbers, strict=True)]
        described = ~known & np.array([any(map(any, each)) for each in values], bool)
        scores = np.tile(self.saved.popularity, (len(asked), 1))
        if known.any():
            scores[known] = self.scorer(numbers[known])
        if described.any():
            chosen = [values[row] for row in np.flatnonzero(described)]
            scores[described] = self.scorer.by_features([_pad(column) for column in zip(*chosen, strict=True)])
        scores[:, ~self.listed] = -np.inf
        for row, (user, number) in enumerate(zip(asked, numbers, strict=True)):
            if self.exclude_seen and number:
                scores[row, self.seen(number)] = -np.inf
            items = best(scores[row], self.k)
            basis: Basis = "history" if known[row] else "features" if described[row] else "popularity"
            found = scores[row, items]
            yield Listed(user.key, basis, items, found if basis == "popularity" else self.scorer.limit(found))

    def _values(self, user: Asked, number: int) -> list[list[int]]:
        """Returns the features of a user: those that the file gives, or else those that the model knows."""
        given = user.features or [[] for _ in self._stored]
        return [
            own or [n for n in stored[number].tolist() if n] for own, stored in zip(given, self._stored, strict=True)
        ]


def _pad(rows: Sequence[list[int]]) -> Array:
    values = np.zeros((len(rows), max(1, *map(len, rows))), np.int32)
    for row, numbers in enumerate(rows):
        values[row, : len(numbers)] = numbers
    return values


@dataclasses.dataclass
class Strangers:
    """Users of whom nothing is known.

    Args:
        policy: recommend what is popular to them, leave them out, or raise an error.
    """

    policy: Unknown
    count: int = 0
    names: list[str] = dataclasses.field(default_factory=list)

    def sort_out(self, lists: Iterable[Listed]) -> Iterator[Listed]:
        """Yields the lists that are wanted.

        Raises:
            DataError: a user is unknown, and that is an error.
        """
        for listed in lists:
            if listed.basis == "popularity":
                self.count += 1
                if self.count <= SHOWN:
                    self.names.append(reprlib.repr(listed.key))
                if self.policy == "error":
                    raise DataError(f"user {listed.key!r} is unknown. Leave it out, or pass --unknown skip or popular.")
                if self.policy == "skip":
                    continue
            yield listed

    def report(self) -> None:
        """Prints how many there were, if any, and names the first."""
        if self.count:
            names = ", ".join(self.names) + (", ..." if self.count > SHOWN else "")
            what = "left out" if self.policy == "skip" else "given the most popular items"
            many = f"{self.count} users are unknown" if self.count > 1 else "1 user is unknown"
            print(f"{many}, and {what}: {names}.", file=sys.stderr)


def check_output(path: Path, others: Iterable[Path | None]) -> None:
    """Checks that lists can be written to a file.

    Raises:
        UsageError: its name has another ending, its folder is not there, or it is one of the files that are read.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"--output {path}: expected a file that ends in {' or '.join(SUFFIXES)}.")
    if path.is_dir() or not path.parent.is_dir():
        raise UsageError(f"--output {path}: {'is a folder' if path.is_dir() else f'no folder {path.parent}'}.")
    if any(other is not None and other.resolve() == path.resolve() for other in others):
        raise UsageError(f"--output {path}: is a file that is read. Choose another one.")


def write(path: Path, saved: Saved, lists: Iterable[Listed]) -> int:
    """Writes lists to a CSV or JSONL file, a row for each user and rank, and returns how many users there were.

    The file has its name when it is complete; one of that name gives way to it.

    Raises:
        UsageError: the file cannot be written.
    """
    count = 0
    with _said(path), atomic(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        put = _writer(file, path.suffix.lower())
        for listed in lists:
            count += 1
            for row in rows(saved, listed):
                put(row)
    return count


def rows(saved: Saved, listed: Listed) -> Iterator[dict[str, Any]]:
    """Yields a list row by row, by the names of the columns."""
    for rank, (item, score) in enumerate(zip(listed.items, listed.scores, strict=True), 1):
        number = float(f"{score:.7g}")
        values = (listed.key, rank, saved.items.keys[item - 1], saved.titles[item], number, listed.basis)
        yield dict(zip(FIELDS, values, strict=True))


def _writer(file: Any, suffix: str) -> Callable[[Mapping[str, Any]], Any]:
    if suffix == ".jsonl":
        return lambda row: file.write(json.dumps(row, ensure_ascii=False) + "\n")
    table = csv.DictWriter(file, FIELDS)
    table.writeheader()
    return table.writerow


@contextlib.contextmanager
def _said(path: Path) -> Iterator[None]:
    try:
        yield
    except PermissionError as error:
        raise UsageError(f"--output {path}: {error.strerror}.") from error
