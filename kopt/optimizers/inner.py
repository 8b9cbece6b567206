"""Optimizers inside of other ones."""

import copy
from typing import Any

import keras

from kopt.declare.registry import get
from kopt.optimizers.optimizer import Optimizer


def inner(value: Any) -> Optimizer:
    """Returns the optimizer that `value` is, names or configures, to be used inside of another one at every step.

    Raises:
        ValueError: it is none, has made a step, or cannot be used inside of another one.
    """
    rule = in_turn(value)
    if rule.needs_loss:
        raise ValueError(
            "an optimizer that can be used inside of another one, which those that need the loss (LBFGS, BGD) can in "
            "Switch alone"
        )
    return rule


def in_turn(value: Any) -> Optimizer:
    """Returns the same for some steps of a training, at which it may look at the loss.

    Raises:
        ValueError: as `inner`.
    """
    if isinstance(value, str):
        value = get(value)
    elif isinstance(value, dict):
        value = keras.optimizers.deserialize(copy.deepcopy(value))  # Keras changes it
    if not isinstance(value, Optimizer) or value.built:
        raise ValueError("a kopt optimizer that has made no step yet, or the name of one")
    if hasattr(value, "observe") or list(value.rules_by_key()) != [""]:
        raise ValueError(
            "an optimizer that can be used inside of another one, which those that need the curvature of the loss "
            "(SophiaG, SophiaH, AdaHessian) and Route cannot"
        )
    return value
