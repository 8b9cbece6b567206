"""The models: raters predict how a user rates an item, retrievers find items for a user."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import keras
import keras_rs
from keras import layers, ops

from ..run.batches import Array
from .data.features import Feature

Kind = Literal["mf", "two-tower", "dcn", "dlrm", "sasrec"]
PACKAGE = "kopt.recipes"


@keras.saving.register_keras_serializable(PACKAGE)
class Encoder(layers.Layer):
    """Turns the numbers of users or items into vectors: one for the id and one for each feature.

    Args:
        size: how many numbers there are, including 0 for unknown ids.
        dim: length of a vector.
        features: for each feature the number of its classes, and the largest number that one user or item has.
        buckets: rows of the table if ids share them; with 0 each id has its own row.
        **options: those of a layer.
    """

    def __init__(
        self, size: int, dim: int, features: Sequence[Sequence[int]] = (), buckets: int = 0, **options: Any
    ) -> None:
        super().__init__(**options)
        self.config: dict[str, Any] = {
            "size": size,
            "dim": dim,
            "features": [list(f) for f in features],
            "buckets": buckets,
        }
        self.start = keras.initializers.RandomNormal(stddev=0.1 / dim**0.5)
        self.table = layers.Embedding(1 + (buckets or size - 1), dim, self.start, name="table")

    def build(self, input_shape: Any) -> None:
        """Creates the tables: row and features of each number, and the embeddings."""

        def add_table(name: str, *shape: int) -> Any:
            return self.add_weight(shape, "zeros", "int32", trainable=False, name=name)

        size = self.config["size"]
        self.rows = add_table("rows", size) if self.config["buckets"] else None
        self.values = [add_table(f"values_{i}", size, width) for i, (_, width) in enumerate(self.config["features"])]
        shapes = [(classes, self.config["dim"]) for classes, _ in self.config["features"]]
        self.bags = [self.add_weight(shape, self.start, name=f"bag_{i}") for i, shape in enumerate(shapes)]
        self.table.build(())

    def describe(self, features: Sequence[Feature], rows: Array | None = None) -> None:
        """Sets the features of each number, and its row if rows are shared."""
        for variable, feature in zip(self.values, features, strict=True):
            variable.assign(feature.values)
        if self.rows is not None:
            self.rows.assign(rows)

    def call(self, numbers: Any) -> list[Any]:
        """Returns the vectors of numbers of any shape, each [..., dim]."""
        vectors = [self.table(numbers if self.rows is None else ops.take(self.rows, numbers))]
        for bag, values in zip(self.bags, self.values, strict=True):
            # As a product with the counts of the classes: for few classes a dense gradient is cheaper than rows.
            counts = ops.sum(ops.one_hot(ops.take(values, numbers, axis=0) - 1, bag.shape[0], dtype=bag.dtype), -2)
            share = counts / ops.maximum(ops.sum(counts, -1, keepdims=True), 1)
            vectors.append(ops.matmul(ops.cast(share, self.compute_dtype), ops.cast(bag, self.compute_dtype)))
        return vectors

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return super().get_config() | self.config


class Recommender(keras.Model):
    """Base of the models: encoders of users and items.

    Args:
        kind: which model.
        users: configuration of the encoder of users.
        items: configuration of the encoder of items.
        hidden: width of the dense layers; with 0 two-tower has none.
        dropout: dropout rate before each of them.
        l2: L2 penalty on the vectors of each example.
        **options: those of a model.
    """

    def __init__(
        self,
        kind: Kind,
        users: Mapping[str, Any],
        items: Mapping[str, Any],
        hidden: int = 64,
        dropout: float = 0.0,
        l2: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.config: dict[str, Any] = {
            "kind": kind,
            "users": dict(users),
            "items": dict(items),
            "hidden": hidden,
            "dropout": dropout,
        }
        self.config["l2"] = l2
        self.kind, self.dim, self.hidden = kind, items["dim"], hidden
        self.users, self.items = Encoder(**users, name="users"), Encoder(**items, name="items")
        self.drop = layers.Dropout(dropout)

    def build(self, input_shape: Any = None) -> None:
        """Creates all weights, by a call on an example."""
        self.call(self.example())
        self.built = True

    def example(self) -> dict[str, Any]:
        """Returns the smallest input."""
        return dict.fromkeys(("user", "item"), ops.zeros((1,), "int32"))

    def tower(self, name: str) -> list[Any]:
        """Returns the dense layers from several vectors to one; no layers if `hidden` is 0."""
        if not self.hidden:
            return []
        return [layers.Dense(self.hidden, "relu", name=f"{name}_hidden"), layers.Dense(self.dim, name=f"{name}_output")]

    def combine(self, tower: Sequence[Any], vectors: Sequence[Any], training: bool | None) -> Any:
        """Returns one vector for several: their sum plus the output of the tower."""
        total = sum(vectors[1:], vectors[0])
        if not tower:
            return total
        x = ops.concatenate(vectors, -1)
        for layer in tower:
            x = layer(self.drop(x, training=training))
        return total + x

    def penalize(self, vectors: Sequence[Any], training: bool | None) -> None:
        """Adds the L2 penalty on vectors [n, dim] to the loss."""
        if training and self.config["l2"]:
            squares = sum(
                ops.sum(ops.square(ops.cast(x, "float32"))) / ops.cast(ops.shape(x)[0], "float32") for x in vectors
            )
            self.add_loss(self.config["l2"] * squares)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {"name": self.name, **self.config}


@keras.saving.register_keras_serializable(PACKAGE)
class Rater(Recommender):
    """Predicts ratings: μ + bias of the user + bias of the item + a function of their vectors.

    mf: the product of the vectors of the ids (Koren et al., 2009, doi:10.1109/MC.2009.263). two-tower: that of the sums
    of the vectors of ids and features, with what a dense network adds to them. dcn: crosses of all features (Wang et
    al., 2021, arXiv:2008.13535). dlrm: products of all pairs of features (Naumov et al., 2019, arXiv:1906.00091).

    Args:
        kind: "mf", "two-tower", "dcn" or "dlrm".
        users: configuration of the encoder of users.
        items: configuration of the encoder of items.
        scale: lowest and highest rating; what is predicted stays between them, except while training.
        **options: those of `Recommender`.
    """

    def __init__(
        self, kind: Kind, users: Any, items: Any, scale: Sequence[float] | None = None, **options: Any
    ) -> None:
        super().__init__(kind, users, items, **options)
        self.scale = None if scale is None else (float(scale[0]), float(scale[1]))
        self.config["scale"] = self.scale
        self.user_bias = layers.Embedding(users["size"], 1, "zeros", name="user_bias")
        self.item_bias = layers.Embedding(items["size"], 1, "zeros", name="item_bias")
        self.mean = self.add_weight((), "zeros", trainable=False, name="mean")
        self.towers = [self.tower("user"), self.tower("item")] if kind == "two-tower" else [[], []]
        self.crosses = [keras_rs.layers.FeatureCross(name=f"cross_{i}") for i in range(2)] if kind == "dcn" else []
        self.dots = keras_rs.layers.DotInteraction(name="dots") if kind == "dlrm" else None
        self.top = []
        if kind in ("dcn", "dlrm"):
            self.top = [layers.Dense(self.hidden, "relu", name="hidden"), layers.Dense(1, name="output")]

    def call(self, inputs: Mapping[str, Any], training: bool | None = None) -> Any:
        """Returns the ratings [n] of pairs: "user" and "item", each [n]."""
        user, item = inputs["user"], inputs["item"]
        known = self.mean + self.user_bias(user)[:, 0] + self.item_bias(item)[:, 0]
        u, v = self.users(user), self.items(item)
        self.penalize(u + v, training)
        if not self.top:
            p, q = (self.combine(tower, x, training) for tower, x in zip(self.towers, (u, v), strict=True))
            return self.limit(known + ops.sum(self.drop(p, training=training) * q, -1), training)
        first = x = ops.concatenate(u + v, -1)
        for cross in self.crosses:
            x = cross(first, x)
        if self.dots is not None:
            x = ops.concatenate([x, self.dots(u + v)], -1)
        for layer in self.top:
            x = layer(self.drop(x, training=training))
        return self.limit(known + x[:, 0], training)

    def limit(self, ratings: Any, training: bool | None) -> Any:
        """Returns ratings within the scale; in training as they are, so that their gradients do not vanish."""
        ratings = ops.cast(ratings, "float32")
        return ratings if training or self.scale is None else ops.clip(ratings, *self.scale)


@keras.saving.register_keras_serializable(PACKAGE)
class Retriever(Recommender):
    """Finds items: their score is the product of a query and the vector of the item, trained by in-batch softmax.

    The query of mf is the vector of the user; that of two-tower the output of a dense network for the vectors of the
    user and of the mean of the items so far, weighted by how long ago they were chosen (Covington et al., 2016,
    doi:10.1145/2959100.2959190); that of sasrec the state of a transformer after these items (Kang and McAuley, 2018,
    arXiv:1808.09781). The logits of the others are corrected for how often they occur in batches (Yi et al., 2019,
    doi:10.1145/3298689.3346996).

    Args:
        kind: "mf", "two-tower" or "sasrec".
        users: configuration of the encoder of users.
        items: configuration of the encoder of items.
        length: number of past items (two-tower and sasrec).
        blocks: transformer blocks (sasrec).
        heads: attention heads (sasrec).
        positions: largest number of predictions in the loss of a batch (two-tower and sasrec).
        **options: those of `Recommender`.
    """

    def __init__(
        self,
        kind: Kind,
        users: Any,
        items: Any,
        length: int = 50,
        blocks: int = 2,
        heads: int = 1,
        positions: int = 1024,
        **options: Any,
    ) -> None:
        super().__init__(kind, users, items, **options)
        self.config |= {"length": length, "blocks": blocks, "heads": heads, "positions": positions}
        self.length, self.positions = length, positions
        self.item_bias = layers.Embedding(items["size"], 1, "zeros", name="item_bias")
        self.share = self.add_weight((items["size"],), "ones", trainable=False, name="share")
        self.towers = [self.tower("user"), self.tower("item")] if kind == "two-tower" else [[], []]
        self.correct = keras_rs.layers.SamplingProbabilityCorrection(name="correct")
        self.seeds = keras.random.SeedGenerator()
        self.looks_back = kind != "mf"
        self.place = layers.Embedding(length, self.dim, name="place") if kind == "sasrec" else None
        self.lag = self.add_weight((length,), "zeros", name="lag") if kind == "two-tower" else None
        self.blocks = [_Block(self.dim, heads, options.get("dropout", 0.0), name=f"block_{i}") for i in range(blocks)]
        self.blocks = self.blocks if kind == "sasrec" else []

    def example(self) -> dict[str, Any]:
        """Returns the smallest input."""
        past = ops.zeros((1, self.length), "int32")
        return super().example() | ({"history": past, "item": past} if self.looks_back else {})

    def candidates(self, items: Any, training: bool | None = None) -> Any:
        """Returns the vectors of items [n], [n, dim + 1]."""
        vector = self.combine(self.towers[1], self.items(items), training)
        return ops.concatenate([vector, self.item_bias(items)], -1)

    def queries(self, inputs: Mapping[str, Any], training: bool | None = None) -> Any:
        """Returns a vector [n, dim + 1] for each "user" [n], or [n, length, dim + 1] for each "history" [n, length]."""
        if self.looks_back:
            past = sum(self.items(inputs["history"]))
        if self.place is not None:
            x = self.drop(past * self.dim**0.5 + self.place(ops.arange(self.length)), training=training)
            for block in self.blocks:
                x = block(x, training=training)
        else:
            vectors = self.users(inputs["user"])
            if self.lag is not None:
                past = self.mean_so_far(inputs["history"], past)
                vectors = [past, *(ops.broadcast_to(u[:, None], ops.shape(past)) for u in vectors)]
            x = self.drop(self.combine(self.towers[0], vectors, training), training=training)
        return ops.concatenate([x, ops.ones_like(x[..., :1])], -1)

    def mean_so_far(self, history: Any, vectors: Any) -> Any:
        """Returns the means [n, length, dim] of the vectors up to each place, weighted by their distance."""
        back = ops.arange(self.length)[:, None] - ops.arange(self.length)
        weights = ops.take(ops.cast(self.lag, "float32"), ops.maximum(back, 0))
        out = ops.logical_or(back < 0, ops.equal(history, 0)[:, None])
        weights = ops.softmax(ops.where(out, -1e9, weights))
        return ops.matmul(ops.cast(weights, vectors.dtype), vectors)

    def call(self, inputs: Mapping[str, Any], training: bool | None = None) -> Any:
        """Returns the logits [n, n] of n queries for the next items of all, and the weights [n] of the queries."""
        queries, items = self.queries(inputs, training), ops.reshape(inputs["item"], (-1,))
        queries, weights = ops.reshape(queries, (-1, self.dim + 1)), ops.cast(items > 0, "float32")
        if self.looks_back:
            luck = weights + keras.random.uniform(ops.shape(items), seed=self.seeds)
            count = self.positions if items.shape[0] is None else min(self.positions, items.shape[0])
            count = ops.minimum(count, ops.shape(items)[0])
            chosen = ops.top_k(luck, count)[1]
            queries, items, weights = (ops.take(part, chosen, axis=0) for part in (queries, items, weights))
        logits = ops.matmul(queries, ops.transpose(self.candidates(items, training)))
        logits = self.correct(ops.cast(logits, "float32"), ops.take(self.share, items))
        # keras_rs 0.4.0 has a layer for this, RemoveAccidentalHits, which adds the smallest positive float instead.
        hits = ops.logical_and(items[:, None] == items, ops.eye(ops.shape(items)[0]) == 0)
        return ops.where(ops.logical_or(hits, weights[None] == 0), -1e9, logits), weights

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, training: bool = True
    ) -> Any:
        """Returns the cross-entropy of the next item among the items of the batch."""
        logits, weights = y_pred
        own = ops.logsumexp(logits, -1) - ops.diagonal(logits)
        return ops.sum(own * weights) / ops.maximum(ops.sum(weights), 1)

    def compute_metrics(self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None) -> dict[str, Any]:
        """Returns only the loss: ranks are measured among all items, by a callback."""
        return {"loss": self._loss_tracker.result()}


@keras.saving.register_keras_serializable(PACKAGE)
class _Block(layers.Layer):
    """A causal transformer block with normalization before each part."""

    def __init__(self, dim: int, heads: int, dropout: float, **options: Any) -> None:
        super().__init__(**options)
        self.norms = [layers.LayerNormalization(epsilon=1e-6) for _ in range(2)]
        self.attention = layers.MultiHeadAttention(heads, dim // heads, dropout=dropout)
        self.forward = [layers.Dense(4 * dim, "gelu"), layers.Dense(dim)]
        self.drop = layers.Dropout(dropout)

    def build(self, shape: Any) -> None:
        """Builds the parts."""
        for norm in self.norms:
            norm.build(shape)
        self.attention.build(shape, shape)
        self.forward[0].build(shape)
        self.forward[1].build((*shape[:-1], 4 * shape[-1]))

    def call(self, x: Any, training: bool | None = None) -> Any:
        """Returns states of the same shape [n, length, dim]."""
        normal = self.norms[0](x)
        x = x + self.drop(self.attention(normal, normal, use_causal_mask=True, training=training), training=training)
        normal = self.norms[1](x)
        return x + self.drop(self.forward[1](self.forward[0](normal)), training=training)
