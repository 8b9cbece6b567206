"""Who chose what: interactions from a file or made, split for a test, in batches and sequences."""

import dataclasses
import itertools
import sys
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import tyro

from recipes import _run
from recipes._cli import DataError, UsageError
from recipes._interactions import Columns, Feature, Interactions, Table, Vocabulary, read_interactions, read_table
from recipes._rows import OnBadRow
from recipes._run import OptionalPath

Word = Annotated[str | None, tyro.conf.arg(metavar="NAME")]
Number = Annotated[float | None, tyro.conf.arg(metavar="FLOAT")]
Array = np.ndarray[Any, Any]
Split = Literal["random", "temporal", "leave-one-out"]
NOISE = 0.5
"""Standard deviation of what no model can know of a made rating: its RMSE at best."""


@dataclasses.dataclass(frozen=True)
class PairFlags:
    """What is learnt from; without a file ratings are made, whose best reachable error is known."""

    interactions: OptionalPath = None
    """CSV, TSV, JSONL or Parquet with a user and an item in each row."""
    user_column: str = "user"
    """Column of the user, in --users-file too."""
    item_column: str = "item"
    """Column of the item, in --items-file too."""
    label_column: Word = None
    """Column of the rating, a number; ratings need it."""
    time_column: Word = None
    """Column of the time, seconds or ISO 8601; None takes the rows to be in order."""
    items_file: OptionalPath = None
    """Features of the items: a row for each, cells of several values divided by |."""
    users_file: OptionalPath = None
    """Features of the users."""
    title_column: str = "title"
    """Column of --items-file that is shown for an item; it is no feature."""
    on_bad_row: OnBadRow = "error"
    """A row that cannot be used ends the run, or is left out and counted."""
    split: Annotated[Split | None, tyro.conf.arg(metavar="{random,temporal,leave-one-out}")] = None
    """What is tested on: interactions drawn by the seed, the last of all, or the last of each user. None is random for
    ratings and leave-one-out else."""
    test_share: float = 0.1
    """Share of the interactions to test on, for random and temporal."""
    min_interactions: int = 1
    """Leave out users and items with fewer interactions."""
    implicit_threshold: Number = None
    """Of labelled interactions, retrieval and sequential take those of at least this label; None takes all."""

    @property
    def columns(self) -> Columns:
        """Returns where the parts of an interaction stand."""
        return Columns(self.user_column, self.item_column, self.label_column, self.time_column)


class Data(NamedTuple):
    """What is learnt from and what is tested on."""

    train: Interactions
    test: Interactions
    users: Table
    items: Table
    floor: float | None
    """The best RMSE that can be reached, where it is known."""


def check(flags: PairFlags) -> None:
    """Checks the numbers that a type cannot.

    Raises:
        UsageError: one is out of range, or a file goes without another.
    """
    _run.at_least("--min-interactions", flags.min_interactions, 1)
    if not 0 < flags.test_share < 1:
        raise UsageError(f"--test-share {flags.test_share}: expected more than 0 and less than 1.")
    for flag in ("items_file", "users_file", "label_column", "time_column"):
        if flags.interactions is None and getattr(flags, flag) is not None:
            raise UsageError(f"--{flag.replace('_', '-')}: give --interactions too.")
    if flags.implicit_threshold is not None and flags.interactions is not None and flags.label_column is None:
        raise UsageError("--implicit-threshold: give --label-column too.")


def load(flags: PairFlags, rated: bool, seed: int, users: Vocabulary | None = None, items: Any = None) -> Data:
    """Returns the interactions, split.

    Args:
        flags: where they are.
        rated: whether ratings are learnt, so that every label counts; else choices, by the threshold.
        seed: of a random split.
        users: the users that there may be; None takes those of the file.
        items: the same for items.

    Raises:
        DataError: something cannot be read, or too little is left.
    """
    if flags.interactions is None:
        whole, user_table, item_table = made()
    else:
        whole = read_interactions(flags.interactions, flags.columns, flags.on_bad_row, users, items)
        user_table = side(flags.users_file, flags.user_column, None, whole.users, flags.on_bad_row)
        item_table = side(flags.items_file, flags.item_column, flags.title_column, whole.items, flags.on_bad_row)
    if not rated and flags.implicit_threshold is not None and whole.label is not None:
        whole = whole.take(whole.label >= flags.implicit_threshold)
    whole = frequent(whole, flags.min_interactions)
    test = chosen(whole, flags.split or ("random" if rated else "leave-one-out"), flags.test_share, seed)
    if not test.any() or test.all():
        raise DataError(
            f"{whole.source}: {len(whole)} interactions are left, of which {int(test.sum())} for the test. "
            "Give more, or lower --min-interactions or --implicit-threshold."
        )
    floor = NOISE if rated and flags.interactions is None else None
    return Data(whole.take(~test), whole.take(test), user_table, item_table, floor)


def side(path: Any, key: str, title: str | None, vocabulary: Vocabulary, on_bad_row: OnBadRow) -> Table:
    """Returns the features in a file, or none where there is none."""
    if path is None:
        return Table(["", *vocabulary.keys], [])
    return read_table(path, key, title, vocabulary, on_bad_row)


def frequent(whole: Interactions, least: int) -> Interactions:
    """Returns the interactions of users and items that have enough of them, each counted among the others."""
    while least > 1:
        keep = np.bincount(whole.user)[whole.user] >= least
        keep &= np.bincount(whole.item)[whole.item] >= least
        if keep.all() or not keep.any():
            return whole.take(keep)
        whole = whole.take(keep)
    return whole


def chosen(whole: Interactions, split: Split, share: float, seed: int) -> Array:
    """Returns which interactions [n] are for the test."""
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
        test[rows[last & ~first]] = True  # one interaction alone is learnt from
    return test


def in_order(whole: Interactions) -> Array:
    """Returns the rows from the first to the last."""
    return np.arange(len(whole)) if whole.time is None else np.argsort(whole.time, kind="stable")


def by_user(some: Interactions) -> tuple[Array, Array]:
    """Returns the items of each user in order, one after the other, and where each user begins [users + 1]."""
    rows = in_order(some)
    rows = rows[np.argsort(some.user[rows], kind="stable")]
    return some.item[rows], np.searchsorted(some.user[rows], np.arange(len(some.users) + 1))


def windows(some: Interactions, length: int) -> dict[str, Array]:
    """Returns the "history" of users, cut into sequences, and the "item" that comes next after each.

    Both are [n, length] and 0 filled up; "user" is [n].
    """
    items, begin = by_user(some)
    histories, targets, users = [], [], []
    for user, (start, end) in enumerate(itertools.pairwise(begin)):
        for stop in range(end, start + 1, -length):
            part = items[max(start, stop - length - 1) : stop]
            histories.append(np.pad(part[:-1], (0, length + 1 - len(part))))
            targets.append(np.pad(part[1:], (0, length + 1 - len(part))))
            users.append(user)
    found = {"history": histories, "item": targets, "user": users}
    return {name: np.array(part, np.int32) for name, part in found.items()}


def latest(items: Array, length: int) -> tuple[Array, int]:
    """Returns the last items of one user, 0 filled up, and where the last one stands."""
    part = items[-length:]
    return np.pad(part, (0, length - len(part))), max(len(part) - 1, 0)


def batches(x: Mapping[str, Array], y: Array, batch_size: int, shuffle_seed: int | None = None) -> Any:
    """Returns a `tf.data.Dataset` of batches, in a new order in each epoch if there is a seed."""
    import tensorflow as tf

    epoch = iter(range(sys.maxsize))

    def generate() -> Iterator[Array]:
        order = np.arange(len(y))
        if shuffle_seed is not None:
            order = np.random.default_rng([shuffle_seed, next(epoch)]).permutation(len(y))
        for start in range(0, len(y), batch_size):
            yield order[start : start + batch_size]

    columns, targets = {name: tf.constant(part) for name, part in x.items()}, tf.constant(y)
    rows = tf.data.Dataset.from_generator(generate, output_signature=tf.TensorSpec((None,), tf.int64))
    dataset = rows.map(lambda i: ({k: tf.gather(v, i) for k, v in columns.items()}, tf.gather(targets, i)))
    size = -(-len(y) // batch_size)
    return dataset.apply(tf.data.experimental.assert_cardinality(size)).prefetch(tf.data.AUTOTUNE)


def made(
    users: int = 1000, items: int = 500, count: int = 200_000, factors: int = 4
) -> tuple[Interactions, Table, Table]:
    """Returns made ratings: products of latent factors, with biases and noise, of items of skewed popularity.

    The factors of an item are partly told by its two features. Users choose rather what they like.
    """
    rng = np.random.default_rng(0)
    vocabularies = Vocabulary(f"user {i}" for i in range(users)), Vocabulary(f"item {i}" for i in range(items))
    kind, era = rng.integers(0, 8, items), rng.integers(0, 5, items)
    q = rng.normal(size=(8, factors))[kind] + 0.5 * rng.normal(size=(items, factors))
    p = rng.normal(size=(users, factors)) / factors**0.5
    liked = p @ q.T + 0.4 * rng.normal(size=(users, 1)) + 0.4 * rng.normal(size=(1, items)) + 0.2 * era
    popularity = 1 / np.arange(1, items + 1) ** 0.6
    odds = rng.permutation(popularity)[None] * np.exp(0.7 * liked)
    picked = np.argsort(-np.log(odds) + np.log(-np.log(rng.uniform(size=odds.shape))), 1)[:, : count // users]
    user, item = np.repeat(np.arange(users), picked.shape[1]), picked.ravel()
    label = 3 + liked[user, item] + NOISE * rng.normal(size=len(user))
    rows = rng.permutation(len(user))
    who, what = ((part[rows] + 1).astype(np.int32) for part in (user, item))
    time = np.arange(len(rows), dtype=np.float64)
    whole = Interactions(*vocabularies, who, what, label[rows].astype(np.float32), time, "made ratings")
    features = [
        Feature("kind", [f"kind {i}" for i in range(8)], np.insert(kind + 1, 0, 0)[:, None].astype(np.int32)),
        Feature("era", [f"era {i}" for i in range(5)], np.insert(era + 1, 0, 0)[:, None].astype(np.int32)),
    ]
    titles = [f"Item {i}, of kind {k} and era {e}" for i, (k, e) in enumerate(zip(kind, era, strict=True))]
    return whole, Table(["", *vocabularies[0].keys], []), Table(["", *titles], features)
