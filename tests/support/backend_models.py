"""Small models with the same weights on every backend of Keras, and their inputs."""

from collections.abc import Callable

import keras
import numpy as np
from keras import layers


def floats(*shape: int, seed: int = 0) -> np.ndarray:
    """Returns the same normal numbers on every backend."""
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def integers(high: int, *shape: int) -> np.ndarray:
    """Returns the same whole numbers from 1 to high - 1 on every backend."""
    return np.random.default_rng(1).integers(1, high, shape).astype("int32")


def finished(inputs, outputs) -> keras.Model:
    """Returns a model with the same weights on every backend."""
    model = keras.Model(inputs, outputs)
    model.set_weights([0.4 * floats(*w.shape, seed=i) for i, w in enumerate(model.get_weights())])
    return model


def dense():
    inputs = keras.Input((6,))
    x = layers.LayerNormalization(name="norm")(layers.Dense(8, "tanh", name="host")(inputs))
    return finished(inputs, layers.Dense(3, name="head")(x)), floats(40, 6)


def einsum():
    inputs = keras.Input((4, 6))
    x = layers.EinsumDense("abc,cde->abde", (4, 2, 3), bias_axes="de", activation="tanh", name="host")(inputs)
    x = layers.LayerNormalization(name="norm")(layers.Flatten()(x))
    return finished(inputs, layers.Dense(3, name="head")(x)), floats(40, 4, 6)


def attention():
    inputs = keras.Input((4, 6))
    x = layers.MultiHeadAttention(2, 3, name="host", flash_attention=False)(inputs, inputs)
    x = layers.LayerNormalization(name="norm")(layers.Flatten()(x))
    return finished(inputs, layers.Dense(3, name="head")(x)), floats(40, 4, 6)


def convolution():
    inputs = keras.Input((6, 6, 4))
    x = layers.Conv2D(5, 3, strides=2, padding="same", activation="tanh", name="host")(inputs)
    x = layers.LayerNormalization(name="norm")(layers.Flatten()(x))
    return finished(inputs, layers.Dense(3, name="head")(x)), floats(40, 6, 6, 4)


def embedding():
    inputs = keras.Input((5,), dtype="int32")
    x = layers.LayerNormalization(name="norm")(layers.Embedding(12, 6, name="host")(inputs))
    return finished(inputs, layers.Dense(3, name="head")(layers.Flatten()(x))), integers(12, 40, 5)


def recurrent():
    inputs = keras.Input((5, 4))
    x = layers.LayerNormalization(name="norm")(layers.LSTM(5, name="host")(inputs))
    return finished(inputs, layers.Dense(3, name="head")(x)), floats(40, 5, 4)


@keras.saving.register_keras_serializable("backends")
class Prompted(keras.Model):
    """A text model as prompts need it."""

    def __init__(self, **kwargs) -> None:
        super().__init__(**kwargs)
        self.token_embedding = layers.Embedding(12, 6, name="token_embedding")
        self.head = layers.Dense(3, name="head")

    def call(self, inputs):
        """Returns what is made of the mean of all tokens."""
        return self.head(keras.ops.tanh(keras.ops.mean(self.token_embedding(inputs["token_ids"]), axis=1)))


def prompted():
    model, x = Prompted(), {"token_ids": integers(12, 40, 5)}
    model(x)
    model.set_weights([0.4 * floats(*w.shape, seed=i) for i, w in enumerate(model.get_weights())])
    return model, x


HOSTS = {
    "Dense": dense,
    "EinsumDense": einsum,
    "MultiHeadAttention": attention,
    "Conv2D": convolution,
    "Embedding": embedding,
}


def bert():
    from keras_hub.models import BertBackbone

    sizes = {"vocabulary_size": 30, "num_layers": 2, "hidden_dim": 8, "intermediate_dim": 12, "num_heads": 2}
    model = BertBackbone(max_sequence_length=6, dropout=0.0, **sizes)
    x = {"token_ids": integers(30, 40, 6), "padding_mask": np.ones((40, 6), bool)}
    return model, x | {"segment_ids": np.zeros((40, 6), "int32")}


def llama():
    from keras_hub.models import Llama3Backbone

    sizes = {"vocabulary_size": 30, "num_layers": 2, "hidden_dim": 8, "intermediate_dim": 12}
    model = Llama3Backbone(num_query_heads=2, num_key_value_heads=1, **sizes)
    return model, {"token_ids": integers(30, 40, 6), "padding_mask": np.ones((40, 6), bool)}


def hub(make: Callable):
    """Returns a backbone of KerasHub with a head on its last token, with the same weights on every backend."""
    backbone, x = make()
    y = backbone.output["sequence_output"] if isinstance(backbone.output, dict) else backbone.output
    backbone.set_weights([0.3 * floats(*w.shape, seed=i) for i, w in enumerate(backbone.get_weights())])
    head = layers.Dense(3, name="head")
    model = keras.Model(backbone.inputs, head(y[:, -1]))
    head.set_weights([floats(8, 3), floats(3)])
    return backbone, model, x
