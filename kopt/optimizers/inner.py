"""Optimizers inside of other ones."""

import copy
from typing import Any

import keras

from kopt.declare.registry import get
from kopt.optimizers.optimizer import Optimizer


def inner(value: Any) -> Optimizer:
    """Returns the optimizer that `value` is, names or configures, to be used inside of another one.

    Raises:
        ValueError: it is none, has made a step, or cannot be used inside of another one.
    """
    if isinstance(value, str):
        value = get(value)
    elif isinstance(value, dict):
        value = keras.optimizers.deserialize(copy.deepcopy(value))  # Keras changes it
    if not isinstance(value, Optimizer) or value.built:
        raise ValueError("a kopt optimizer that has made no step yet, or the name of one")
    if value.needs_loss or hasattr(value, "observe") or list(value.rules_by_key()) != [""]:
        raise ValueError(
            "an optimizer that can be used inside of another one, which those that need the loss (LBFGS, BGD) or its "
            "curvature (SophiaG, SophiaH, AdaHessian) and Route cannot"
        )
    return value
