"""Adam's and SGD's further kin, signs, and rules that scale each layer by its norm."""

import numpy as np

from references.classic import adam, lion, nadam, nag
from references.classic import momentum as heavy_ball
from references.forms import Step, at, descent


def moving(w, move) -> Step:
    """Steps to `move(w, g, t)`, the new weights themselves."""
    w, t = np.array(w, "float64"), 0

    def step(g):
        nonlocal w, t
        t += 1
        w = move(w, np.asarray(g, "float64"), t)
        return w.copy()

    return step


def adam_moments(beta_1, beta_2):
    """Returns the map from g, t to the corrected moments; arXiv:1412.6980, Algorithm 1."""
    m = v = 0.0

    def moments(g, t):
        nonlocal m, v
        m = beta_1 * m + (1 - beta_1) * g
        v = beta_2 * v + (1 - beta_2) * g**2
        return m / (1 - beta_1**t), v / (1 - beta_2**t)

    return moments


def sgdw(w, *, nesterov, **hyper) -> Step:
    """Momentum with decoupled decay; arXiv:1711.05101, Algorithm 1, with the rate outside of the sum."""
    return (nag if nesterov else heavy_ball)(w, **hyper)


def signsgd(w, *, momentum, **hyper) -> Step:
    """signSGD and Signum; arXiv:1802.04434, Algorithms 1 and 2: Lion (arXiv:2302.06675) with both β equal is Signum."""
    return lion(w, beta_1=momentum, beta_2=momentum, **hyper)


def tiger(w, *, learning_rate, beta, relative, weight_decay=0.0) -> Step:
    """Tiger; github.com/bojone/tiger, with the rates relative to the weights that the author's code has."""
    m = 0.0

    def move(w, g, t):
        nonlocal m
        m = beta * m + (1 - beta) * g
        rate = at(learning_rate, t)
        if relative:
            rate *= np.sqrt((w**2).mean()) if w.ndim > 1 else 0.5
        return (1 - rate * weight_decay) * w - rate * np.sign(m)

    return moving(w, move)


def qhadam(w, *, learning_rate, beta_1, beta_2, nu_1, nu_2, epsilon, weight_decay=0.0) -> Step:
    """QHAdam; arXiv:1810.06801, in the bias-corrected form of its authors' code."""
    moments = adam_moments(beta_1, beta_2)

    def direction(g, t):
        m, v = moments(g, t)
        return ((1 - nu_1) * g + nu_1 * m) / (np.sqrt((1 - nu_2) * g**2 + nu_2 * v) + epsilon)

    return descent(w, learning_rate, weight_decay, direction)


def projected(p, g, w, delta, wd_ratio, epsilon):
    """Returns p without its radial part where g is orthogonal to w, and what is kept of the decay; arXiv:2006.08217."""
    for columns in (w.shape[-1], 1) if w.ndim > 1 else ():
        step, slope, weight = (x.reshape(-1, columns) for x in (p, g, w))
        lengths = np.linalg.norm(weight, axis=0)
        cosines = (slope * weight).sum(0) / (np.linalg.norm(slope, axis=0) * lengths)
        if np.abs(cosines).max() < delta / np.sqrt(len(weight)):
            unit = weight / (lengths + epsilon)
            return (step - unit * (unit * step).sum(0)).reshape(w.shape), wd_ratio
    return p, 1.0


def adamp(w, *, learning_rate, beta_1, beta_2, epsilon, delta, wd_ratio, nesterov, weight_decay=0.0) -> Step:
    """AdamP; arXiv:2006.08217, Algorithm 2, and its authors' channels, tried before the whole, and Nesterov's step.

    Works on columns: a kernel of Keras has its channels on the last axis.
    """
    m = v = 0.0

    def move(w, g, t):
        nonlocal m, v
        m = beta_1 * m + (1 - beta_1) * g
        v = beta_2 * v + (1 - beta_2) * g**2
        mean = beta_1 * m + (1 - beta_1) * g if nesterov else m
        p = mean / (1 - beta_1**t) / (np.sqrt(v / (1 - beta_2**t)) + epsilon)
        p, kept = projected(p, g, w, delta, wd_ratio, epsilon)
        return w - at(learning_rate, t) * (p + kept * weight_decay * w)

    return moving(w, move)


def sgdp(w, *, learning_rate, momentum, epsilon, delta, wd_ratio, nesterov, weight_decay=0.0) -> Step:
    """SGDP; arXiv:2006.08217, Algorithm 1, with the rate outside of the sum, and decay as in AdamP."""
    b = 0.0

    def move(w, g, t):
        nonlocal b
        b = momentum * b + g
        p, kept = projected(g + momentum * b if nesterov else b, g, w, delta, wd_ratio, epsilon)
        return w - at(learning_rate, t) * (p + kept * weight_decay * w)

    return moving(w, move)


def diffgrad(w, *, learning_rate, beta_1, beta_2, epsilon, weight_decay=0.0) -> Step:
    """DiffGrad; arXiv:1909.11015, with the gradient before the first at zero."""
    moments, before = adam_moments(beta_1, beta_2), 0.0

    def direction(g, t):
        nonlocal before
        friction, before = 1 / (1 + np.exp(-np.abs(before - g))), g
        m, v = moments(g, t)
        return friction * m / (np.sqrt(v) + epsilon)

    return descent(w, learning_rate, weight_decay, direction)


def madgrad(w, *, learning_rate, momentum, epsilon, weight_decay=0.0) -> Step:
    """MADGRAD; arXiv:2101.11075, Algorithm 1, with decay inside of the gradient as in the authors' experiments."""
    first, total, squares = np.array(w, "float64"), 0.0, 0.0

    def move(w, g, t):
        nonlocal total, squares
        g = g + weight_decay * w
        weight = at(learning_rate, t) * np.sqrt(t)  # λ_k of the paper, whose k begins at 0
        total, squares = total + weight * g, squares + weight * g**2
        return momentum * w + (1 - momentum) * (first - total / (np.cbrt(squares) + epsilon))

    return moving(w, move)


def lamb(w, *, learning_rate, beta_1, beta_2, epsilon, adapt_vectors, weight_decay=0.0) -> Step:
    """LAMB; arXiv:1904.00962, Algorithm 2, with φ(z) = z."""
    moments = adam_moments(beta_1, beta_2)

    def move(w, g, t):
        m, v = moments(g, t)
        r = m / (np.sqrt(v) + epsilon) + weight_decay * w
        adapt = w.ndim > 1 or adapt_vectors
        return w - at(learning_rate, t) * r * (np.linalg.norm(w) / np.linalg.norm(r) if adapt else 1)

    return moving(w, move)


def lars(w, *, learning_rate, momentum, trust_coefficient, adapt_vectors, weight_decay=0.0) -> Step:
    """LARS; arXiv:1708.03888, Algorithm 1."""
    b = 0.0

    def move(w, g, t):
        nonlocal b
        norms = np.linalg.norm(w), np.linalg.norm(g)
        local = trust_coefficient * norms[0] / (norms[1] + weight_decay * norms[0])
        local = local if w.ndim > 1 or adapt_vectors else 1.0
        b = momentum * b + at(learning_rate, t) * local * (g + weight_decay * w)
        return w - b

    return moving(w, move)


def conditional_gradient(w, *, learning_rate, radius, ord, weight_decay=0.0) -> Step:
    """Frank-Wolfe over balls; arXiv:1803.06453: the vertex -r g/‖g‖, or -r u₁ v₁ᵀ of the nuclear norm."""

    def direction(w, g):
        if ord == "nuclear" and w.ndim > 1:
            left, _, right = np.linalg.svd(g.reshape(-1, g.shape[-1]), full_matrices=False)
            return np.outer(left[:, 0], right[0]).reshape(w.shape)
        return g / np.linalg.norm(g)

    def move(w, g, t):
        rate = at(learning_rate, t)
        return (1 - rate - rate * weight_decay) * w - rate * radius * direction(w, g)

    return moving(w, move)


RULES = {
    "NadamW": nadam,
    "LazyAdam": adam,
    "SGDW": sgdw,
    "SignSGD": signsgd,
    "Tiger": tiger,
    "QHAdam": qhadam,
    "AdamP": adamp,
    "SGDP": sgdp,
    "DiffGrad": diffgrad,
    "MADGRAD": madgrad,
    "LAMB": lamb,
    "LARS": lars,
    "ConditionalGradient": conditional_gradient,
}
