"""What the references share."""

from collections.abc import Callable

import numpy as np

Step = Callable[[np.ndarray], np.ndarray]


def at(learning_rate, t):
    """Returns the learning rate of step t."""
    return learning_rate(t) if callable(learning_rate) else learning_rate


def descent(w, learning_rate, weight_decay, direction) -> Step:
    """Steps against `direction(g, t)`."""
    w, t = np.array(w, "float64"), 0

    def step(g):
        nonlocal w, t
        t += 1
        w = w - at(learning_rate, t) * (direction(np.asarray(g, "float64"), t) + weight_decay * w)
        return w.copy()

    return step
