"""Rules that keep squares by fewer numbers than there are weights."""

import numpy as np

from references.forms import Step, at
from references.matrices import matrix_of


def rms(x):
    """Returns the root of the mean square."""
    return np.sqrt(np.mean(x**2))


def by_sides(w, shortest, inputs=None):
    """Returns the maps to the matrix of a kernel and back, and whether its squares are kept by two vectors."""
    if w.ndim < 2:
        return np.copy, np.copy, False
    there, back = matrix_of(w, inputs)
    return there, back, min(there(w).shape) >= shortest


def outer(rows, columns):
    """Returns the matrix that row and column means stand for."""
    return np.outer(rows, columns) / rows.mean()


def adafactor(
    w,
    *,
    learning_rate,
    decay_exponent,
    step_exponent,
    clip_threshold,
    beta_1,
    scale_parameter,
    epsilon_1,
    epsilon_2,
    min_dim_size_to_factor,
    weight_decay=0.0,
    inputs=None,
) -> Step:
    """arXiv:1804.04235, Algorithm 5 on matrices, Algorithm 4 on vectors; the decay and the memory of section 6, 7.2."""
    there, back, factored = by_sides(w, min_dim_size_to_factor, inputs)
    w, t, r, c, v, m = np.array(w, "float64"), 0, 0.0, 0.0, 0.0, 0.0

    def step(g):
        nonlocal w, t, r, c, v, m
        t += 1
        beta, x = 1 - t**-decay_exponent, there(np.asarray(g, "float64"))
        if factored:
            r = beta * r + (1 - beta) * (x**2 + epsilon_1).mean(1)
            c = beta * c + (1 - beta) * (x**2 + epsilon_1).mean(0)
        v = outer(r, c) if factored else beta * v + (1 - beta) * (x**2 + epsilon_1)
        u = x / np.sqrt(v)
        m = beta_1 * m + (1 - beta_1) * back(u / max(1, rms(u) / clip_threshold))
        rate = at(learning_rate, t)
        alpha = min(rate, t**-step_exponent) if step_exponent else rate
        if scale_parameter:
            alpha *= max(epsilon_2, rms(w))
        w = w - alpha * m - rate * weight_decay * w
        return w.copy()

    return step


RULES = {"Adafactor": adafactor}
