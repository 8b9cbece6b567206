"""Scores of all items for users: what rankings are measured on, what is recommended, and what is exported."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from ..run.batches import Array
from . import growth
from .batches import by_user, latest
from .flags import Train
from .saved_run import Saved

BLOCK = 8192
"""Items whose vectors are computed together."""


class Scorer:
    """A function of numbers of users [n] that gives the scores [n, items] of all items.

    Args:
        saved: the model, and the interactions that it looks back on.
        flags: of the run.
    """

    def __init__(self, saved: Saved, flags: Train) -> None:
        self.saved, self.model, self.length = saved, saved.model, flags.choose.history
        self.scale = saved.model.scale if flags.choose.task == "rating" else None
        """Lowest and highest rating."""
        self.vectors: Array | None = None
        """Of all items [items, dim], where scores are products."""
        if self.model.by_product:
            items = np.arange(len(saved.items), dtype=np.int32)
            blocks = (self.model.candidates(items[at : at + BLOCK]) for at in range(0, len(items), BLOCK))
            self.vectors = np.concatenate([keras.ops.convert_to_numpy(block).astype(np.float32) for block in blocks])
        if self.model.looks_back:
            self._chosen, self._begin = by_user(saved.train)

    def __call__(self, users: Array) -> Array:
        """Returns the scores [n, items] of numbers of users [n], ratings without the limits of their scale."""
        if self.vectors is not None:
            return np.asarray(self.queries(users) @ self.vectors.T)
        return np.stack([self._score_all(functools.partial(_repeat, user)) for user in users])

    def queries(self, users: Array) -> Array:
        """Returns the vectors [n, dim] of users, where scores are products."""
        return self._last({"user": users}, users)

    def by_features(self, values: Sequence[Array]) -> Array:
        """Returns the scores [n, items], as a call does, for users of whom nothing but the features is known.

        Args:
            values: numbers of classes for each feature, [n, width].
        """
        inputs = self.model.newcomers(values, self.bias)
        if self.vectors is not None:
            return np.asarray(self._last(inputs, np.zeros(len(values[0]), np.int32)) @ self.vectors.T)
        bias, *parts = (keras.ops.convert_to_numpy(part) for part in (inputs["bias"], *inputs["parts"]))

        def describe(row: int, n: int) -> dict[str, Any]:
            own, *rest = (np.repeat(part[row : row + 1], n, 0) for part in (bias, *parts))
            return {"bias": own, "parts": rest}

        return np.stack([self._score_all(functools.partial(describe, row)) for row in range(len(bias))])

    @functools.cached_property
    def bias(self) -> Array:
        """Returns what the features say about the bias of a user, [classes + 1]."""
        if self.scale is None:
            return np.zeros(1 + sum(bag.shape[0] for bag in self.model.users.bags))
        bias = keras.ops.convert_to_numpy(self.model.user_bias.embeddings)[:, 0].astype(np.float64)
        return growth.fit_bias(self.model.users, bias, np.unique(self.saved.train.user))

    def limit(self, scores: Array) -> Array:
        """Returns ratings within their scale, and other scores as they are."""
        return scores if self.scale is None else np.clip(scores, *np.array(self.scale, np.float32))

    def _last(self, inputs: dict[str, Any], users: Array) -> Array:
        """Returns the vectors [n, dim] of users after the last item that each has chosen."""
        if not self.model.looks_back:
            return np.asarray(keras.ops.convert_to_numpy(self.model.queries(inputs)), np.float32)
        last = [latest(self._chosen[self._begin[u] : self._begin[u + 1]], self.length) for u in users]
        states = self.model.queries(inputs | {"history": np.stack([history for history, _ in last])})
        places = np.array([place for _, place in last])
        return np.asarray(keras.ops.convert_to_numpy(states), np.float32)[np.arange(len(users)), places]

    def _score_all(self, describe: Callable[[int], dict[str, Any]]) -> Array:
        """Returns the scores [items] of all items for one user, whom `describe` gives as often as it is asked to."""
        items, found = np.arange(len(self.saved.items), dtype=np.int32), []
        for at in range(0, len(items), BLOCK):
            some = items[at : at + BLOCK]
            found.append(keras.ops.convert_to_numpy(self.model.score(describe(len(some)) | {"item": some})))
        return np.concatenate(found)


def _repeat(user: int, n: int) -> dict[str, Any]:
    return {"user": np.full(n, user, np.int32)}
