"""Models that predict how a user rates an item."""

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import keras_rs
from keras import layers, ops

from .encoder import PACKAGE
from .recommender import Kind, Recommender


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
        self.mean = self.add_weight((), "zeros", trainable=False, autocast=False, name="mean")
        self.towers = [self.tower("user"), self.tower("item")] if kind == "two-tower" else [[], []]
        self.crosses = [keras_rs.layers.FeatureCross(name=f"cross_{i}") for i in range(2)] if kind == "dcn" else []
        self.dots = keras_rs.layers.DotInteraction(name="dots") if kind == "dlrm" else None
        self.top = []
        self.by_product, self.looks_back = kind not in ("dcn", "dlrm"), False
        if not self.by_product:
            self.top = [layers.Dense(self.hidden, "relu", name="hidden"), layers.Dense(1, name="output")]

    def call(self, inputs: Mapping[str, Any], training: bool | None = None) -> Any:
        """Returns the ratings [n] of pairs: "user" and "item", each [n]."""
        ratings = self.score(inputs, training)
        return ratings if training else self.limit(ratings)

    def score(self, inputs: Mapping[str, Any], training: bool | None = None) -> Any:
        """Returns the ratings [n] of pairs before they are limited to the scale, which tell more about their order."""
        item = inputs["item"]
        mean, user, item_bias = (ops.cast(x, "float32") for x in (self.mean, self.bias(inputs), self.item_bias(item)))
        known = mean + user[:, 0] + item_bias[:, 0]
        u, v = self.parts(inputs), self.items(item)
        self.penalize(u + v, training)
        if self.by_product:
            p, q = (self.combine(tower, x, training) for tower, x in zip(self.towers, (u, v), strict=True))
            p, q = (ops.cast(x, "float32") for x in (self.drop(p, training=training), q))
            return known + ops.sum(p * q, -1)
        first = x = ops.concatenate(u + v, -1)
        for cross in self.crosses:
            x = cross(first, x)
        if self.dots is not None:
            x = ops.concatenate([x, self.dots(u + v)], -1)
        for layer in self.top:
            x = layer(self.drop(x, training=training))
        return known + ops.cast(x[:, 0], "float32")

    def bias(self, inputs: Mapping[str, Any]) -> Any:
        """Returns the biases [n, 1] of users: "bias" where it is given, else that of "user"."""
        given = inputs.get("bias")
        return self.user_bias(inputs["user"]) if given is None else ops.cast(given, self.compute_dtype)

    def queries(self, inputs: Mapping[str, Any], training: bool | None = None) -> Any:
        """Returns the vectors [n, dim + 2] of users, in float32."""
        vector = ops.cast(self.combine(self.towers[0], self.parts(inputs), training), "float32")
        bias = ops.cast(self.bias(inputs), "float32") + ops.cast(self.mean, "float32")
        return ops.concatenate([vector, bias, ops.ones_like(bias)], -1)

    def candidates(self, items: Any, training: bool | None = None) -> Any:
        """Returns the vectors [n, dim + 2] of items [n], in float32."""
        vector = ops.cast(self.combine(self.towers[1], self.items(items), training), "float32")
        bias = ops.cast(self.item_bias(items), "float32")
        return ops.concatenate([vector, ops.ones_like(bias), bias], -1)

    def include(self, ratings: Any) -> None:
        """Widens the scale so that it holds more ratings."""
        if self.scale is not None:
            self.scale = (min(self.scale[0], float(ratings.min())), max(self.scale[1], float(ratings.max())))
            self.config["scale"] = self.scale

    def limit(self, ratings: Any) -> Any:
        """Returns ratings within the scale; not for training, where their gradients would vanish."""
        return ratings if self.scale is None else ops.clip(ratings, *self.scale)
