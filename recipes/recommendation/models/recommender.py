"""What raters and retrievers have in common."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import keras
from keras import layers, ops

from .encoder import Encoder

Kind = Literal["mf", "two-tower", "dcn", "dlrm", "sasrec"]


class Recommender(keras.Model):
    """Base of the models: encoders of users and items.

    Where `by_product` is true, what is predicted for a pair is the product of two vectors: one of the method `queries`
    and one of `candidates`. Where `looks_back` is true, `queries` needs the "history" of the users.

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

    def parts(self, inputs: Mapping[str, Any]) -> list[Any]:
        """Returns the vectors of ids and features of users: "parts" where they are given, else those of "user"."""
        found: list[Any] = inputs["parts"] if "parts" in inputs else self.users(inputs["user"])
        return found

    def newcomers(self, values: Sequence[Any], bias: Any) -> dict[str, Any]:
        """Returns the "parts" and the "bias" of users of whom nothing but the features is known.

        Args:
            values: for each feature [n, width].
            bias: weights of all classes, and a last number that is added, [classes + 1].
        """
        shares = self.users.shares(values)
        own = ops.zeros((ops.shape(values[0])[0], self.dim), self.users.compute_dtype)
        weights = ops.convert_to_tensor(bias, "float32")
        guess = ops.matmul(ops.concatenate(shares, -1), weights[:-1, None]) + weights[-1]
        return {"parts": self.users.encode(own, values), "bias": guess}

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
