"""Labels that a model draws from what it predicts, for the losses that are likelihoods."""

from collections.abc import Callable
from typing import Any, NamedTuple

import keras
from keras import ops

from kopt.optimizers.engine.noise import normal, uniform
from kopt.training.keras_internals import mask_of

Tensor = Any
_LOSSES = {
    "softmax": (
        (keras.losses.CategoricalCrossentropy, keras.losses.SparseCategoricalCrossentropy),
        (keras.losses.categorical_crossentropy, keras.losses.sparse_categorical_crossentropy),
    ),
    "sigmoid": ((keras.losses.BinaryCrossentropy,), (keras.losses.binary_crossentropy,)),
    "gaussian": ((keras.losses.MeanSquaredError,), (keras.losses.mean_squared_error,)),
}
_SMALLEST = 1e-7  # of a probability, as in Keras
_ROWS, _PLACES = 2**30, 2**30 + 1


class Sampled(NamedTuple):
    """The loss of a batch on labels that the model draws from its predictions.

    Attributes:
        value: the loss, a mean; the labels are constants.
        count: of how many labels, B.
    """

    value: Tensor
    count: Tensor


def sampled_loss(loss: Any) -> Callable[[Tensor, Tensor, Tensor], Sampled]:
    """Returns a function of predictions, sample weights (None for 1) and an integer that the random numbers go by.

    Such a loss is a negative log-likelihood: of classes by softmax, of bits by sigmoid, or of numbers with variance ½.
    With weights each term counts by the root of its weight, so that its square counts by the weight.

    Args:
        loss: of a compiled model.

    Raises:
        ValueError: it is no such loss, or no mean over all labels.
    """
    given = loss if isinstance(loss, (dict, list, tuple)) else keras.losses.get(loss)
    kinds = (k for k, (classes, functions) in _LOSSES.items() if isinstance(given, classes) or given in functions)
    kind = next(kinds, "")
    config = given.get_config() if isinstance(given, keras.Loss) else {}
    if not kind:
        raise ValueError(
            "Labels can be drawn for one output and the losses categorical_crossentropy, "
            "sparse_categorical_crossentropy, binary_crossentropy and mse. Use SophiaH or AdaHessian for others. "
            f"Received: loss={loss!r}"
        )
    unfit = {
        "reduction": config.get("reduction", "mean") not in ("mean", "sum_over_batch_size"),
        "axis": config.get("axis", -1) != -1,
        "ignore_class": config.get("ignore_class") is not None,
    }
    for name in (name for name, found in unfit.items() if found):
        raise ValueError(
            f"Labels cannot be drawn for {type(given).__name__} with {name}={config[name]!r}. Use its default, or "
            "SophiaH or AdaHessian."
        )
    return lambda y, weight, update: _drawn(kind, bool(config.get("from_logits")), y, weight, update)


def _drawn(kind: str, from_logits: bool, y: Tensor, weight: Tensor, update: Tensor) -> Sampled:
    mask, y = mask_of(y), ops.cast(y, "float32")
    fixed = ops.stop_gradient(y)
    if kind == "softmax":
        logs = ops.log_softmax(y, axis=-1) if from_logits else ops.log(ops.maximum(y, _SMALLEST))
        u = ops.minimum(uniform(fixed, update, _PLACES) + 2.0**-25, 1 - 2.0**-24)  # neither 0 nor, by rounding, 1
        noise = -ops.log(-ops.log(u))
        label = ops.argmax(ops.stop_gradient(logs) + noise, axis=-1)
        terms = -ops.sum(logs * ops.one_hot(label, y.shape[-1], dtype="float32"), axis=-1)
    elif kind == "sigmoid":
        share = ops.sigmoid(fixed) if from_logits else fixed
        label = ops.cast(uniform(fixed, update, _PLACES) < share, "float32")
        terms = ops.binary_crossentropy(label, y, from_logits=from_logits)
    else:
        terms = ops.square(y - (fixed + 0.5**0.5 * normal(fixed, update, _ROWS)))
    count = ops.cast(ops.size(terms), "float32")
    for scale in (mask, weight):
        if scale is not None:
            scale = ops.cast(scale, "float32")
            scale = scale * ops.cast(ops.size(scale), "float32") / ops.sum(scale) if scale is mask else scale
            terms = terms * ops.sqrt(_beside(scale, terms))
    return Sampled(ops.sum(terms) / count, count)


def _beside(scale: Tensor, terms: Tensor) -> Tensor:
    """Returns weights in a shape that broadcasts against the terms of a loss."""
    if len(scale.shape) == len(terms.shape) + 1:
        return ops.squeeze(scale, axis=-1)
    return ops.reshape(scale, (*ops.shape(scale), *[1] * (len(terms.shape) - len(scale.shape))))
