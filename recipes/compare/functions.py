"""Functions of two variables whose minimum is known, and the way of an optimizer on each."""

import math
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

SMALLEST = 1e-12
"""Of a distance from the minimum, for its logarithm."""


class Function(NamedTuple):
    """A function to be made small."""

    value: Callable[[Any, Any, Any], Any]
    """Function of `keras.ops` and the two variables; at its lowest it is 0."""
    start: tuple[float, float]
    minimum: tuple[float, float]
    """One of those where it is 0."""
    window: tuple[float, float, float, float]
    """What a picture shows: from and to, of either variable."""


def _rastrigin(ops: Any, x: Any, y: Any) -> Any:
    return 20 + x**2 + y**2 - 10 * (ops.cos(2 * math.pi * x) + ops.cos(2 * math.pi * y))


def _styblinski(ops: Any, x: Any, y: Any) -> Any:
    return sum(v**4 - 16 * v**2 + 5 * v for v in (x, y)) / 2 + 78.33233140754282


FUNCTIONS = {
    "quadratic, condition 1000": Function(
        lambda ops, x, y: (x**2 + 1000 * y**2) / 2, (-2.0, 0.5), (0.0, 0.0), (-2.5, 1.0, -0.8, 0.8)
    ),
    "Rosenbrock": Function(
        lambda ops, x, y: (1 - x) ** 2 + 100 * (y - x**2) ** 2, (-1.5, 2.0), (1.0, 1.0), (-2.0, 2.0, -1.0, 3.0)
    ),
    "Beale": Function(
        lambda ops, x, y: sum((c - x + x * y**n) ** 2 for n, c in ((1, 1.5), (2, 2.25), (3, 2.625))),
        (1.0, 1.5),
        (3.0, 0.5),
        (-0.5, 4.0, -1.5, 2.0),
    ),
    "Himmelblau": Function(
        lambda ops, x, y: (x**2 + y - 11) ** 2 + (x + y**2 - 7) ** 2, (0.0, -1.0), (3.0, 2.0), (-5.0, 5.0, -5.0, 5.0)
    ),
    "Styblinski-Tang": Function(_styblinski, (-0.5, -4.5), (-2.903534, -2.903534), (-5.0, 5.0, -5.0, 5.0)),
    "Rastrigin": Function(_rastrigin, (2.4, 1.7), (0.0, 0.0), (-3.0, 3.0, -3.0, 3.0)),
}


class Descent(NamedTuple):
    """What an optimizer has come to on all functions."""

    values: list[float]
    """The mean logarithm of the values, at the start and after each step."""
    ways: dict[str, Any]
    """The points on each function."""
    seconds: float
    """Of a step, on all functions together, without the compilation."""
    bytes: int
    """Of the optimizer's state."""


def descend(make: Callable[[], Any], steps: int, seed: int) -> Descent:
    """Returns the way of an optimizer.

    Args:
        make: makes the optimizer; each function has one of its own.
        steps: updates.
        seed: 0 begins at the point of the function, another one near it.
    """
    rng, values, ways = np.random.default_rng(seed), list[Any](), dict[str, Any]()
    size, seconds = 0, 0.0
    for name, function in FUNCTIONS.items():
        start = np.array(function.start) + (0.1 * rng.normal(size=2) if seed else 0)
        optimizer = make()
        way, each = _walk(function, optimizer, start, steps)
        size += sum(int(np.prod(v.shape)) * 4 for v in optimizer.variables if len(v.shape))
        seconds += each
        with np.errstate(all="ignore"):
            found = np.asarray(function.value(np, *way.T), float)
        values.append(np.log10(np.maximum(found, SMALLEST)))
        ways[name] = np.round(way, 6).tolist()
    return Descent(np.mean(values, axis=0).tolist(), ways, seconds, size)


def _walk(function: Function, optimizer: Any, start: Any, steps: int) -> tuple[Any, float]:
    """Returns the points on the way, the first one included, [steps + 1, 2], and the seconds of a step."""
    import keras
    import tensorflow as tf
    from keras import ops

    w = keras.Variable(start, dtype="float32", name="w")
    optimizer.build([w])

    @tf.function(autograph=False)
    def step() -> Any:
        with tf.GradientTape() as tape:
            loss = optimizer.scale_loss(function.value(ops, w.value[0], w.value[1]))
        optimizer.apply([tape.gradient(loss, w.value)], [w])
        return tf.identity(w.value)

    way, times = [np.asarray(start, "float32")], list[float]()
    for _ in range(steps):
        begun = time.perf_counter()
        way.append(step().numpy() if np.isfinite(way[-1]).all() else way[-1])
        times.append(time.perf_counter() - begun)
    return np.stack(way).astype(float), statistics.median(times)
