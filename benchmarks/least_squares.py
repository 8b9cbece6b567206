"""Fits the nonlinear regressions of NIST's Statistical Reference Datasets from both starting points.

    python -m benchmarks.least_squares FOLDER [--only MGH10 Thurber] [--write]

FOLDER has the files (Misra1a.dat, ...) of https://www.itl.nist.gov/div898/strd/nls/nls_main.shtml. A fit is right when
it has six digits of each certified parameter. Beside `kopt.LevenbergMarquardt` stands SciPy's
`least_squares(method="lm")`, which is MINPACK's and gets the matrix of derivatives.
"""

import argparse
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from keras import ops

import kopt
from benchmarks import _turns

MOST = 2000
"""Evaluations of a fit."""
Model = Callable[[Any, Any], Any]


def _gauss(b: Any, x: Any) -> Any:
    return (
        b[0] * ops.exp(-b[1] * x)
        + b[2] * ops.exp(-(((x - b[3]) / b[4]) ** 2))
        + b[5] * ops.exp(-(((x - b[6]) / b[7]) ** 2))
    )


def _exponentials(b: Any, x: Any) -> Any:
    return b[0] * ops.exp(-b[1] * x) + b[2] * ops.exp(-b[3] * x) + b[4] * ops.exp(-b[5] * x)


def _cubics(b: Any, x: Any) -> Any:
    return (b[0] + b[1] * x + b[2] * x**2 + b[3] * x**3) / (1 + b[4] * x + b[5] * x**2 + b[6] * x**3)


def _seasons(b: Any, x: Any) -> Any:
    def wave(cosine: Any, sine: Any, months: Any) -> Any:
        return cosine * ops.cos(2 * np.pi * x / months) + sine * ops.sin(2 * np.pi * x / months)

    return b[0] + wave(b[1], b[2], 12.0) + wave(b[4], b[5], b[3]) + wave(b[7], b[8], b[6])


MODELS: dict[str, Model] = {
    "Bennett5": lambda b, x: b[0] * (b[1] + x) ** (-1 / b[2]),
    "BoxBOD": lambda b, x: b[0] * (1 - ops.exp(-b[1] * x)),
    "Chwirut1": lambda b, x: ops.exp(-b[0] * x) / (b[1] + b[2] * x),
    "Chwirut2": lambda b, x: ops.exp(-b[0] * x) / (b[1] + b[2] * x),
    "DanWood": lambda b, x: b[0] * x ** b[1],
    "ENSO": _seasons,
    "Eckerle4": lambda b, x: b[0] / b[1] * ops.exp(-(((x - b[2]) / b[1]) ** 2) / 2),
    "Gauss1": _gauss,
    "Gauss2": _gauss,
    "Gauss3": _gauss,
    "Hahn1": _cubics,
    "Kirby2": lambda b, x: (b[0] + b[1] * x + b[2] * x**2) / (1 + b[3] * x + b[4] * x**2),
    "Lanczos1": _exponentials,
    "Lanczos2": _exponentials,
    "Lanczos3": _exponentials,
    "MGH09": lambda b, x: b[0] * (x**2 + x * b[1]) / (x**2 + x * b[2] + b[3]),
    "MGH10": lambda b, x: b[0] * ops.exp(b[1] / (x + b[2])),
    "MGH17": lambda b, x: b[0] + b[1] * ops.exp(-x * b[3]) + b[2] * ops.exp(-x * b[4]),
    "Misra1a": lambda b, x: b[0] * (1 - ops.exp(-b[1] * x)),
    "Misra1b": lambda b, x: b[0] * (1 - (1 + b[1] * x / 2) ** -2),
    "Misra1c": lambda b, x: b[0] * (1 - (1 + 2 * b[1] * x) ** -0.5),
    "Misra1d": lambda b, x: b[0] * b[1] * x / (1 + b[1] * x),
    "Nelson": lambda b, x: b[0] - b[1] * x[:, 0] * ops.exp(-b[2] * x[:, 1]),
    "Rat42": lambda b, x: b[0] / (1 + ops.exp(b[1] - b[2] * x)),
    "Rat43": lambda b, x: b[0] / (1 + ops.exp(b[1] - b[2] * x)) ** (1 / b[3]),
    "Roszman1": lambda b, x: b[0] - b[1] * x - ops.arctan(b[2] / (x - b[3])) / np.pi,
    "Thurber": _cubics,
}
"""y as a function of the parameters and x; of Nelson's, the logarithm of y."""


class Problem(NamedTuple):
    """A regression: its model, two starting points, the certified parameters, and the data."""

    model: Model
    starts: Sequence[Any]
    certified: Any
    x: Any
    y: Any


def read(folder: Path, name: str) -> Problem:
    """Reads a file of NIST."""
    lines = (folder / f"{name}.dat").read_text(encoding="utf-8").splitlines()
    numbers = [re.findall(r"\S+", line.split("=")[1]) for line in lines if re.match(r"\s*b\d+ =\s", line)]
    first, second, certified = np.array([row[:3] for row in numbers], "float64").T
    begin = max(i for i, line in enumerate(lines) if line.startswith("Data:")) + 1
    data = np.array([line.split() for line in lines[begin:] if line.strip()], "float64")
    y, x = data[:, 0], data[:, 1] if data.shape[1] == 2 else data[:, 1:]
    return Problem(MODELS[name], (first, second), certified, x, np.log(y) if name == "Nelson" else y)


def digits(found: Any, certified: Any) -> float:
    """Returns how many digits of the worst parameter are right."""
    wrong = np.max(np.abs(found - certified) / np.abs(certified))
    return float(-np.log10(np.maximum(wrong, 1e-16))) if np.isfinite(wrong) else -np.inf


def fitted(problem: Problem, start: Any) -> tuple[Any, kopt.Result]:
    """Returns the parameters that kopt finds."""
    b = keras.Variable(start, dtype="float64")
    x, y = (ops.convert_to_tensor(a, "float64") for a in (problem.x, problem.y))

    def residuals() -> Any:
        return problem.model([b.value[i] for i in range(len(start))], x) - y

    chosen = kopt.LevenbergMarquardt()
    result = kopt.minimize(residuals, variables=[b], optimizer=chosen, tolerance=0.0, max_evaluations=MOST)
    return ops.convert_to_numpy(b), result


def fitted_by_scipy(problem: Problem, start: Any) -> tuple[Any, int]:
    """Returns the parameters that SciPy finds, and how often it evaluated the residuals."""
    import tensorflow as tf
    from scipy.optimize import least_squares

    x, y = (tf.constant(a, "float64") for a in (problem.x, problem.y))

    @tf.function
    def both(b: Any) -> tuple[Any, Any]:
        with tf.GradientTape() as tape:
            tape.watch(b)
            r = problem.model(tf.unstack(b), x) - y
        return r, tape.jacobian(r, b)

    tight = {"xtol": 1e-15, "ftol": 1e-15, "gtol": 1e-15, "max_nfev": MOST}
    try:
        found = least_squares(
            lambda b: both(tf.constant(b))[0].numpy(),
            start,
            lambda b: both(tf.constant(b))[1].numpy(),
            method="lm",
            **tight,
        )
    except ValueError:  # residuals that are not finite
        return np.full(len(start), np.nan), 0
    return found.x, found.nfev


def table(folder: Path, names: Sequence[str]) -> list[str]:
    """Returns the fits as lines of Markdown."""
    lines = [
        "| problem | start | kopt: digits | evaluations | SciPy: digits | evaluations |",
        "|---|---|---:|---:|---:|---:|",
    ]
    right = np.zeros(2, int)
    for name in names:
        problem = read(folder, name)
        for place, start in zip(("far", "near"), problem.starts, strict=True):
            b, result = fitted(problem, start)
            other, count = fitted_by_scipy(problem, start)
            found = [digits(each, problem.certified) for each in (b, other)]
            right += np.array(found) >= 6
            lines.append(f"| {name} | {place} | {found[0]:.1f} | {result.evaluations} | {found[1]:.1f} | {count} |")
            print(lines[-1], flush=True)
    return [*lines, "", f"Six digits in {right[0]} (kopt) and {right[1]} (SciPy) of {2 * len(names)} fits."]


def main() -> None:
    """Fits the problems that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="with NIST's files")
    parser.add_argument("--only", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--write", action="store_true", help="put the table into benchmarks/README.md")
    given = parser.parse_args()
    lines = table(given.folder, given.only)
    print(lines[-1])
    if given.write:
        _turns.insert("\n".join(lines), "least squares")


if __name__ == "__main__":
    main()
