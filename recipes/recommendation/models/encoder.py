"""The part of every model that turns numbers of users or items into vectors."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import layers, ops

from ..data.features import Feature

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

    def describe(self, features: Sequence[Feature]) -> None:
        """Sets the features of each number."""
        for variable, feature in zip(self.values, features, strict=True):
            variable.assign(feature.values)

    def call(self, numbers: Any) -> list[Any]:
        """Returns the vectors of numbers of any shape, each [..., dim]."""
        own = self.table(numbers if self.rows is None else ops.take(self.rows, numbers))
        return self.encode(own, [ops.take(values, numbers, axis=0) for values in self.values])

    def encode(self, own: Any, values: Sequence[Any]) -> list[Any]:
        """Returns the vectors of ids with the vectors `own` [..., dim] and values of features, each [..., width]."""
        bags = [ops.cast(bag, self.compute_dtype) for bag in self.bags]
        shares = [ops.cast(share, self.compute_dtype) for share in self.shares(values)]
        return [own, *(ops.matmul(share, bag) for share, bag in zip(shares, bags, strict=True))]

    def shares(self, values: Sequence[Any]) -> list[Any]:
        """Returns for each feature the shares [..., classes] of its classes among the values, which sum to 1 or 0."""
        found = []
        for bag, numbers in zip(self.bags, values, strict=True):
            # As a product with the counts of the classes: for few classes a dense gradient is cheaper than rows.
            counts = ops.sum(ops.one_hot(numbers - 1, bag.shape[0], dtype=bag.dtype), -2)
            found.append(counts / ops.maximum(ops.sum(counts, -1, keepdims=True), 1))
        return found

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return super().get_config() | self.config
