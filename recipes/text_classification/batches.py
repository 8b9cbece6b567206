"""Texts as token ids, in batches of texts of similar length."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..run.batches import Array, EpochOrder, in_epochs, told_by
from ..run.batches import class_weights as class_weights
from ..run.scores import predict_probabilities

STEP = 8
"""Batches are padded to a multiple of this, so that XLA compiles few shapes."""
POOL = 64
"""Number of batches that are sorted by length together: more means less padding, fewer a more random order."""


class Encoded(NamedTuple):
    """Texts as token ids."""

    ids: list[Array]
    segments: list[Array] | None
    """For each token, 1 if it is in the second text of a pair, else 0; `None` if the model does not take them."""
    limit: int
    """Largest number of tokens, which padding does not exceed."""

    @property
    def lengths(self) -> Array:
        """Returns the number of tokens of each."""
        return np.array([len(ids) for ids in self.ids], np.int64)


Encode = Callable[[Sequence[str], Sequence[str] | None, int], Encoded]
"""Function of texts, their second texts, and the largest number of tokens."""

Read = Callable[[Any, Any, int], Array]


def plan(lengths: Array, batch_size: int, rng: np.random.Generator | None) -> list[Array]:
    """Returns which examples make each batch: every example once, those of similar length together.

    Args:
        lengths: tokens of each example.
        batch_size: examples a batch; one batch may be smaller.
        rng: what draws the order; `None` goes from the shortest to the longest.
    """
    if rng is None:
        order = np.argsort(lengths, kind="stable")
        return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    order, chunk, found = rng.permutation(len(lengths)), POOL * batch_size, list[Array]()
    for i in range(0, len(order), chunk):
        pool = order[i : i + chunk]
        pool = pool[np.argsort(lengths[pool] // STEP, kind="stable")]
        found += [pool[j : j + batch_size] for j in range(0, len(pool), batch_size)]
    found = [found[i] for i in rng.permutation(len(found))]
    # The smaller batch is the last one, as optimizers that accumulate all examples expect.
    return sorted(found, key=len, reverse=True)


def pad(encoded: Encoded, rows: Array) -> dict[str, Array]:
    """Returns some of the texts as the inputs of a model, padded to the longest, rounded up to a multiple of STEP."""
    width = min(-(-max(len(encoded.ids[i]) for i in rows) // STEP) * STEP, encoded.limit)
    inputs = {name: np.zeros((len(rows), width), np.int32) for name in ("token_ids", "padding_mask")}
    if encoded.segments is not None:
        inputs["segment_ids"] = np.zeros((len(rows), width), np.int32)
    for at, i in enumerate(rows):
        n = len(encoded.ids[i])
        inputs["token_ids"][at, :n], inputs["padding_mask"][at, :n] = encoded.ids[i], 1
        if encoded.segments is not None:
            inputs["segment_ids"][at, :n] = encoded.segments[i]
    return inputs


def batches(
    encoded: Encoded,
    targets: Array | None,
    batch_size: int,
    shuffle_seed: int | None = None,
    weights: Array | None = None,
) -> Any:
    """Returns a `tf.data.Dataset` of batches of texts of similar length.

    Args:
        encoded: the texts.
        targets: [n, class]; `None` gives the inputs alone.
        batch_size: examples a batch.
        shuffle_seed: seed of a new order in each epoch; `None` goes from the shortest to the longest text.
        weights: how much each example counts.
    """
    import tensorflow as tf

    lengths, order = encoded.lengths, EpochOrder(shuffle_seed)

    def generate(rng: np.random.Generator | None) -> Iterator[Any]:
        for rows in plan(lengths, batch_size, rng):
            rest = [part[rows] for part in (targets, weights) if part is not None]
            yield (pad(encoded, rows), *rest)

    names = ["token_ids", "padding_mask"] + ([] if encoded.segments is None else ["segment_ids"])
    signature: list[Any] = [{name: tf.TensorSpec((None, None), tf.int32) for name in names}]
    signature += [tf.TensorSpec((None, *p.shape[1:]), tf.float32) for p in (targets, weights) if p is not None]
    dataset = in_epochs(order, generate, tuple(signature), -(-len(lengths) // batch_size))
    return told_by(order, dataset.prefetch(2))


def predict(
    model: Any, encoded: Encoded, outputs: int, batch_size: int = 64, read: Read = predict_probabilities
) -> Array:
    """Returns [example, output], in the order of the texts.

    Args:
        model: with that many outputs.
        encoded: the texts.
        outputs: how many there are.
        batch_size: texts a batch.
        read: function of the model, batches and the number of outputs, as `predict_probabilities`.

    Raises:
        ValueError: the model does not give that many outputs.
    """
    order = np.concatenate(plan(encoded.lengths, batch_size, None))
    found = read(model, batches(encoded, None, batch_size), outputs)
    in_order = np.empty_like(found)
    in_order[order] = found
    return in_order
