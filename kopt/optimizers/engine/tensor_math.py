"""Pure functions from tensors to tensors, shared by the rules."""

import math
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

Tensor = Any

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


def ema(old: Tensor, new: Tensor, beta: float) -> Tensor:
    """Exponential moving average, β old + (1-β) new."""
    return beta * old + (1.0 - beta) * new


def debias(beta: float, t: Tensor) -> Tensor:
    """Weight of t observations in an average that began at zero, 1 - βᵗ.

    Written with expm1 because 1 - βᵗ cancels in float32: at β = 0.999, t = 1 it is off by 1e-5.
    """
    return -ops.expm1(t * (math.log(beta) if beta else -math.inf))


def decays(s: Any) -> bool:
    """Whether the weight of a namespace decays; λ is a number, or a tensor where it follows a schedule."""
    return not isinstance(s.weight_decay, float) or s.weight_decay > 0


def with_decay(u: Tensor, w: Tensor, s: Any) -> Tensor:
    """Returns u + λ w."""
    return u + s.weight_decay * w if decays(s) else u


def total(x: Tensor) -> Tensor:
    """Sum over all axes."""
    return ops.sum(sums_of_blocks(x)) if is_summed_in_blocks(x.shape) else ops.sum(x)


def is_summed_in_blocks(shape: Any) -> bool:
    """Whether `sums_of_blocks` is the fast way to sum so many numbers: by XLA on a CPU.

    XLA's own sum adds one number after the other there, which takes seven times as long. Elsewhere sums are fast, and
    products may be rounded to fewer digits.
    """
    if not all(isinstance(n, int) for n in shape) or math.prod(shape) < 2**13 or keras.backend.backend() == "torch":
        return False
    return all(device.startswith("cpu") for device in keras.distribution.list_devices())


def sums_of_blocks(x: Tensor) -> Tensor:
    """Sums of equal parts of many numbers, by products with a vector of ones."""
    size = math.prod(x.shape)
    width = next((n for n in range(1024, 63, -1) if size % n == 0), 512)
    rest, x = size % width, ops.reshape(x, (-1,))
    blocks = ops.reshape(x[: size - rest], (-1, width))
    sums = ops.matmul(blocks, ops.ones((width, 1), x.dtype))[:, 0]
    return ops.append(sums, ops.sum(x[size - rest :])) if rest else sums


def mean(x: Tensor) -> Tensor:
    """Mean over all axes."""
    return total(x) / math.prod(x.shape)


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner product over all axes."""
    return total(a * b)


def sum_of_squares(x: Tensor) -> Tensor:
    """Squared Euclidean norm over all axes."""
    return total(ops.square(x))


def sums_of_rows(x: Tensor) -> Tensor:
    """Sums over the last axis."""
    if not is_summed_in_blocks(x.shape):
        return ops.sum(x, axis=-1)
    return ops.matmul(x, ops.ones((x.shape[-1], 1), x.dtype))[..., 0]


def sums_of_units(x: Tensor) -> Tensor:
    """Sums over all axes but the last, which stay as axes of length 1.

    By XLA on a CPU quarters are added until few rows are left: its own sum of columns reads a copy of x.
    """
    axes, rows = tuple(range(len(x.shape) - 1)), math.prod(x.shape[:-1])
    if not is_summed_in_blocks(x.shape):
        return ops.sum(x, axis=axes, keepdims=True)
    parts, rest = [], ops.reshape(x, (rows, -1))
    while rows > 64:
        quarter = rows // 4
        parts.append(rest[4 * quarter :])
        rest = sum((rest[i * quarter : (i + 1) * quarter] for i in (1, 2, 3)), rest[:quarter])
        rows = quarter
    sums = sum((ops.sum(part, axis=0) for part in parts if part.shape[0]), ops.sum(rest, axis=0))
    return ops.reshape(sums, (1,) * len(axes) + (-1,))


def beside(numbers: Tensor, x: Tensor) -> Tensor:
    """Gives a number for each row of x, or one for all rows, the shape that broadcasts against x."""
    return numbers[(..., *[None] * (len(x.shape) - len(numbers.shape)))]


def soft(x: Tensor, threshold: Tensor) -> Tensor:
    """Soft threshold, sign(x) max(|x| - threshold, 0): the proximal step of an l1 penalty."""
    return ops.sign(x) * ops.maximum(ops.abs(x) - threshold, 0.0)


def rectification(beta: float, t: Tensor, threshold: float) -> Tensor:
    """Factor of arXiv:1908.03265 for a rate from t squares: √((ρ-4)(ρ-2) ρ∞ / ((ρ∞-4)(ρ∞-2) ρ)), 0 while ρ ≤ threshold.

    ρ = ρ∞ - 2 t βᵗ / (1-βᵗ), ρ∞ = 2/(1-β) - 1; threshold is at least 4.
    """
    last = 2.0 / (1.0 - beta) - 1.0
    if last <= threshold:
        return ops.zeros_like(t)
    rho = last - 2.0 * t * (1.0 / debias(beta, t) - 1.0)
    safe = ops.maximum(rho, threshold)
    r = ops.sqrt((safe - 4.0) * (safe - 2.0) * last / ((last - 4.0) * (last - 2.0) * safe))
    return ops.where(rho > threshold, r, 0.0)


def round_stochastically(x: Tensor, dtype: str, noise: Tensor) -> Tensor:
    """Casts to a shorter float so that the expectation of the result is x.

    Counts x in units of the last place of `dtype` and rounds up with the probability of the fraction. bfloat16 is the
    upper half of a float32, so that its fraction is the lower half.

    Args:
        x: float32 or float64, any shape.
        dtype: "bfloat16" or "float16".
        noise: uniform in [0, 1), shape of x.
    """
    x = ops.cast(x, "float32")
    if dtype == "bfloat16":
        bits = ops.view(x, "int32") + ops.cast(noise * 2.0**16, "int32")
        rounded = ops.view(ops.bitwise_and(bits, -(2**16)), "float32")
        return ops.cast(ops.where(ops.isfinite(x), rounded, x), dtype)
    exponent = ops.right_shift(ops.view(ops.maximum(ops.abs(x), 2.0**-14), "int32"), 23)
    unit = ops.view(ops.left_shift(exponent - 10, 23), "float32")
    return ops.cast(ops.floor(x / unit + ops.cast(noise, "float32")) * unit, dtype)


# Elementary functions that XLA computes one number at a time on a CPU, of operations that it does on vectors. Those of
# float32 are made here; float64 keeps the functions of the backend.


def arctan2(y: Tensor, x: Tensor) -> Tensor:
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


def cube_root(x: Tensor) -> Tensor:
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


def normal_quantile(p: Tensor) -> Tensor:
    """Returns z ≥ 0 that a normal number exceeds with the probability p in [2⁻²⁶, 1/2], to 1e-6."""
    spread = -ops.log(4.0 * p * (1.0 - p))
    near, far = _polynomial(NEAR, spread - 2.5), _polynomial(FAR, ops.sqrt(spread) - 3.0)
    return math.sqrt(2) * (1.0 - 2.0 * p) * ops.where(spread < 5.0, near, far)


def is_due(t: Tensor, every: int) -> Tensor:
    """Returns whether update t is the first one, or one of every k from there: 1, 1+k, 1+2k ..."""
    return ops.equal(ops.floor((t - 1) / every) * every, t - 1)


def of_largest(x: Tensor) -> Tensor:
    """Returns matrices in units of their largest elements, so that their squares can be summed; zeros stay."""
    largest = ops.max(ops.abs(x), axis=(-2, -1), keepdims=True)
    return x / ops.where(largest > 0, largest, 1.0)


def _polynomial(coefficients: Sequence[float], x: Any) -> Any:
    value = coefficients[-1]
    for coefficient in coefficients[-2::-1]:
        value = value * x + coefficient
    return value


def _is_double(x: Any) -> bool:
    return bool(keras.backend.standardize_dtype(x.dtype) == "float64")


def _is_negative(x: Tensor) -> Tensor:
    """Tells -0 from 0, too."""
    return ops.view(x, "int32") < 0
