"""Rules that divide by the curvature of the loss, which is `references.curvature` of the gradient."""

import numpy as np

import references
from references.forms import Step, descent


def sophia(w, *, learning_rate, beta_1, beta_2, gamma, epsilon, every, weight_decay=0.0) -> Step:
    """Sophia; arXiv:2305.14342, Algorithm 3."""
    m = h = 0.0

    def direction(g, t):
        nonlocal m, h
        m = beta_1 * m + (1 - beta_1) * g
        if every == 1 or t % every == 1:
            h = beta_2 * h + (1 - beta_2) * references.curvature(g)
        return np.clip(m / np.maximum(gamma * h, epsilon), -1, 1)

    return descent(w, learning_rate, weight_decay, direction)


def adahessian(w, *, learning_rate, beta_1, beta_2, epsilon, hessian_power, every, spatial, weight_decay=0.0) -> Step:
    """AdaHessian; arXiv:2006.00719, Algorithm 1, with section 3.2 for kernels of convolutions."""
    m = v = 0.0
    estimates = 0

    def direction(g, t):
        nonlocal m, v, estimates
        m = beta_1 * m + (1 - beta_1) * g
        if every == 1 or t % every == 1:
            estimates += 1
            size = np.abs(references.curvature(g))
            if spatial and g.ndim >= 4:
                size = np.broadcast_to(size.mean(axis=tuple(range(g.ndim - 2))), g.shape)
            v = beta_2 * v + (1 - beta_2) * size**2
        root = np.sqrt(v / (1 - beta_2**estimates)) ** hessian_power
        return m / (1 - beta_1**t) / (root + epsilon)

    return descent(w, learning_rate, weight_decay, direction)


RULES = {"SophiaG": sophia, "SophiaH": sophia, "AdaHessian": adahessian}
