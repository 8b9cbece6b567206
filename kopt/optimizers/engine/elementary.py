"""Elementary functions that XLA computes one number at a time on a CPU, from operations that it does on vectors.

Those of float32 are made here; float64, where nobody counts the time, keeps the functions of the backend.
"""

import math
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

ATAN = (
    -0.33333299,
    0.19998549,
    -0.14264242,
    0.10952186,
    -0.0840345,
    0.057957593,
    -0.031177847,
    0.010914606,
    -0.0017936218,
)
"""Of (atan(q)/q - 1)/q² in powers of q², for |q| ≤ 1: the least relative error of the whole, 2.6e-9."""
NEAR = (
    1.50140941,
    0.246640727,
    -0.00417768164,
    -0.00125372503,
    0.00021858087,
    -4.39150654e-06,
    -3.5233877e-06,
    3.43273939e-07,
    2.81022636e-08,
)
FAR = (
    2.83297682,
    1.00167406,
    0.00943887047,
    -0.0076224613,
    0.00573950773,
    -0.00367342844,
    0.00134934322,
    0.000100950558,
    -0.000200214257,
)
"""Of the inverse error function: Giles, Approximating the erfinv function, 2012."""


def arctan2(y: Any, x: Any) -> Any:
    """Returns the angle of the point (x, y), in [-π, π], to 2 units in the last place of float32."""
    if _is_double(x):
        return ops.arctan2(y, x)
    steep = ops.abs(y) > ops.abs(x)
    # No minimum and maximum: those of XLA may lose a NaN.
    low, high = ops.where(steep, ops.abs(x), ops.abs(y)), ops.where(steep, ops.abs(y), ops.abs(x))
    q = ops.where(ops.equal(low, math.inf), 1.0, low / ops.where(ops.equal(high, 0), 1.0, high))
    square = ops.square(q)
    angle = q + q * (square * _polynomial(ATAN, square))
    angle = ops.where(steep, math.pi / 2 - angle, angle)
    angle = ops.where(_is_negative(x), math.pi - angle, angle)
    return ops.where(_is_negative(y), -angle, angle)


def cube_root(x: Any) -> Any:
    """Returns the cube root of numbers ≥ 0, to 2 units in the last place of float32."""
    if _is_double(x):
        return ops.power(x, 1 / 3)
    small = x < 2.0**-60  # what is left of it in a step would underflow
    y = ops.where(small, x * 2.0**60, x)
    # A third of the bits has a third of the exponent, nearly; Halley's method takes two steps from there.
    third = ops.cast(ops.view(y, "int32"), "float32") * (1 / 3) + 709957561.0
    root = ops.view(ops.cast(third, "int32"), "float32")
    for _ in range(2):
        cube = root * root * root
        root = root - root * ((0.25 * cube - 0.25 * y) / (0.5 * cube + 0.25 * y))  # quarters, lest the sum overflows
    root = ops.where(small, root * 2.0**-20, root)
    return ops.where(ops.logical_and(x > 0, x < math.inf), root, x)


def normal_quantile(p: Any) -> Any:
    """Returns z ≥ 0 that a normal number exceeds with the probability p in [2⁻²⁶, 1/2], to 1e-6."""
    spread = -ops.log(4.0 * p * (1.0 - p))
    near, far = _polynomial(NEAR, spread - 2.5), _polynomial(FAR, ops.sqrt(spread) - 3.0)
    return math.sqrt(2) * (1.0 - 2.0 * p) * ops.where(spread < 5.0, near, far)


def _polynomial(coefficients: Sequence[float], x: Any) -> Any:
    value = coefficients[-1]
    for coefficient in coefficients[-2::-1]:
        value = value * x + coefficient
    return value


def _is_double(x: Any) -> bool:
    return bool(keras.backend.standardize_dtype(x.dtype) == "float64")


def _is_negative(x: Any) -> Any:
    """Tells -0 from 0, too."""
    return ops.view(x, "int32") < 0
