"""Interactions in order, by user, in sequences, and in batches."""

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from ..run.batches import Array, EpochOrder, in_epochs, told_by
from .data.interactions import Interactions, in_order


def by_user(chosen: Interactions) -> tuple[Array, Array]:
    """Returns the items of all users, sorted by user and time, and where each user begins [users + 1]."""
    rows = in_order(chosen)
    rows = rows[np.argsort(chosen.user[rows], kind="stable")]
    return chosen.item[rows], np.searchsorted(chosen.user[rows], np.arange(len(chosen.users) + 1))


def windows(chosen: Interactions, length: int) -> dict[str, Array]:
    """Returns the "history" of users, cut into sequences, and the "item" that comes next after each place.

    Both are [n, length], padded with 0; "user" is [n].
    """
    items, begin = by_user(chosen)
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
    """Returns the last items of one user, padded with 0, and the position of the very last one."""
    part = items[-length:]
    return np.pad(part, (0, length - len(part))), max(len(part) - 1, 0)


def batches(x: Mapping[str, Array], y: Array, batch_size: int, shuffle_seed: int | None = None) -> Any:
    """Returns a `tf.data.Dataset` of batches, in a new random order in each epoch if there is a seed."""
    import tensorflow as tf

    order = EpochOrder(shuffle_seed)

    def plan(rng: np.random.Generator | None) -> Iterator[Array]:
        rows = np.arange(len(y)) if rng is None else rng.permutation(len(y))
        for start in range(0, len(y), batch_size):
            yield rows[start : start + batch_size]

    columns, targets = {name: tf.constant(part) for name, part in x.items()}, tf.constant(y)
    rows = in_epochs(order, plan, tf.TensorSpec((None,), tf.int64), -(-len(y) // batch_size))
    dataset = rows.map(lambda i: ({k: tf.gather(v, i) for k, v in columns.items()}, tf.gather(targets, i)))
    return told_by(order, dataset.prefetch(tf.data.AUTOTUNE))
