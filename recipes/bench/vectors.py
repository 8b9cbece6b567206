"""Problems of a vector: conditioning, valleys, flat places, scale, noise, rare coordinates, change."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from keras import ops

from .problem import VECTOR, Moment, Problem, near

(SIZE,) = VECTOR["w"]
_rng = np.random.default_rng(23)
GOAL = np.sign(_rng.normal(size=SIZE)) * _rng.uniform(0.5, 1.5, SIZE)
"""Where most minima are: every coordinate about 1 from the origin, where runs start."""
TURN = np.linalg.qr(_rng.normal(size=(SIZE, SIZE)))[0]
ORIGIN = np.zeros(SIZE)
MILD = np.logspace(0, 1, SIZE)
"""Curvatures of condition 10."""


def _mean(x: Any) -> Any:
    return ops.mean(x)


def _distance(w: list[Any], goal: Any = GOAL) -> Any:
    """Returns the mean square of the distance of a coordinate from its goal."""
    return _mean(ops.square(w[0] - goal))


def _bowl(w: list[Any], curvature: Any = 1.0, goal: Any = GOAL) -> Any:
    return ops.sum(curvature * ops.square(w[0] - goal)) / 2


def _pairs(w: list[Any]) -> tuple[Any, Any]:
    """Returns the first and the second half of the coordinates."""
    return w[0][: SIZE // 2], w[0][SIZE // 2 :]


def _plain(name: str, family: str, why: str, start: Any, error: Callable[[list[Any]], Any], steps: int) -> Problem:
    """Returns a problem whose steps see what is judged."""
    return Problem(name, family, why, VECTOR, start, lambda w, m: error(w), error, steps)


def _seen(name: str, family: str, why: str, loss: Callable[[list[Any], Moment], Any], steps: int) -> Problem:
    """Returns a problem from the origin, which is judged by the distance from `GOAL`."""
    return Problem(name, family, why, VECTOR, near(ORIGIN), loss, _distance, steps)


# ------------------------------------------------------------------------------------------------------ conditioning


def _turned(w: list[Any]) -> Any:
    x = ops.matmul(TURN.astype("float32"), w[0] - GOAL)
    return ops.sum(np.logspace(0, 3, SIZE) * ops.square(x)) / 2


CONDITIONING = [
    _plain("bowl", "conditioning", "the same curvature everywhere: whoever fails here needs other rates",
           near(ORIGIN), _bowl, 200),
    _plain("axes", "conditioning", "curvatures from 1 to 1000, each along a coordinate: rates of its own, or momentum",
           near(ORIGIN), lambda w: _bowl(w, np.logspace(0, 3, SIZE)), 300),
    _plain("rotated", "conditioning", "curvatures from 1 to 1000 across the coordinates, whose own rates do not help",
           near(ORIGIN), _turned, 500),
    _plain("kinks", "conditioning", "absolute values: the gradient is as large beside the minimum as far from it",
           near(ORIGIN), lambda w: ops.sum(MILD * ops.sqrt(ops.square(w[0] - GOAL) + 1e-8)), 300),
]  # fmt: skip

# ----------------------------------------------------------------------------------------------------------- valleys


def _rosenbrock(x: Any, y: Any) -> Any:
    return 100 * ops.square(y - ops.square(x)) + ops.square(1 - x)


def _powell(w: list[Any]) -> Any:
    a, b, c, d = (w[0][i * SIZE // 4 : (i + 1) * SIZE // 4] for i in range(4))
    square = ops.square
    return _mean(square(a + 10 * b) + 5 * square(c - d) + square(square(b - 2 * c)) + 10 * square(square(a - d)))


def _sine(w: list[Any]) -> Any:
    x, y = _pairs(w)
    return _mean(20 * ops.square(y - ops.sin(2 * x)) + 0.1 * ops.square(x - 3))


SOUTH = GOAL / np.linalg.norm(GOAL)


def _ring(w: list[Any]) -> Any:
    return 10 * ops.square(ops.sum(ops.square(w[0])) - 1) + 1 - ops.sum(w[0] * SOUTH)


VALLEYS = [
    _plain("bananas", "valleys", "six of Rosenbrock's valleys: the way turns, and its floor is nearly flat",
           near(np.repeat([-1.2, 1.0], SIZE // 2)), lambda w: _mean(_rosenbrock(*_pairs(w))), 500),
    _plain("chain", "valleys", "Rosenbrock's valley through all coordinates: one waits for the other",
           near(ORIGIN), lambda w: ops.sum(_rosenbrock(w[0][:-1], w[0][1:])), 500),
    _plain("Powell", "valleys", "Powell's function: no curvature at the minimum in half of the directions",
           near(np.repeat([3.0, -1.0, 0.0, 1.0], SIZE // 4)), _powell, 300),
    _plain("sines", "valleys", "a valley that winds: a step along the old direction leaves it",
           near(np.repeat([-3.0, 0.0], SIZE // 2)), _sine, 500),
    _plain("ring", "valleys", "half around a sphere with steep walls, from the opposite of the minimum",
           near(-SOUTH, 0.05), _ring, 200),
]  # fmt: skip

# ------------------------------------------------------------------------------------------------------- flat places


def _saddle(w: list[Any]) -> Any:
    x, y = _pairs(w)
    return _mean(ops.square(x) / 2 + ops.square(ops.square(y) - 1) / 4)


def _flat_saddle(w: list[Any]) -> Any:
    s = ops.square(w[0])
    return _mean(s * s * s / 6 - s * s / 4) + 1 / 12


def _stairs(w: list[Any]) -> Any:
    s = ops.sqrt(ops.square(w[0] - GOAL) + 0.01)
    return _mean(s - 0.98 * ops.sin(4 * s) / 4)


def _off(distance: float) -> Callable[[np.random.Generator], list[Any]]:
    """Returns a start at a distance from `GOAL`, in any direction."""

    def start(rng: np.random.Generator) -> list[Any]:
        x = rng.normal(size=SIZE)
        return [GOAL + distance * x / np.linalg.norm(x)]

    return start


def _saturated(w: list[Any]) -> Any:
    return _mean(ops.square(ops.sigmoid(4 * (w[0] - GOAL)) - 0.5))


FLAT = [
    _plain("saddle", "flat places", "away from a saddle, a thousandth beside it",
           lambda rng: [np.r_[rng.normal(size=SIZE // 2) / 2, rng.normal(size=SIZE // 2) / 1000]], _saddle, 200),
    _plain("flat saddle", "flat places", "away from a saddle without curvature: the slope is the cube of the distance",
           lambda rng: [0.1 * np.sign(rng.normal(size=SIZE))], _flat_saddle, 200),
    _plain("well", "flat places", "a plain far from a well: the slope is a thousandth of what it is at the rim",
           _off(4.0), lambda w: 1 - ops.exp(-ops.sum(ops.square(w[0] - GOAL)) / 2), 200),
    _plain("stairs", "flat places", "stairs, nearly flat a hundred times as long as steep",
           near(GOAL + 4 * np.sign(GOAL)), _stairs, 300),
    _plain("saturated", "flat places", "sigmoids that are saturated at first: slopes of 1e-5",
           near(GOAL + 2.5 * np.sign(GOAL)), _saturated, 200),
]  # fmt: skip

# ------------------------------------------------------------------------------------------------------------- scale


def _cliff(w: list[Any]) -> Any:
    return _mean(ops.exp(4 * w[0]) - 4 * w[0]) - 1


SCALE = [
    _seen("huge", "scale", "a loss times a million", lambda w, m: 1e6 * _bowl(w, MILD), 200),
    _seen("tiny", "scale", "a loss times a millionth", lambda w, m: 1e-6 * _bowl(w, MILD), 200),
    _seen("units", "scale", "each coordinate in a unit of its own: gradients from 1e-4 to 1e4",
          lambda w, m: _bowl(w, np.logspace(-4, 4, SIZE)), 300),
    Problem("far", "scale", "a minimum 30 times as far away as elsewhere", VECTOR, near(ORIGIN),
            lambda w, m: _bowl(w, goal=30 * GOAL), lambda w: _distance(w, 30 * GOAL) / 900, 300),
    _plain("cliff", "scale", "a wall whose slope is 1e5 at the start and 1 later", near(3 + ORIGIN), _cliff, 300),
]  # fmt: skip

# ------------------------------------------------------------------------------------------------------------- noise


def _pushed(w: list[Any], push: Any) -> Any:
    """Returns the bowl with noise added to its gradient."""
    return _bowl(w) + ops.sum(push * w[0])


def _tails(m: Moment) -> Any:
    return 0.3 * m.normal[:SIZE] / (ops.abs(m.normal[SIZE:]) + 0.01)


def _spike(w: list[Any], m: Moment) -> Any:
    return _pushed(w, ops.where(m.uniform[0] < 0.02, 1000.0, 0.1) * m.normal[:SIZE])


def _rarely(w: list[Any], m: Moment) -> Any:
    slope = ops.where(m.uniform[:SIZE] < 0.1, 20.0, -1.0)
    return ops.sum(slope * w[0] + 5 * ops.square(ops.relu(ops.abs(w[0]) - 1)))


NOISE = [
    _seen("noise", "noise", "noise as large as the slope at the start",
          lambda w, m: _pushed(w, m.normal[:SIZE]), 500),
    _seen("factor", "noise", "a gradient with a random factor, often of the wrong sign, and exact at the minimum",
          lambda w, m: (1 + 2 * m.normal[0]) * _bowl(w, MILD), 300),
    _seen("heavy tails", "noise", "noise without a variance (a quotient of normal numbers)",
          lambda w, m: _pushed(w, _tails(m)), 500),
    _seen("spikes", "noise", "one gradient in fifty is of noise alone, a thousand times as large", _spike, 500),
    Problem("rarely right", "noise", "nine small gradients point the wrong way, the tenth is larger than their sum",
            VECTOR, near(0.5 + ORIGIN), _rarely, lambda w: _mean(ops.abs(w[0] + 1)), 500),
]  # fmt: skip

# ---------------------------------------------------------------------------------------------------- rare coordinates


def _one(w: list[Any], m: Moment) -> Any:
    seen = ops.cast(ops.equal(np.arange(SIZE), ops.floor(SIZE * m.uniform[0])), "float32")
    return _bowl(w, seen)


def _rare(w: list[Any], m: Moment) -> Any:
    seen = m.uniform[:SIZE] < 0.5 ** (np.arange(SIZE) / 2)
    return _bowl(w, ops.cast(seen, "float32"))


RARE = [
    _seen("one by one", "rare gradients", "a step sees one coordinate; the gradient of all others is 0",
          _one, 500),
    _seen("rarer", "rare gradients", "coordinates that are seen in each step, in every second, ... in one of 45",
          _rare, 500),
]  # fmt: skip

# ------------------------------------------------------------------------------------------------------------ change


def _swapped(w: list[Any], m: Moment) -> Any:
    early, curvature = m.share < 0.5, np.logspace(0, 2, SIZE)
    goal = ops.where(early, ops.cast(-GOAL, "float32"), ops.cast(GOAL, "float32"))
    return _bowl(w, ops.where(early, ops.cast(curvature, "float32"), ops.cast(curvature[::-1], "float32")), goal)


CHANGE = [
    _seen("drift", "change", "a minimum that moves as long as the run lasts",
          lambda w, m: _bowl(w, goal=GOAL * (3 * m.share - 2)), 300),
    _seen("jump", "change", "a minimum that is elsewhere in the second half",
          lambda w, m: _bowl(w, goal=GOAL * ops.where(m.share < 0.5, -1.0, 1.0)), 300),
    _seen("fading", "change", "a loss that shrinks to a millionth",
          lambda w, m: ops.exp(-6 * math.log(10) * m.share) * _bowl(w, MILD), 300),
    _seen("growing", "change", "a loss that grows by a million",
          lambda w, m: ops.exp(6 * math.log(10) * (m.share - 1)) * _bowl(w, MILD), 300),
    _seen("swap", "change", "steep and flat coordinates change places, and so does the minimum", _swapped, 400),
]  # fmt: skip

PROBLEMS = [*CONDITIONING, *VALLEYS, *FLAT, *SCALE, *NOISE, *RARE, *CHANGE]
