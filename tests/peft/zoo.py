"""Small models of every kind, each with inputs and targets."""

import keras
import numpy as np
from keras import layers

RNG = np.random.default_rng(0)


def floats(*shape):
    """Returns normal numbers."""
    return RNG.normal(size=shape).astype("float32")


def integers(high, *shape):
    """Returns whole numbers from 1 to high - 1."""
    return RNG.integers(1, high, shape).astype("int32")


def dense(units=6, width=5, count=2):
    """Returns a small stack of Dense layers called "a", "b", ... and an input."""
    x = inputs = keras.Input((width,))
    for name in "abcdef"[:count]:
        x = layers.Dense(units, name=name)(x)
    return keras.Model(inputs, x), floats(8, width)


def sequential():
    return keras.Sequential([keras.Input((6,)), layers.Dense(8, "relu"), layers.Dense(3)]), floats(8, 6), floats(8, 3)


def shared():
    x = inputs = keras.Input((6,))
    twice = layers.Dense(6, name="twice")
    x = layers.BatchNormalization()(twice(twice(x)))
    return keras.Model(inputs, layers.Dense(2)(x)), floats(8, 6), floats(8, 2)


def nested():
    inner = keras.Sequential([keras.Input((6,)), layers.Dense(6, "relu")], name="inner")
    inputs = keras.Input((6,))
    return keras.Model(inputs, layers.Dense(2)(inner(inputs))), floats(8, 6), floats(8, 2)


@keras.saving.register_keras_serializable("zoo")
class Subclassed(keras.Model):
    def __init__(self, blocks=2, **kwargs):
        super().__init__(**kwargs)
        self.count = blocks
        self.blocks = [layers.Dense(4, "relu") for _ in range(blocks)]
        self.table = {"a": layers.Dense(4), "b": layers.Embedding(20, 4)}
        self.head = layers.Dense(2)

    def call(self, x, training=None):
        x = self.table["b"](x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(keras.ops.mean(self.table["a"](x), axis=1))

    def get_config(self):
        return super().get_config() | {"blocks": self.count}


def subclassed():
    model, x = Subclassed(), integers(20, 8, 5)
    model(x)
    return model, x, floats(8, 2)


def attention():
    inputs = keras.Input((5, 8))
    x = layers.MultiHeadAttention(2, 4, name="mha")(inputs, inputs)
    x = layers.GroupQueryAttention(4, 4, 2, name="gqa")(x, x)
    x = layers.GlobalAveragePooling1D()(layers.LayerNormalization()(x))
    return keras.Model(inputs, layers.Dense(3)(x)), floats(8, 5, 8), floats(8, 3)


def convolutions():
    inputs = keras.Input((12, 12, 4))
    x = layers.Conv2D(8, 3, strides=2, padding="same", activation="relu")(inputs)
    x = layers.BatchNormalization()(x)
    x = layers.DepthwiseConv2D(3, padding="same")(x)
    x = layers.Conv2D(8, 3, dilation_rate=2, groups=2, padding="same")(x)
    x = layers.SeparableConv2D(8, 3, padding="same")(x)
    x = layers.GlobalAveragePooling2D()(layers.Conv2DTranspose(4, 3)(x))
    return keras.Model(inputs, layers.Dense(3)(x)), floats(8, 12, 12, 4), floats(8, 3)


def other_dimensions():
    inputs = keras.Input((8, 8, 4))
    x = layers.Conv3D(3, 2)(layers.Reshape((8, 8, 4, 1))(inputs))
    x = layers.Reshape((49, 9))(x)
    x = layers.Conv1D(4, 3, padding="causal", dilation_rate=2)(x)
    x = layers.GlobalAveragePooling1D()(layers.Conv1D(4, 3, strides=2, groups=2)(x))
    return keras.Model(inputs, layers.Dense(3)(x)), floats(8, 8, 8, 4), floats(8, 3)


def recurrent():
    inputs = keras.Input((5,), dtype="int32")
    x = layers.Embedding(30, 6)(inputs)
    x = layers.GRU(4)(layers.Bidirectional(layers.LSTM(4, return_sequences=True))(x))
    return keras.Model(inputs, layers.Dense(2)(x)), integers(30, 8, 5), floats(8, 2)


def application():
    model = keras.applications.MobileNetV2((32, 32, 3), weights=None, alpha=0.35)
    part = keras.Model(model.input, model.get_layer("block_2_add").output)
    return part, floats(4, 32, 32, 3), floats(4, *part.output.shape[1:])


SIZES = {"vocabulary_size": 50, "num_layers": 2, "hidden_dim": 16, "intermediate_dim": 32}


def tokens(*extra):
    """Returns the input of a KerasHub text model."""
    x = {"token_ids": integers(50, 4, 6), "padding_mask": np.ones((4, 6), bool)}
    x["padding_mask"][1, 4:] = False
    return x | {"segment_ids": np.zeros((4, 6), "int32")} if "segments" in extra else x


def bert():
    from keras_hub.models import BertBackbone

    model = BertBackbone(num_heads=2, max_sequence_length=16, dropout=0.0, **SIZES)
    return keras.Model(model.inputs, model.output["sequence_output"]), tokens("segments"), floats(4, 6, 16)


def bert_classifier():
    from keras_hub.models import BertBackbone, BertTextClassifier

    backbone = BertBackbone(num_heads=2, max_sequence_length=16, dropout=0.0, **SIZES)
    model = BertTextClassifier(backbone, num_classes=3, dropout=0.0, preprocessor=None)
    return model, tokens("segments"), integers(3, 4)


def gpt2():
    from keras_hub.models import GPT2Backbone, GPT2CausalLM

    backbone = GPT2Backbone(num_heads=2, max_sequence_length=16, dropout=0.0, **SIZES)
    return GPT2CausalLM(backbone, preprocessor=None), tokens(), integers(50, 4, 6)


def llama():
    from keras_hub.models import Llama3Backbone, Llama3CausalLM

    backbone = Llama3Backbone(num_query_heads=4, num_key_value_heads=2, **SIZES)
    return Llama3CausalLM(backbone, preprocessor=None), tokens(), integers(50, 4, 6)


def gemma():
    from keras_hub.models import GemmaBackbone, GemmaCausalLM

    backbone = GemmaBackbone(num_query_heads=4, num_key_value_heads=1, head_dim=8, **SIZES)
    return GemmaCausalLM(backbone, preprocessor=None), tokens(), integers(50, 4, 6)


def vit():
    from keras_hub.models import ViTBackbone, ViTImageClassifier

    sizes = {"num_layers": 2, "num_heads": 2, "hidden_dim": 16, "mlp_dim": 32}
    backbone = ViTBackbone((16, 16, 3), 4, dropout_rate=0.0, attention_dropout=0.0, **sizes)
    return ViTImageClassifier(backbone, num_classes=3, preprocessor=None), floats(4, 16, 16, 3), integers(3, 4)


SMALL = (sequential, shared, nested, subclassed)
LARGE = (attention, convolutions, other_dimensions, recurrent)
LARGE += (application, bert, bert_classifier, gpt2, llama, gemma, vit)
EVERY_KERNEL = r".*"
"""Matches each layer of a model: those without a kernel are passed over."""
