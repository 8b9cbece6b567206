"""Minimizes functions within bounds by `kopt.LBFGSB`, and by SciPy's L-BFGS-B beside it.

    python -m benchmarks.bounded [--write]

Both keep ten pairs and end when the projected gradient is within 1e-5, which alone ends SciPy here. Problems HS are of
Hock and Schittkowski, Test Examples for Nonlinear Programming Codes, 1981; the extended Rosenbrock function is that of
the driver of L-BFGS-B.
"""

import os
from collections.abc import Callable
from typing import Any, NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from keras import ops

import kopt
from benchmarks import _turns

TOLERANCE, PAIRS, MOST = 1e-5, 10, 2000


class Problem(NamedTuple):
    """A function of a vector, its bounds, and where to begin."""

    function: Callable[[Any], Any]
    lower: Any
    upper: Any
    start: Any


def _rosenbrock(x: Any) -> Any:
    return 100 * (x[1] - x[0] ** 2) ** 2 + (1 - x[0]) ** 2


def _beale(x: Any) -> Any:
    return sum((c - x[0] * (1 - x[1] ** k)) ** 2 for k, c in ((1, 1.5), (2, 2.25), (3, 2.625)))


def _colville(x: Any) -> Any:
    first = 100 * (x[1] - x[0] ** 2) ** 2 + (1 - x[0]) ** 2 + 90 * (x[3] - x[2] ** 2) ** 2 + (1 - x[2]) ** 2
    return first + 10.1 * ((x[1] - 1) ** 2 + (x[3] - 1) ** 2) + 19.8 * (x[1] - 1) * (x[3] - 1)


def _extended(x: Any) -> Any:
    return (x[0] - 1) ** 2 + 4 * ops.sum((x[1:] - x[:-1] ** 2) ** 2)


def _logarithms(x: Any) -> Any:
    return ops.sum(ops.log(x - 2) ** 2 + ops.log(10 - x) ** 2) - ops.prod(x) ** 0.2


def _quadratic(size: int) -> Problem:
    rng = np.random.default_rng(0)
    turn, _ = np.linalg.qr(rng.normal(size=(size, size)))
    matrix = turn @ np.diag(10 ** np.linspace(0, 3, size)) @ turn.T
    target = rng.normal(size=size)
    a, b = (ops.convert_to_tensor(x, "float64") for x in (matrix, matrix @ target))
    return Problem(lambda x: ops.sum(x * ops.matmul(a, x)) / 2 - ops.sum(b * x), -0.5, 0.5, np.zeros(size))


def _positive_squares(rows: int, size: int) -> Problem:
    rng = np.random.default_rng(1)
    matrix = rng.uniform(size=(rows, size))
    wanted = matrix @ np.maximum(rng.normal(size=size), 0) + 0.1 * rng.normal(size=rows)
    a, b = (ops.convert_to_tensor(x, "float64") for x in (matrix, wanted))
    return Problem(lambda x: ops.sum((ops.matmul(a, x) - b) ** 2) / 2, 0.0, np.inf, np.ones(size))


def problems() -> dict[str, Problem]:
    """Returns the problems by name."""
    odd = np.where(np.arange(25) % 2 == 0, 1.0, -100.0)
    return {
        "HS1, Rosenbrock": Problem(_rosenbrock, [-np.inf, -1.5], np.inf, [-2.0, 1.0]),
        "HS2, Rosenbrock": Problem(_rosenbrock, [-np.inf, 1.5], np.inf, [-2.0, 1.0]),
        "HS3": Problem(lambda x: x[1] + 1e-5 * (x[1] - x[0]) ** 2, [-np.inf, 0.0], np.inf, [10.0, 1.0]),
        "HS4": Problem(lambda x: (x[0] + 1) ** 3 / 3 + x[1], [1.0, 0.0], np.inf, [1.125, 0.125]),
        "HS5": Problem(
            lambda x: ops.sin(x[0] + x[1]) + (x[0] - x[1]) ** 2 - 1.5 * x[0] + 2.5 * x[1] + 1,
            [-1.5, -3.0],
            [4.0, 3.0],
            [0.0, 0.0],
        ),
        "HS38, Colville": Problem(_colville, -10.0, 10.0, [-3.0, -1.0, -3.0, -1.0]),
        "HS45": Problem(lambda x: 2 - ops.prod(x) / 120, 0.0, np.arange(1.0, 6.0), np.full(5, 2.0)),
        "HS110": Problem(_logarithms, 2.001, 9.999, np.full(10, 9.0)),
        "Beale, x ≤ 2": Problem(_beale, -4.5, [2.0, 4.5], [1.0, 1.0]),
        "extended Rosenbrock, 25": Problem(_extended, odd, 100.0, np.full(25, 3.0)),
        "quadratic, 100": _quadratic(100),
        "non-negative squares, 50": _positive_squares(80, 50),
    }


def by_kopt(problem: Problem) -> tuple[Any, kopt.Result]:
    """Returns where kopt ends."""
    x = keras.Variable(problem.start, dtype="float64")
    bounds = {k: np.array(v, "float64") for k, v in (("lower", problem.lower), ("upper", problem.upper))}
    optimizer = kopt.LBFGSB(**bounds, history=PAIRS)
    found = kopt.minimize(
        lambda: problem.function(x.value),
        variables=[x],
        optimizer=optimizer,
        tolerance=TOLERANCE,
        max_evaluations=MOST,
    )
    return x.numpy(), found


def by_scipy(problem: Problem) -> Any:
    """Returns what SciPy finds."""
    from scipy.optimize import minimize

    @tf.function
    def differentiated(x: Any) -> tuple[Any, Any]:
        with tf.GradientTape() as tape:
            tape.watch(x)
            value = problem.function(x)
        return value, tape.gradient(value, x)

    def evaluate(x: Any) -> tuple[float, Any]:
        value, gradient = differentiated(tf.constant(x))
        return float(value), gradient.numpy()

    start = np.array(problem.start, "float64")
    bounds = [*zip(*(np.broadcast_to(b, start.shape) for b in (problem.lower, problem.upper)), strict=True)]
    options = {"maxcor": PAIRS, "gtol": TOLERANCE, "ftol": 0.0, "maxfun": MOST, "maxiter": MOST}
    return minimize(evaluate, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options)


def table(rounds: int) -> list[str]:
    """Returns evaluations and minima as lines of Markdown; there is nothing to repeat."""
    lines = ["| problem | at bounds | kopt | SciPy | f by kopt | f by SciPy |", "|---|---:|---:|---:|---:|---:|"]
    counts = []
    for name, problem in problems().items():
        (x, mine), theirs = by_kopt(problem), by_scipy(problem)
        active = int(np.sum((x <= problem.lower) | (x >= problem.upper)))
        counts.append((mine.evaluations, theirs.nfev))
        ended = [mine.evaluations if mine.converged else f"{mine.evaluations} ({mine.reason})", theirs.nfev]
        cells = [name, f"{active} of {x.size}", *ended, f"{mine.loss:.8g}", f"{theirs.fun:.8g}"]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
        print(lines[-1], flush=True)
    ours, others = map(sum, zip(*counts, strict=True))
    mean = float(np.exp(np.mean([np.log(a / b) for a, b in counts])))
    together = f"{ours} evaluations against {others}; geometric mean of the ratios {mean:.2f}"
    return [*lines, "", f"{together}; {_turns.machine('Keras', 'TensorFlow', 'scipy')}"]


if __name__ == "__main__":
    _turns.main(__doc__, "bounded", 1, table)
