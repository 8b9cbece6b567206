"""What other programs take from a run: vectors with their ids, and a SavedModel that recommends, without this code."""

import csv
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from ..run.batches import Array
from .data.features import Feature
from .flags import Train
from .lists import Lists
from .saved_run import Saved

BLOCK = 8192
"""Users whose vectors are computed together."""
SERVING = "serving"
"""Folder of the SavedModel."""


def write(folder: Path, saved: Saved, flags: Train, k: int, exclude_seen: bool) -> int:
    """Writes vectors, ids and the SavedModel to an empty folder, and returns how many users are in them.

    Args:
        folder: where to.
        saved: the model.
        flags: of the run.
        k: length of the lists that are served.
        exclude_seen: whether they leave out what a user has chosen.
    """
    lists = Lists(saved, flags, k, exclude_seen)
    users = np.flatnonzero([basis != "popularity" for basis in lists.bases()])
    queries, candidates = vectors(lists, users)
    np.save(folder / "users.npy", queries)
    np.save(folder / "items.npy", candidates[1:])
    _write_table(folder / "users.csv", ("user",), ([saved.users.keys[user - 1]] for user in users))
    chosen = saved.popularity.astype(int).tolist()
    rows = (list(row) for row in zip(saved.items.keys, saved.titles[1:], chosen[1:], strict=True))
    _write_table(folder / "items.csv", ("item", "title", "chosen"), rows)
    server = Server(lists, users, queries, candidates)
    signatures = {"serving_default": server.by_id}
    names = _names(saved.features[0])
    if names:
        signatures["by_features"] = server.by_features.get_concrete_function(
            **{name: _spec(name, feature) for name, feature in zip(names, saved.features[0], strict=True)}
        )
    tf.saved_model.save(server, str(folder / SERVING), signatures)
    about = {
        "score": "users.npy times items.npy, kept within the scale if there is one"
        if saved.model.by_product
        else "the model; the vectors only describe",
        "scale": lists.scorer.scale,
        "k": server.k,
        "exclude_seen": exclude_seen,
        "features": dict(zip(names, (f.name for f in saved.features[0]), strict=True)),
    }
    (folder / "about.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    return len(users)


def vectors(lists: Lists, users: Array) -> tuple[Array, Array]:
    """Returns the vectors of some users and of all items, whose products are the scores if the model works so.

    Otherwise they are the vectors of id and features, one after the other.
    """
    scorer, model = lists.scorer, lists.saved.model
    users, items = users.astype(np.int32), np.arange(len(lists.saved.items), dtype=np.int32)
    blocks = [users[at : at + BLOCK] for at in range(0, max(1, len(users)), BLOCK)]
    if scorer.vectors is not None:
        return np.concatenate([scorer.queries(block) for block in blocks]), scorer.vectors

    def describe(encoder: Any, numbers: Array) -> Array:
        parts = encoder(numbers)
        return np.asarray(keras.ops.convert_to_numpy(keras.ops.concatenate(parts, -1)), np.float32)

    return np.concatenate([describe(model.users, block) for block in blocks]), describe(model.items, items)


def _write_table(path: Path, names: Sequence[str], rows: Iterator[list[Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([names, *rows])


def _names(features: Sequence[Feature]) -> list[str]:
    """Returns the names of features as arguments of TensorFlow may be called, in ASCII and each another way."""
    names: list[str] = []
    for feature in features:
        name = re.sub(r"[^a-zA-Z0-9_]", "_", feature.name)
        name = name if name[:1].isalpha() else f"feature_{name}"
        taken = {"self", *(other.lower() for other in names)}
        names.append(f"{name}_{len(names)}" if name.lower() in taken else name)
    return names


def _spec(name: str, feature: Feature) -> tf.TensorSpec:
    return tf.TensorSpec([None], tf.float64, name) if feature.bounds else tf.TensorSpec([None, None], tf.string, name)


class Server(tf.Module):
    """Recommends as `predict` does, as functions of TensorFlow alone.

    Args:
        lists: what `predict` uses.
        users: numbers of the users that are known by their ids; others are given the most popular items.
        queries: their vectors.
        candidates: those of all items.
    """

    def __init__(self, lists: Lists, users: Array, queries: Array, candidates: Array) -> None:
        super().__init__()
        saved, scorer = lists.saved, lists.scorer
        self._model, self._scale, self._length = saved.model, scorer.scale, scorer.length
        self.k = min(lists.k, len(saved.items) - 1)
        self.weights = [variable.value for variable in saved.model.variables]  # so that they are saved
        self.users = _table([saved.users.keys[user - 1] for user in users])
        self.numbers = tf.Variable(np.insert(users, 0, 0).astype(np.int32))
        self.bases = tf.Variable(["popularity", *(lists.bases()[user] for user in users)])
        self.items = tf.Variable(["", *saved.items.keys])
        self.titles = tf.Variable(saved.titles)
        self.popularity = tf.Variable(saved.popularity)
        self.listed = tf.Variable(lists.listed)
        self.queries = tf.Variable(np.insert(queries, 0, 0, 0))
        self.candidates = tf.Variable(candidates.T if saved.model.by_product else candidates[:, :0])
        seen = [lists.seen(user) if lists.exclude_seen else np.zeros(0, np.int32) for user in users]
        self.seen = tf.Variable(np.concatenate([np.zeros(0, np.int32), *seen]).astype(np.int32))
        self.begin = tf.Variable(np.cumsum([0, 0, *map(len, seen)]))
        features = saved.features[0]
        self.classes = [_table(feature.keys) for feature in features if not feature.bounds]
        self._features = dict(zip(_names(features), features, strict=True))
        self._bias = scorer.bias if features else None

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "user")])
    def by_id(self, user: Any) -> dict[str, Any]:
        """Returns "item", "title" and "score", [n, k], and the "basis" [n] of the scores for ids of users [n]."""
        rows = self.users.lookup(tf.strings.strip(user))
        if self._model.by_product:
            scores = tf.linalg.matmul(tf.gather(self.queries, rows), self.candidates)
        else:
            scores = self._rate(lambda number: {"user": number}, tf.gather(self.numbers, rows))
        scores = tf.where(rows[:, None] == 0, self.popularity, scores)
        seen = tf.gather(tf.RaggedTensor.from_row_splits(self.seen, self.begin, validate=False), rows)
        places = tf.stack([tf.cast(seen.value_rowids(), tf.int32), seen.flat_values], 1)
        scores = tf.tensor_scatter_nd_update(scores, places, tf.fill(tf.shape(places)[:1], -np.inf))
        return self._best(scores, rows[:, None] > 0) | {"basis": tf.gather(self.bases, rows)}

    @tf.function
    def by_features(self, **cells: Any) -> dict[str, Any]:
        """Returns "item", "title" and "score", [n, k], for users whose features are all that is known.

        Args:
            **cells: features by name: texts [n, m], each once and "" if there are less than m, or numbers [n], NaN if
                there is none.
        """
        values, tables = [], iter(self.classes)
        for name, feature in self._features.items():
            cell = cells[name]
            if feature.bounds:
                edges = tf.constant(feature.bounds[1:-1], tf.float64)
                classes = tf.where(tf.math.is_nan(cell), 0, 1 + tf.searchsorted(edges, cell))[:, None]
            else:
                classes = next(tables).lookup(tf.strings.strip(cell))
            values.append(tf.cast(classes, tf.int32))
        inputs = self._model.newcomers(values, self._bias)
        if not self._model.by_product:
            parts = [*inputs["parts"], inputs["bias"]]
            scores = self._rate(lambda *given: {"parts": list(given[:-1]), "bias": given[-1]}, *parts)
            return self._best(scores)
        if self._model.looks_back:
            past = tf.zeros([tf.shape(values[0])[0], self._length], tf.int32)
            queries = self._model.queries(inputs | {"history": past})[:, 0]
        else:
            queries = self._model.queries(inputs)
        return self._best(tf.linalg.matmul(tf.cast(queries, tf.float32), self.candidates))

    def _rate(self, describe: Any, *given: Any) -> Any:
        """Returns the scores [n, items], by one call of the model for each user."""
        items = tf.range(tf.size(self.items))

        def rate(row: Any) -> Any:
            one = [tf.repeat(part[None], tf.size(items), 0) for part in row]
            return self._model.score(describe(*one) | {"item": items})

        return tf.map_fn(rate, given, fn_output_signature=tf.float32)

    def _best(self, scores: Any, rated: Any = True) -> dict[str, Any]:
        """Returns what is recommended; where `rated`, scores are of the model, and end at its scale."""
        found, places = tf.math.top_k(tf.where(self.listed, scores, -np.inf)[:, 1:], self.k)
        left = tf.math.is_finite(found)
        if self._scale is not None:
            found = tf.where(rated, tf.clip_by_value(found, *self._scale), found)
        items = tf.where(left, places + 1, 0)
        score = tf.where(left, found, 0)
        return {"item": tf.gather(self.items, items), "title": tf.gather(self.titles, items), "score": score}


def _table(keys: Sequence[str]) -> Any:
    """Returns a table of the numbers of keys, from 1 up, 0 for others."""
    initial = tf.lookup.KeyValueTensorInitializer(
        tf.constant(keys, tf.string, [len(keys)]), tf.range(1, len(keys) + 1, dtype=tf.int32)
    )
    return tf.lookup.StaticHashTable(initial, 0)
