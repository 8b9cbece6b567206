"""Models that find items for a user."""

from collections.abc import Mapping
from typing import Any

import keras
import keras_rs
import numpy as np
from keras import layers, ops

from kopt.distribution import gather, ratio

from .encoder import PACKAGE
from .recommender import Kind, Recommender

SLOPES = (0.0, 0.5)
"""How fast the weights of past items fall with their distance before training: one mean of all, one of the latest."""


@keras.saving.register_keras_serializable(PACKAGE)
class Retriever(Recommender):
    """Finds items: their score is the product of a query and the vector of the item, trained by in-batch softmax.

    The query of mf is the vector of the user; that of two-tower the output of a dense network for the vectors of the
    user and of two means of the items so far, weighted by how long ago they were chosen (Covington et al., 2016,
    doi:10.1145/2959100.2959190, have one); that of sasrec the state of a transformer after these items (Kang and
    McAuley, 2018, arXiv:1808.09781). The logits of the others are corrected for how often they occur in batches (Yi et
    al., 2019, doi:10.1145/3298689.3346996).

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
        self.share = self.add_weight((items["size"],), "ones", trainable=False, autocast=False, name="share")
        self.towers = [self.tower("user"), self.tower("item")] if kind == "two-tower" else [[], []]
        self.correct = keras_rs.layers.SamplingProbabilityCorrection(dtype="float32", name="correct")
        self.seeds = keras.random.SeedGenerator()
        self.by_product, self.looks_back = True, kind != "mf"
        self.place = layers.Embedding(length, self.dim, name="place") if kind == "sasrec" else None
        slopes = keras.initializers.Constant(-np.outer(SLOPES, np.arange(length)))
        lags = (len(SLOPES), length)
        self.lag = self.add_weight(lags, slopes, autocast=False, name="lag") if kind == "two-tower" else None
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
            vectors = self.parts(inputs)
            if self.lag is not None:
                means = self.means_so_far(inputs["history"], past)
                vectors = [*means, *(ops.broadcast_to(u[:, None], ops.shape(past)) for u in vectors)]
            x = self.drop(self.combine(self.towers[0], vectors, training), training=training)
        return ops.concatenate([x, ops.ones_like(x[..., :1])], -1)

    def means_so_far(self, history: Any, vectors: Any) -> list[Any]:
        """Returns means [n, length, dim] of the vectors up to each place, each weighted by their distance otherwise."""
        back = ops.arange(self.length)[:, None] - ops.arange(self.length)
        out = ops.logical_or(back < 0, ops.equal(history, 0)[:, None])
        weights = [ops.take(lag, ops.maximum(back, 0)) for lag in ops.unstack(ops.cast(self.lag, "float32"), axis=0)]
        shares = [ops.softmax(ops.where(out, -1e9, each)) for each in weights]
        return [ops.matmul(ops.cast(share, vectors.dtype), vectors) for share in shares]

    def call(self, inputs: Mapping[str, Any], training: bool | None = None) -> Any:
        """Returns what the loss is of: for n queries, and the next items of m, which are those of all replicas.

        The logits [n, m] and the own one [n] of each query; the weights [n] of the queries, and the sum of the weights
        of those of all replicas.
        """
        queries = ops.reshape(self.queries(inputs, training), (-1, self.dim + 1))
        own = ops.reshape(inputs["item"], (-1,))
        items, first = gather(own)
        own, places = ops.cast(own > 0, "float32"), first + ops.arange(ops.shape(own)[0])
        weights = ops.cast(items > 0, "float32")
        if self.looks_back:
            luck = weights + keras.random.uniform(ops.shape(items), seed=self.seeds)
            count = self.positions if items.shape[0] is None else min(self.positions, items.shape[0])
            count = ops.minimum(count, ops.shape(items)[0])
            chosen = ops.top_k(luck, count)[1]
            items, weights = (ops.take(part, chosen, axis=0) for part in (items, weights))
            # The queries of others count nothing here.
            here = ops.logical_and(chosen >= first, chosen < first + ops.shape(places)[0])
            queries = ops.take(queries, ops.where(here, chosen - first, 0), axis=0)
            own, places = weights * ops.cast(here, "float32"), ops.arange(count)
        logits = ops.matmul(queries, ops.transpose(self.candidates(items, training)))
        logits = self.correct(ops.cast(logits, "float32"), ops.take(self.share, items))
        # keras_rs 0.4.0 has a layer for this, RemoveAccidentalHits, which adds the smallest positive float instead.
        mine = ops.take(items, places, axis=0)[:, None] == items
        hits = ops.logical_and(mine, places[:, None] != ops.arange(ops.shape(items)[0]))
        logits = ops.where(ops.logical_or(hits, weights[None] == 0), -1e9, logits)
        return logits, ops.take_along_axis(logits, places[:, None], 1)[:, 0], own, ops.sum(weights)

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, training: bool = True
    ) -> Any:
        """Returns the cross-entropy of the next item among the items of the batch.

        Of several replicas, those of `x`: of their losses, weighted by their rows, it is the mean.
        """
        logits, own, weights, total = y_pred
        loss = ops.sum((ops.logsumexp(logits, -1) - own) * weights) / ops.maximum(total, 1)
        return loss if x is None else loss * ops.cast(ratio(x), loss.dtype)

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
