"""The gradient of a cache of keys and values, which TensorFlow does not have."""

import functools
from typing import Any

import keras
from keras import ops

_WRITE = "XlaDynamicUpdateSlice"
"""What `keras.ops.slice_update` is there, with which KerasHub writes new keys and values into a cache."""


@functools.cache
def let_caches_learn() -> None:
    """Lets gradients pass through a cache of keys and values; the other backends can do so without."""
    if keras.backend.backend() != "tensorflow":
        return
    import tensorflow as tf

    def gradient(op: Any, upstream: Any) -> tuple[Any, Any, None]:
        _, update, start = op.inputs
        rest = ops.slice_update(upstream, start, tf.zeros_like(update))
        return rest, tf.slice(upstream, start, tf.shape(update)), None

    try:
        tf.RegisterGradient(_WRITE)(gradient)
    except KeyError:  # someone has registered one before
        return
