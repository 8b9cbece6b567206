"""What a problem of the board is: weights, a function of them, what it is judged by, after how many steps."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

DRAWN = 24
"""Random numbers of each kind that a step has."""
Weights = Mapping[str, tuple[int, ...]]
"""Shapes of the weights by name. A name says to the rules what a weight is, as in a layer."""

VECTOR: Weights = {"w": (12,)}
MATRIX: Weights = {"kernel": (8, 8)}
NETWORK: Weights = {"hidden_kernel": (8, 8), "hidden_bias": (8,), "head_kernel": (8, 4)}
TABLE: Weights = {"embedding": (60, 4), "w": (4,)}
KINDS = (VECTOR, MATRIX, NETWORK, TABLE)
"""Problems with the same weights are compiled together."""


class Moment(NamedTuple):
    """What a step has beside the weights."""

    share: Any
    """Of the steps that are over, from 0 to 1."""
    normal: Any
    """[DRAWN] standard normal numbers, others at each step."""
    uniform: Any
    """[DRAWN] numbers from 0 to 1, others at each step."""


class Problem(NamedTuple):
    """One problem. All functions are of `keras.ops`, and take the weights as a list."""

    name: str
    family: str
    why: str
    """What an optimizer needs to pass."""
    weights: Weights
    start: Callable[[np.random.Generator], list[Any]]
    """First weights of a seed."""
    loss: Callable[[list[Any], Moment], Any]
    """What a step sees and differentiates."""
    error: Callable[[list[Any]], Any]
    """What the last weights are judged by."""
    steps: int


def near(center: Any, spread: float = 0.1) -> Callable[[np.random.Generator], list[Any]]:
    """Returns a start: one weight around a point, with a deviation of `spread`."""
    return lambda rng: [np.asarray(center) + spread * rng.normal(size=np.shape(center))]
