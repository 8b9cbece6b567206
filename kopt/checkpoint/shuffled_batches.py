"""Batches in an order that follows from a seed and the number of the epoch."""

from typing import Any

import keras
import numpy as np


class ShuffledBatches(keras.utils.PyDataset):
    """Batches of arrays in memory, shuffled anew in each epoch, in an order that follows from seed and epoch alone.

    `fit(shuffle=True)` draws the order from a generator whose state no file can hold. Give this as `data` to
    `Checkpoint`, which tells it the epoch.

    Args:
        x: array, or a list or dictionary of arrays, with one row an example.
        y: targets, likewise; None for none.
        sample_weight: weights of the examples; None for none.
        batch_size: ≥ 1; the last batch of an epoch may be smaller.
        seed: ≥ 0, chooses the orders.

    Raises:
        ValueError: arrays of different lengths, or a number out of range.
    """

    def __init__(
        self, x: Any, y: Any = None, sample_weight: Any = None, *, batch_size: int = 32, seed: int = 0
    ) -> None:
        super().__init__()
        parts = (part for part in (x, y, sample_weight) if part is not None)
        self._data = tuple(keras.tree.map_structure(np.asarray, part) for part in parts)
        lengths = {len(array) for array in keras.tree.flatten(self._data)}
        if len(lengths) != 1 or 0 in lengths:
            raise ValueError(f"ShuffledBatches: arrays of one length, not empty. Received: {sorted(lengths)}")
        if batch_size < 1 or seed < 0:
            raise ValueError(f"ShuffledBatches: batch_size ≥ 1 and seed ≥ 0. Received: {batch_size} and {seed}")
        if y is None and sample_weight is not None:
            raise ValueError("ShuffledBatches: sample_weight needs y.")
        self._examples, self._batch_size, self._seed = lengths.pop(), batch_size, seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Takes the order of an epoch, 0, 1, ..."""
        self._order = np.random.default_rng((self._seed, epoch)).permutation(self._examples)

    @property
    def num_batches(self) -> int:
        """Returns the number of batches in an epoch."""
        return -(-self._examples // self._batch_size)

    def __len__(self) -> int:
        return self.num_batches

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        rows = self._order[index * self._batch_size : (index + 1) * self._batch_size]
        batch: tuple[Any, ...] = keras.tree.map_structure(lambda array: array[rows], self._data)
        return batch
