"""Where on the step axis the points lie that callbacks write."""

from collections.abc import Callable, Mapping
from typing import Any

POINTS = 100
"""As many as a curve needs to be seen, if the callback is not told."""
Log = Callable[[Mapping[str, float], int], Any]
"""Takes the values by name and the step, as the functions of other trackers do."""


def period(params: Mapping[str, Any], stride: int, step: int) -> int:
    """Returns the number of updates from one point to the next that makes about `POINTS` of them.

    Args:
        params: those of a Keras callback in `fit`. If they do not know how long an epoch is, the points lie at each
            update at first, and at every second, fourth, ... of twice, four times, ... as many updates as `POINTS`.
        stride: batches of an update.
        step: updates done.
    """
    if steps := params.get("steps"):
        return max(1, -(-params["epochs"] * steps // stride // POINTS))
    return int(2 ** max(0, (max(step, 0) // POINTS).bit_length() - 1))
