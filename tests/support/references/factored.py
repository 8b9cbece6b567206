"""Rules that keep squares by fewer numbers than there are weights."""

import numpy as np

from references.forms import Step, at, descent
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


def came(
    w,
    *,
    learning_rate,
    beta_1,
    beta_2,
    beta_3,
    clip_threshold,
    epsilon_1,
    epsilon_2,
    min_dim_size_to_factor,
    weight_decay=0.0,
    inputs=None,
) -> Step:
    """arXiv:2307.02047, Algorithm 2; vectors as in its authors' code."""
    there, back, factored = by_sides(w, min_dim_size_to_factor, inputs)
    m, squares, doubts = 0.0, [0.0, 0.0], [0.0, 0.0]

    def averaged(old, x, beta):
        return [beta * a + (1 - beta) * x.mean(axis) for a, axis in zip(old, (1, 0), strict=True)]

    def direction(g, t):
        nonlocal m, squares, doubts
        x = there(g)
        if factored:
            squares = averaged(squares, x**2 + epsilon_1, beta_2)
            v = outer(*squares)
        else:
            squares[0] = v = beta_2 * squares[0] + (1 - beta_2) * (x**2 + epsilon_1)
        u = x / np.sqrt(v)
        u = u / max(1, rms(u) / clip_threshold)
        m = beta_1 * m + (1 - beta_1) * u
        if not factored:
            return back(m)
        doubts = averaged(doubts, (u - m) ** 2 + epsilon_2, beta_3)
        return back(m / np.sqrt(outer(*doubts)))

    return descent(w, learning_rate, weight_decay, direction)


def sm3(w, *, learning_rate, momentum, weight_decay=0.0) -> Step:
    """arXiv:1901.11150, Algorithm SM3-II, whose covers are the slices along each axis."""
    bounds, m = [np.zeros(n) for n in np.shape(w)], np.zeros_like(w)

    def direction(g, t):
        nonlocal m
        n, new = np.zeros_like(g), [np.zeros_like(b) for b in bounds]
        for place in np.ndindex(g.shape):
            n[place] = min(b[i] for b, i in zip(bounds, place, strict=True)) + g[place] ** 2
            for b, i in zip(new, place, strict=True):
                b[i] = max(b[i], n[place])
        bounds[:] = new
        m = momentum * m + (1 - momentum) * np.divide(g, np.sqrt(n), out=np.zeros_like(g), where=n > 0)
        return m

    return descent(w, learning_rate, weight_decay, direction)


def adam_mini(w, *, learning_rate, beta_1, beta_2, epsilon, weight_decay=0.0, inputs=None, heads=None) -> Step:
    """arXiv:2406.16793, Algorithm 2: a block is what leads to an output, or with `heads` to the outputs of a head."""
    there, back = matrix_of(w, inputs) if w.ndim > 1 else (np.copy, np.copy)
    m = v = 0.0

    def direction(g, t):
        nonlocal m, v
        x = there(g)
        means = (x**2).mean(0) if w.ndim > 1 else x**2
        if heads:
            means = np.repeat(means.reshape(heads, -1).mean(1), len(means) // heads)
        m, v = beta_1 * m + (1 - beta_1) * x, beta_2 * v + (1 - beta_2) * means
        return back(m / (1 - beta_1**t) / (np.sqrt(v / (1 - beta_2**t)) + epsilon))

    return descent(w, learning_rate, weight_decay, direction)


RULES = {"Adafactor": adafactor, "AdamMini": adam_mini, "CAME": came, "SM3": sm3}
