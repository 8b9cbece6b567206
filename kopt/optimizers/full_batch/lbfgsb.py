"""L-BFGS-B."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from kopt.declare import Count, checked
from kopt.optimizers.full_batch.bidiagonal import Vector
from kopt.optimizers.full_batch.bounded_steps import EPSILON, Box, Curvature, lowest_point
from kopt.optimizers.full_batch.result import Result

SUFFICIENT, FLATNESS, LONGEST = 1e-3, 0.9, 20
"""c₁ and c₂ of the strong Wolfe conditions, and evaluations of one search."""
Evaluate = Callable[[], tuple[Any, Sequence[Any]]]


class LBFGSB:
    r"""L-BFGS-B: the quasi-Newton method for variables within bounds.

        x̂ = least point of a quadratic model within the bounds: kopt/optimizers/full_batch/bounded_steps.py
        x ← x + a (x̂ - x)               a by a search for the strong Wolfe conditions, never over a bound

    For `kopt.minimize(..., optimizer=kopt.LBFGSB(lower=0.0))`: variables of a function, or the weights of a model, are
    put within their bounds at first, and stay there. The run ends when the projected gradient is within the tolerance:
    how far a step along the gradient leads before it meets a bound. That is the `gradient_norm` of the result.

    Memory: S and Y, 2 × `history` vectors like the variables, and as many again at a step, in float64 on the host.

    Args:
        lower: least values: a number for all variables, or a list with an entry each: a number, an array of the shape
            of the variable, or None where there is no bound. An array for a single variable needs no list.
        upper: largest values, likewise.
        history: ≥ 1, number of pairs.

    Raises:
        ValueError: bounds are not finite numbers or infinite, do not fit the variables, or a lower one is above its
            upper one; most of it only in `minimize`.

    Agrees with SciPy's `L-BFGS-B` in the method, not in each step: its line search is another one.
    Reference: Byrd, Lu, Nocedal and Zhu, 1995, doi:10.1137/0916069.
    """

    @checked
    def __init__(self, *, lower: Any = None, upper: Any = None, history: Count = 10) -> None:
        self.lower, self.upper, self.history = lower, upper, history

    def __repr__(self) -> str:
        """Returns the call that makes it."""
        return f"LBFGSB(lower={self.lower!r}, upper={self.upper!r}, history={self.history!r})"

    def minimize(self, evaluate: Evaluate, variables: Sequence[Any], tolerance: float, most: int) -> Result:
        """Minimizes a function of variables.

        Args:
            evaluate: returns value and gradients at the variables as they are.
            variables: of Keras.
            tolerance: ≥ 0; the largest element of the projected gradient at the end.
            most: ≥ 1, evaluations.
        """
        box = Box(
            np.concatenate([_bounds("lower", self.lower, -np.inf, v, i, variables) for i, v in enumerate(variables)]),
            np.concatenate([_bounds("upper", self.upper, np.inf, v, i, variables) for i, v in enumerate(variables)]),
        )
        if (box.lower > box.upper).any():
            raise ValueError("LBFGSB: a lower bound is above its upper bound, or no number of the variable is between.")
        function = _Function(evaluate, variables, box)
        here = function.at(function.position())
        boxed = bool(np.isfinite(box.lower).all() and np.isfinite(box.upper).all())
        steps, changes, moved = np.zeros((0, len(here.x))), np.zeros((0, len(here.x))), False
        while True:
            norm = box.slope(here.x, here.g)
            if norm <= tolerance:
                return Result(True, f"the projected gradient is within {tolerance:g}", function.count, here.value, norm)
            if not (np.isfinite(here.value) and np.isfinite(norm)):
                reason = "loss or gradient are not finite at the start"
                return Result(False, reason, function.count, here.value, norm)
            if function.count >= most:
                reason = f"{function.count} evaluations were made"
                return Result(False, reason, function.count, here.value, norm)
            there = None
            try:
                d = lowest_point(here.x, here.g, box, Curvature.of(steps, changes)) - here.x
                first = 1.0 if moved or boxed else min(1.0, 1 / float(np.linalg.norm(d)))
                farthest = box.reach(here.x, d) if moved else 1.0
                there = _search(function, here, d, first, max(1.0, farthest), most)
            except np.linalg.LinAlgError:
                pass
            if there is None and not len(steps):
                function.move(here.x)
                reason = "no step decreases the loss at this precision"
                if function.count >= most:
                    reason = f"{function.count} evaluations were made"
                return Result(False, reason, function.count, here.value, norm)
            if there is None:  # the history has lost its digits
                steps, changes = steps[:0], changes[:0]
                continue
            step, change = there.x - here.x, there.g - here.g
            if step @ change > EPSILON * abs(here.g @ step):
                steps = np.concatenate([steps, step[None]])[-self.history :]
                changes = np.concatenate([changes, change[None]])[-self.history :]
            here, moved = there, True


class _Point(NamedTuple):
    """A point with value and gradient."""

    x: Vector
    value: float
    g: Vector


class _Function:
    """A function of one vector of all variables, in float64, and how often it was evaluated."""

    def __init__(self, evaluate: Evaluate, variables: Sequence[Any], box: Box) -> None:
        self._evaluate, self._variables, self._box = evaluate, variables, box
        self.count = 0
        self.precision = max(float(np.finfo(_dtype(v)).eps) for v in variables)

    def position(self) -> Vector:
        """Returns the variables as they are."""
        return np.concatenate([ops.convert_to_numpy(v).astype("float64").ravel() for v in self._variables])

    def move(self, x: Vector) -> Vector:
        """Puts the variables to the nearest point within the bounds, and returns it as they hold it."""
        ends = np.cumsum([int(np.prod(v.shape)) for v in self._variables])
        for v, part in zip(self._variables, np.split(self._box.nearest(x), ends[:-1]), strict=True):
            v.assign(part.reshape(v.shape).astype(_dtype(v)))
        return self.position()

    def at(self, x: Vector) -> _Point:
        """Returns the point at x, or next to it."""
        x = self.move(x)
        value, gradients = self._evaluate()
        self.count += 1
        parts = [ops.convert_to_numpy(g).astype("float64").ravel() for g in gradients]
        return _Point(x, float(ops.convert_to_numpy(value)), np.concatenate(parts))


def _search(f: _Function, here: _Point, d: Vector, first: float, farthest: float, most: int) -> _Point | None:
    """Returns a point along d where the strong Wolfe conditions hold, or the bound is reached; None if there is none.

    Of a search that finds none the lowest point counts.
    """
    slope = float(here.g @ d)
    if not slope < 0:
        return None
    noise = 2 * f.precision * (abs(here.value) + float(np.abs(here.g) @ np.abs(here.x)))
    low: tuple[float, _Point, float] = (0.0, here, slope)
    high: tuple[float, _Point, float] | None = None
    a = min(first, farthest)
    for count in range(LONGEST):
        if f.count >= most:
            break
        there = f.at(here.x + a * d)
        rise = float(there.g @ d)
        finite = bool(np.isfinite(there.value) and np.isfinite(there.g).all())
        enough = finite and (
            there.value <= here.value + SUFFICIENT * a * slope
            or (there.value <= here.value + noise and rise <= (2 * SUFFICIENT - 1) * slope)
        )
        if not enough or there.value > low[1].value + noise:
            high = (a, there, rise)
        elif abs(rise) <= -FLATNESS * slope or (rise < 0 and a >= farthest):
            return there
        else:
            if rise * ((high[0] if high else np.inf) - low[0]) >= 0:
                high = low
            low = (a, there, rise)
        if high is None:
            a = min(farthest, a * float(np.clip(_minimizer(0.0, here.value, slope, a, there.value, rise), 2.0, 5.0)))
        else:
            width = high[0] - low[0]
            share = _minimizer(0.0, low[1].value, low[2] * width, 1.0, high[1].value, high[2] * width)
            share = 0.1 if not np.isfinite(high[1].value) else float(np.clip(share, 0.05, 0.95))
            a = low[0] + (0.5 if count > 3 and count % 2 else share) * width
    return low[1] if low[0] > 0 else None


def _minimizer(a: float, fa: float, da: float, b: float, fb: float, db: float) -> float:
    """Returns where the cubic through two points and their slopes is least, as a share of b; infinite if nowhere."""
    first, last, rise = da * (b - a), db * (b - a), fb - fa
    cubic, square = first + last - 2 * rise, 3 * rise - 2 * first - last
    with np.errstate(all="ignore"):
        root = square + np.sqrt(max(square * square - 3 * cubic * first, 0.0))
    return float(-first / root) if root > 0 else float("inf")


def _dtype(variable: Any) -> Any:
    name = keras.backend.standardize_dtype(variable.dtype)
    return np.dtype("float32") if name == "bfloat16" else np.dtype(name)


def _bounds(name: str, given: Any, nowhere: float, variable: Any, i: int, variables: Sequence[Any]) -> Vector:
    """Returns the bounds of the elements of a variable, rounded to numbers of its type that are within."""
    if isinstance(given, list | tuple):
        if len(given) != len(variables):
            raise ValueError(f"LBFGSB: {name} has {len(given)} entries for {len(variables)} variables. Give one each.")
        given = given[i]
    elif np.ndim(given) and len(variables) > 1:
        raise ValueError(f"LBFGSB: {name} is one array for {len(variables)} variables. Give a list with an entry each.")
    try:
        exact = np.broadcast_to(np.asarray(nowhere if given is None else given, "float64"), variable.shape).ravel()
    except (TypeError, ValueError):
        raise ValueError(
            f"LBFGSB: {name} must be a number, an array of shape {tuple(variable.shape)} or None for "
            f"{variable.path!r}. Received: {given!r}"
        ) from None
    if np.isnan(exact).any():
        raise ValueError(f"LBFGSB: {name} has a NaN.")
    kept = exact.astype(_dtype(variable))
    outside = kept < exact if nowhere < 0 else kept > exact
    inwards = np.nextafter(kept, np.asarray(-nowhere, kept.dtype))
    return np.where(outside, inwards, kept).astype("float64")
