"""A small decoder with attention, for bytes."""

from typing import Any

import keras
from keras import layers


class Positions(layers.Layer):
    """Adds a vector to each place of a sequence."""

    def build(self, shape: Any) -> None:
        """Creates the vectors."""
        self.embeddings = self.add_weight(shape=shape[1:], initializer="uniform", name="embeddings")

    def call(self, x: Any) -> Any:
        """Returns the sum."""
        return x + self.embeddings


def decoder(context: int, width: int, heads: int, depth: int) -> Any:
    """Returns a model from bytes [n, context] to the logits of the next ones, [n, context, 256].

    Args:
        context: bytes of a sequence.
        width: of what stands for a byte.
        heads: of the attention.
        depth: number of blocks.
    """
    x = inputs = keras.Input((context,), dtype="int32")
    x = Positions(name="positions")(layers.Embedding(256, width, name="bytes")(x))
    for i in range(depth):
        y = layers.LayerNormalization(name=f"norm_a{i}")(x)
        x = x + layers.MultiHeadAttention(heads, width // heads, name=f"attention{i}")(y, y, use_causal_mask=True)
        y = layers.LayerNormalization(name=f"norm_b{i}")(x)
        y = layers.Dense(4 * width, activation="gelu", name=f"wide{i}")(y)
        x = x + layers.Dense(width, name=f"narrow{i}")(y)
    return keras.Model(inputs, layers.Dense(256, name="head")(layers.LayerNormalization(name="norm")(x)))
