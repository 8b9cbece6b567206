"""Line search as a state machine: each evaluation of the function refines it. Pure, on scalars."""

from typing import Any, NamedTuple

import numpy as np
from keras import ops

from kopt.optimizers.engine.tensor_math import Tensor

SUFFICIENT = 1e-4  # share of the decrease that the slope promises, c₁
LONGEST = 20  # evaluations before the best point found has to do
FLATNESS = {"strong_wolfe": 0.9, "armijo": float("inf")}  # share of the first slope that will do, c₂
FARTHEST = 4  # evaluations, each up to five times as far, before any decrease will do
BACKTRACKING = ("length", "searching", "accepted", "value", "square", "halvings", "stalls")
"""What `backtrack` keeps."""


class Search(NamedTuple):
    """A search along φ(a) = f(x + a d), φ'(0) < 0; a point is the triple a, φ(a), φ'(a).

    The sought steps lie between `low`, which decreases φ and whose slope points to `high`, and `high`, at infinity as
    long as no step was too long.
    """

    value: Tensor
    slope: Tensor
    low: Tensor
    high: Tensor
    step: Tensor
    evaluations: Tensor


def begin(value: Tensor, slope: Tensor, step: Tensor) -> Search:
    """Returns a new search from φ(0) and φ'(0) whose first trial is `step`."""
    zero = ops.zeros_like(value)
    low = ops.stack([zero, value, slope])
    return Search(value, slope, low, ops.full_like(low, float("inf")), step, zero)


def decreased(s: Search, value: Tensor, slope: Tensor, noise: Tensor) -> Tensor:
    """Whether the trial decreases φ enough, by Armijo's condition.

    Where differences of φ drown in rounding errors, its slope tells instead: the condition holds for the parabola
    through both slopes (the approximate condition of Hager and Zhang, 2005,
    doi:10.1137/030601880).
    """
    by_value = value <= s.value + SUFFICIENT * s.step * s.slope
    by_slope = ops.logical_and(value <= s.value + noise, slope <= (2 * SUFFICIENT - 1) * s.slope)
    return ops.logical_or(by_value, by_slope)


def refine(s: Search, value: Tensor, slope: Tensor, noise: Tensor, flatness: float) -> tuple[Tensor, Tensor, Search]:
    """Takes the evaluation of the trial: value and slope at `s.step`.

    Args:
        s: the search.
        value: φ at the trial; it may overflow.
        slope: φ' at the trial.
        noise: bound on the rounding error of a value.
        flatness: c₂, the share of the first slope that an acceptable one may have (strong Wolfe condition); infinite
            for Armijo's condition alone.

    Returns:
        Whether the trial is accepted, whether the search has failed, and else the search with its next trial.
    """
    trial = ops.stack([s.step, value, slope])
    finite = ops.all(ops.isfinite(trial))
    enough = ops.logical_and(finite, decreased(s, value, slope, noise))
    evaluations = s.evaluations + 1
    spent = evaluations >= LONGEST
    far_out = ops.logical_and(evaluations >= FARTHEST, ops.logical_not(ops.isfinite(s.high[0])))
    will_do = ops.logical_or(ops.abs(slope) <= flatness * ops.abs(s.slope), ops.logical_or(spent, far_out))
    accepted = ops.logical_and(enough, will_do)

    too_long = ops.logical_not(ops.logical_and(enough, value <= s.low[1] + noise))
    turned = slope * (s.high[0] - s.low[0]) >= 0
    high = ops.where(too_long, trial, ops.where(turned, s.low, s.high))
    low = ops.where(too_long, s.low, trial)
    bracketed = ops.isfinite(high[0])
    near, far = ops.where(bracketed, low, s.low), ops.where(bracketed, high, trial)
    share = minimizer(near, far, noise)
    inside = ops.where(ops.logical_and(evaluations > 4, evaluations % 2 > 0), 0.5, ops.clip(share, 0.05, 0.95))
    share = ops.where(bracketed, inside, ops.clip(share, 2.0, 5.0))
    share = ops.where(ops.isfinite(far[1]), share, 0.1)
    step = ops.where(spent, low[0], near[0] + share * (far[0] - near[0]))
    lost = ops.logical_and(spent, ops.logical_or(low[0] <= 0, evaluations > LONGEST))
    failed = ops.logical_and(lost, ops.logical_not(accepted))
    return accepted, failed, Search(s.value, s.slope, low, high, step, evaluations)


def minimizer(near: Tensor, far: Tensor, noise: Any) -> Tensor:
    """Returns where the cubic through two points and their slopes is smallest, as a share of the way between them.

    Where the values cannot be told apart it is the parabola through the slopes. Infinite if there is no minimum.
    """
    width = far[0] - near[0]
    first, last, rise = near[2] * width, far[2] * width, far[1] - near[1]
    rise = ops.where(ops.abs(rise) <= noise, (first + last) / 2, rise)
    cubic, square = first + last - 2 * rise, 3 * rise - 2 * first - last
    root = square + ops.sqrt(ops.maximum(square * square - 3 * cubic * first, 0.0))
    sound = root > 0
    return ops.where(sound, -first / ops.where(sound, root, 1.0), float("inf"))


def idle() -> dict[str, Any]:
    """Returns what `judge` keeps, before the first evaluation."""
    return {
        "searching": 0.0,
        "accepted": 0.0,
        "stalls": 0.0,
        **Search(0.0, 0.0, np.zeros(3), np.zeros(3), 0.0, 0.0)._asdict(),
    }


def judge(
    kind: str, s: Any, value: Tensor, slope: Tensor, moved: Tensor, noise: Tensor
) -> tuple[Tensor, Tensor, Search]:
    """Takes the evaluation of a trial, or of a first point.

    Args:
        kind: "strong_wolfe", "armijo", or "fixed", which accepts every finite point.
        s: the values of `idle`, as they were.
        value: φ at the trial; it may overflow.
        slope: product of the gradient with the whole step.
        moved: square of the whole step.
        noise: bound on the rounding error of a value.

    Returns:
        Whether the point is accepted, whether the search has failed, and else the search with its next trial.
    """
    search = Search(**{k: getattr(s, k) for k in Search._fields})
    finite = ops.logical_and(ops.isfinite(value), ops.isfinite(slope))
    if kind == "fixed":
        accepted, lost = finite, ops.logical_not(finite)
    else:
        slope = slope / ops.where(s.step > 0, s.step, 1.0)
        accepted, lost, search = refine(search, value, slope, noise, FLATNESS[kind])
    searching, moved = s.searching > 0, moved > 0
    failed = ops.logical_and(searching, ops.logical_or(lost, ops.logical_not(moved)))
    return ops.where(searching, ops.logical_and(accepted, moved), finite), failed, search


def outcome(s: Any, accepted: Tensor, failed: Tensor) -> dict[str, Tensor]:
    """Returns the flags after a trial: a failed search looks at its first point again."""
    stalls = s.stalls + ops.cast(failed, s.stalls.dtype)
    return {
        "accepted": ops.cast(accepted, s.stalls.dtype),
        "searching": ops.where(failed, 0.0, ops.where(accepted, 1.0, s.searching)),
        "stalls": ops.where(ops.logical_and(accepted, s.searching > 0), 0.0, stalls),
    }


def backtrack(s: Any, length: Tensor, value: Tensor, sums: Any, noise: Tensor) -> dict[str, Tensor]:
    """Judges a trial of steepest descent: halves the step until it decreases φ enough, then doubles the next one.

    Args:
        s: the values named in `BACKTRACKING`, as they were.
        length: the step tried.
        value: φ at the trial; it may overflow.
        sums: "gg", square of the gradient at the trial, and "gx", its product with that of the last accepted point.
        noise: bound on the rounding error of a value.

    Returns:
        The new values.
    """
    gg, gx, searching = sums["gg"], sums["gx"], s.searching > 0
    enough = decreased(begin(s.value, -s.square, length), value, -gx, noise)
    finite = ops.logical_and(ops.isfinite(value), ops.isfinite(gg))
    accepted = ops.logical_and(finite, ops.logical_or(enough, ops.logical_not(searching)))
    halvings = ops.where(accepted, 0.0, s.halvings + 1)
    lost = halvings > LONGEST  # the next batch may see another function: look at it from here
    on = ops.logical_and(ops.logical_or(accepted, searching), ops.logical_not(lost))
    return {
        "length": ops.where(searching, ops.where(accepted, 2 * length, length / 2), length),
        "searching": ops.cast(on, value.dtype),
        "accepted": ops.cast(accepted, value.dtype),
        "value": ops.where(accepted, value, s.value),
        "square": ops.where(accepted, gg, s.square),
        "halvings": ops.where(lost, 0.0, halvings),
        "stalls": ops.where(ops.logical_and(accepted, searching), 0.0, s.stalls + ops.cast(lost, value.dtype)),
    }
