"""Users and items that a model has not learnt from: what it takes them for, and tables with rows for them."""

from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np

from kopt import peft

from ..run.batches import Array
from . import ranking
from .data.features import Table
from .data.interactions import Interactions, Vocabulary
from .models import Encoder, Rater, Recommender

STRENGTH = 10.0
"""Weights of features are shrunk as if so many more ids had them and the mean bias."""
BLOCK = 65_536
"""Rows whose features are looked at together."""


def fit_bias(encoder: Encoder, bias: Array, known: Array) -> Array:
    """Returns what a bias is where only the features are known: a ridge regression over the ids that are known.

    Args:
        encoder: of the users or the items.
        bias: of each number [size].
        known: numbers of those to learn from [n].

    Returns:
        The weights of all classes, and a last number that is added, [classes + 1].
    """
    mean, width = float(bias[known].mean()) if len(known) else 0.0, sum(bag.shape[0] for bag in encoder.bags)
    square, total, product = np.zeros((width, width)), np.zeros(width), np.zeros(width)
    for rows in _blocks(known):
        x = shares(encoder, rows)
        square, total, product = square + x.T @ x, total + x.sum(0), product + x.T @ (bias[rows] - mean)
    center = total / max(len(known), 1)
    weights = np.linalg.solve(square - np.outer(center, total) + STRENGTH * np.eye(width), product)
    return np.append(weights, mean - center @ weights)


def shares(encoder: Encoder, rows: Array) -> Array:
    """Returns the shares of the classes of all features [n, classes], in float64."""
    found = encoder.shares([np.asarray(values)[rows] for values in encoder.values])
    parts = [keras.ops.convert_to_numpy(part).astype(np.float64) for part in found]
    return np.concatenate(parts, 1) if parts else np.zeros((len(rows), 0))


def _blocks(rows: Array) -> Iterator[Array]:
    for start in range(0, len(rows), BLOCK):
        yield rows[start : start + BLOCK]


def guess_biases(model: Recommender, known: Sequence[Array], wanted: Sequence[Array]) -> None:
    """Sets the biases of users and items by their features, as `fit_bias` learns it from those that are known."""
    if not isinstance(model, Rater):
        return
    sides = ((model.users, model.user_bias), (model.items, model.item_bias))
    for (encoder, layer), learnt, rows in zip(sides, known, wanted, strict=True):
        bias = keras.ops.convert_to_numpy(layer.embeddings)[:, 0].astype(np.float64)
        weights = fit_bias(encoder, bias, learnt)
        for part in _blocks(rows):
            bias[part] = shares(encoder, part) @ weights[:-1] + weights[-1]
        layer.embeddings.assign(bias[:, None])


def begin_unseen(model: Recommender, part: Interactions, rows: Sequence[Array | None]) -> None:
    """Lets users and items without interactions begin as their features say: their own vectors are 0, and stay so.

    Args:
        model: that has not learnt yet.
        part: the interactions to learn from.
        rows: of the tables of users and of items, by number, where ids share them; `None` where each has its own.
    """
    sides = zip((model.users, model.items), seen(part), rows, strict=True)
    for encoder, mask, shared in sides:
        if not encoder.built:
            continue
        table = keras.ops.convert_to_numpy(encoder.table.embeddings)
        own = mask if shared is None else np.arange(len(table)) > 0
        encoder.table.embeddings.assign(np.where(own[:, None], table, 0))
        share_rows(encoder, mask, shared)
    settle_unseen(model, part)


def share_rows(encoder: Encoder, mask: Array, shared: Array | None) -> None:
    """Gives ids their rows of a shared table, and those that are not in the mask row 0, which no id learns."""
    if shared is not None and encoder.built and encoder.rows is not None:
        encoder.rows.assign(np.where(mask, shared, 0))


def settle_unseen(model: Recommender, part: Interactions) -> None:
    """Gives users and items without interactions the biases that their features say, as `Scorer` does for others."""
    masks = seen(part)
    guess_biases(model, [np.flatnonzero(mask) for mask in masks], [np.flatnonzero(~mask)[1:] for mask in masks])


def seen(part: Interactions) -> tuple[Array, Array]:
    """Returns which numbers of users and of items have interactions."""
    masks = np.zeros(len(part.users), bool), np.zeros(len(part.items), bool)
    for mask, ids in zip(masks, (part.user, part.item), strict=True):
        mask[ids] = True
    return masks


def grow(model: Recommender, users: tuple[Vocabulary, Table], items: tuple[Vocabulary, Table]) -> Any:
    """Returns a model with rows for new users and items, and what the model knows of the old ones.

    Adapters are merged. The vectors of new ids are 0, so that their features alone speak, and biases are what the
    features say.

    Args:
        model: with a row for each of the first numbers.
        users: all numbers of users, the old ones first, and their features.
        items: the same for items.
    """
    if peft.layer_status(model):
        model = peft.merge_and_unload(model)
    sides = ((model.users, *users), (model.items, *items))
    sizes = [encoder.config["size"] for encoder, _, _ in sides]
    if sizes == [len(known) for _, known, _ in sides]:
        return model
    config = model.get_config()
    for name, (_, known, table) in zip(("users", "items"), sides, strict=True):
        widths = [f.values.shape[1] for f in table.features]
        features = [[n, max(width, w)] for (n, width), w in zip(config[name]["features"], widths, strict=True)]
        config[name] = config[name] | {"size": len(known), "features": features}
    grown = type(model)(**config)
    grown.build()
    for old, new in zip(model.weights, grown.weights, strict=True):
        before = keras.ops.convert_to_numpy(old)
        value = np.zeros(new.shape, before.dtype)
        value[tuple(slice(0, size) for size in old.shape)] = before
        new.assign(value)
    for encoder, size, (_, _, table) in zip((grown.users, grown.items), sizes, sides, strict=True):
        if not encoder.built:
            continue
        for variable, feature in zip(encoder.values, table.features, strict=True):
            value = keras.ops.convert_to_numpy(variable).copy()
            value[size:, : feature.values.shape[1]] = feature.values[size:]
            variable.assign(value)
    old_rows = [np.arange(1, size) for size in sizes]
    new_rows = [np.arange(size, len(known)) for size, (_, known, _) in zip(sizes, sides, strict=True)]
    guess_biases(grown, old_rows, new_rows)
    return grown


def settle_biases(model: Any, part: Interactions, rated: Array, old: tuple[int, int]) -> None:
    """Adds to the biases of new users and items what the model rates them too low, shrunk as at the start.

    Args:
        model: a rater.
        part: ratings of new and old users and items.
        rated: what the model predicts for them.
        old: how many numbers of users and of items are old.
    """
    free = (np.arange(len(part.users)) >= old[0], np.arange(len(part.items)) >= old[1])
    _, user, item = ranking.fit_biases(part, start=rated, free=free)
    for layer, change in ((model.user_bias, user), (model.item_bias, item)):
        layer.embeddings.assign_add(change[:, None])
