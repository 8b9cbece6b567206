"""Residuals of a function or of a model on all of its data, and products with the matrix of their derivatives."""

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from kopt.optimizers.engine.backends.records import Products
from kopt.optimizers.full_batch.bidiagonal import Vector


class Residuals:
    """Residuals of all data as one vector of float64 numbers, in batches.

    Args:
        products: of the function that returns the residuals of a batch.
        variables: its weights.
        batches: its arguments, each with the share of the examples, by whose root its residuals are shortened.

    Attributes:
        precision: relative rounding error of one residual.
    """

    def __init__(self, products: Products, variables: Sequence[Any], batches: Sequence[tuple[float, Any]]) -> None:
        self._products, self._variables = products, variables
        self._batches = [(math.sqrt(share), arguments) for share, arguments in batches]
        self._ends = list[int]()  # of the residuals of each batch
        self.precision = float(np.finfo(keras.backend.standardize_dtype(variables[0].dtype)).eps)

    def weights(self) -> Vector:
        """Returns the weights, one after the other."""
        return np.concatenate([ops.convert_to_numpy(v).ravel().astype("float64") for v in self._variables])

    def move(self, w: Vector) -> Vector:
        """Sets the weights, and returns the residuals there."""
        for variable, value in zip(self._variables, self.split(w), strict=True):
            variable.assign(value)
        parts = [share * _vector(self._products.value(*each)) for share, each in self._batches]
        self._ends = list(np.cumsum([len(part) for part in parts])[:-1])
        return np.concatenate(parts)

    def forward(self, v: Vector) -> Vector:
        """Returns J v."""
        tangents = self.split(v)
        return np.concatenate([s * _vector(self._products.forward(tangents, *each)) for s, each in self._batches])

    def backward(self, u: Vector) -> Vector:
        """Returns Jᵀ u."""
        total = np.zeros(sum(math.prod(v.shape) for v in self._variables))
        for part, (share, each) in zip(np.split(u, self._ends), self._batches, strict=True):
            cotangent = ops.convert_to_tensor(part, self._variables[0].dtype)
            total += share * np.concatenate([_vector(g) for g in self._products.backward(cotangent, *each)])
        return total

    def split(self, x: Vector) -> list[Any]:
        """Returns a vector as tensors like the weights."""
        ends = np.cumsum([math.prod(v.shape) for v in self._variables])[:-1]
        return [
            ops.convert_to_tensor(part.reshape(v.shape), v.dtype)
            for part, v in zip(np.split(x, ends), self._variables, strict=True)
        ]


def batch_of_fit(owner: str) -> tuple[Any, tuple[Any, Any, Any]]:
    """Returns the model whose train step is calling, and its batch: x, y and the sample weights.

    Raises:
        RuntimeError: no train step of Keras is calling.
    """
    frame = inspect.currentframe()
    while frame is not None:
        names = frame.f_locals
        if frame.f_code.co_name == "train_step" and isinstance(names.get("self"), keras.Model) and "y_pred" in names:
            return names["self"], (names["x"], names["y"], names["sample_weight"])
        frame = frame.f_back
    raise RuntimeError(
        f"{owner} needs the residuals, which gradients do not tell. Use it in fit, with the train step of Keras on the "
        "backends TensorFlow and torch, or in kopt.minimize."
    )


def residuals_of(model: Any, loss: Any, training: bool, batch: tuple[Any, Any, Any]) -> Callable[..., Any]:
    """Returns what a model is wrong by, as a function of x, y and the sample weights, whose mean square is the loss."""
    if loss is None and not model.compiled:
        raise ValueError(f"The model {model.name!r} is not compiled. Pass loss='mse' to minimize, or compile it.")
    given = keras.losses.get(model.loss if loss is None else loss)
    if not (isinstance(given, keras.losses.MeanSquaredError) or given is keras.losses.mean_squared_error):
        raise ValueError(f"LevenbergMarquardt minimizes squares. Give the loss 'mse'. Received: {given!r}")

    def function(x: Any, y: Any, sample_weight: Any) -> Any:
        predicted = model(x, training=training)
        if not ops.is_tensor(predicted) or model.losses:
            raise ValueError(
                f"LevenbergMarquardt fits models of one output without losses of their own. {model.name!r} has "
                f"{len(keras.tree.flatten(predicted))} outputs and {len(model.losses)} losses."
            )
        shape = ops.shape(predicted)
        rows = ops.reshape(predicted - ops.reshape(ops.cast(y, predicted.dtype), shape), (shape[0], -1))
        if sample_weight is not None:
            rows = rows * ops.sqrt(ops.reshape(ops.cast(sample_weight, rows.dtype), (-1, 1)))
        return rows / ops.sqrt(ops.cast(ops.size(rows), rows.dtype))

    function(*batch)  # builds the model
    return function


def _vector(x: Any) -> Vector:
    return np.asarray(ops.convert_to_numpy(x), "float64").ravel()
