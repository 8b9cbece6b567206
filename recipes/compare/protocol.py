"""The rules of a comparison: which rates are tried, when a target is reached, and whether a lead is one."""

import itertools
import math
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np

Points = Sequence[Sequence[float]]
"""Step and loss of each evaluation, in order."""


def places(trials: int, dimensions: int = 1) -> list[tuple[float, ...]]:
    """Returns a point of the unit cube for each trial: each of its axes is covered evenly."""
    rng = np.random.default_rng(0)
    axes = [(rng.permutation(trials) + rng.random(trials)) / trials for _ in range(dimensions)]
    return [tuple(float(axis[i]) for axis in axes) for i in range(trials)]


def log_uniform(low: float, high: float, place: float) -> float:
    """Returns the number at this place, from 0 to 1, of a log-uniform space."""
    return low * (high / low) ** place


def steps_to(target: float, losses: Points) -> float:
    """Returns the step at which the loss first is at the target, between two evaluations in proportion; else `inf`."""
    for (t, above), (later, below) in itertools.pairwise(losses):
        if below <= target:
            return t + (later - t) * (above - target) / (above - below) if above > target else t
    return math.inf


def p_value(ours: Sequence[float], base: Sequence[float]) -> float:
    """Returns the probability of such a lead over the base without a true one: a one-sided z-test of the means."""
    variance = statistics.variance(ours) / len(ours) + statistics.variance(base) / len(base)
    lead = statistics.mean(base) - statistics.mean(ours)
    return statistics.NormalDist().cdf(-lead / math.sqrt(variance)) if variance else 0.0 if lead > 0 else 1.0


def last(losses: Points) -> float:
    """Returns the last loss; `inf` if it is not finite, or there is none."""
    found = losses[-1][1] if losses else math.inf
    return found if math.isfinite(found) else math.inf


def curve(run: dict[str, Any], sign: int, by: str = "step") -> list[tuple[float, float]]:
    """Returns what is to be made small, at each evaluation of a run.

    Args:
        run: one run.
        sign: -1 if the metric is to be made large.
        by: "step" or "seconds".
    """
    return [(point[by], sign * point["value"]) for point in run["points"]]
