"""Wrappers that see large kernels in fewer dimensions, around Adam or Momentum."""

import numpy as np

from kopt.optimizers.engine import noise
from references.forms import descent
from references.matrices import matrix_of

TURNS = 16


class Within:
    """Adam or Momentum, whose moments can be turned."""

    def __init__(self, optimizer):
        self.config, self.m, self.v = optimizer["config"], 0.0, 0.0
        self.momentum = self.config.get("momentum") if optimizer["class_name"] == "Momentum" else None

    def __call__(self, g, t):
        if self.momentum is not None:
            self.m = self.momentum * self.m + g
            return self.m
        beta_1, beta_2, epsilon = (self.config[k] for k in ("beta_1", "beta_2", "epsilon"))
        self.m = beta_1 * self.m + (1 - beta_1) * g
        self.v = beta_2 * self.v + (1 - beta_2) * g**2
        return self.m / (1 - beta_1**t) / (np.sqrt(self.v / (1 - beta_2**t)) + epsilon)

    def turn(self, change):
        """Takes the moments to other axes; those of squares as if different axes had nothing to do with each other."""
        self.m = change @ self.m
        self.v = change**2 @ self.v if self.momentum is None else 0.0


def _wide(w, rank):
    """Returns the maps from a kernel to a matrix whose rows are its shorter side and back; None if that is short."""
    if w.ndim < 2:
        return None
    there, back = matrix_of(w)
    p, q = there(w).shape
    if min(p, q) <= rank:
        return None
    return (there, back) if p <= q else (lambda x: there(x).T, lambda x: back(x.T))


def galore(w, *, optimizer, rank, every, scale, learning_rate, weight_decay):
    """arXiv:2403.03507, Algorithm 1, by orthogonal iteration; moments turn as in arXiv:2410.16103, Algorithm 1."""
    within, maps, basis = Within(optimizer), _wide(w, rank), None

    def direction(g, t):
        nonlocal basis
        if maps is None:
            return within(g, t)
        x = maps[0](g)
        if (t - 1) % every == 0:
            old, basis = basis, np.eye(len(x), rank) if basis is None else basis
            for _ in range(TURNS):
                basis = np.linalg.qr(x @ (x.T @ basis))[0]
            if old is not None:
                within.turn(basis.T @ old)
        return maps[1](scale * basis @ within(basis.T @ x, t))

    return descent(w, learning_rate, weight_decay, direction)


def apollo(weights, *, optimizer, rank, every, scale, by, growth, learning_rate, weight_decay):
    """arXiv:2412.05270, Algorithm 1, with the numbers that kopt draws."""

    def directed(index, w):
        within, maps, last = Within(optimizer), _wide(w, rank), 0.0

        def direction(g, t):
            nonlocal last
            if maps is None:
                return within(g, t)
            x = maps[0](g)
            drawn = noise.normal(np.zeros((len(x), rank), "float32"), (t - 1) // every, -(2**30) - 1 - index)
            basis = np.asarray(drawn, "float64") / np.sqrt(rank)
            low = basis.T @ x
            axis = None if by == "tensor" else 0
            u = scale * x * np.linalg.norm(within(low, t), axis=axis) / np.linalg.norm(low, axis=axis)
            length = np.linalg.norm(u)
            if last and length > growth * last:
                u, length = u * growth * last / length, growth * last
            last = length
            return maps[1](u)

        return direction

    steps = [descent(w, learning_rate, weight_decay, directed(i, w)) for i, w in enumerate(weights)]
    return lambda gs: [f(g) for f, g in zip(steps, gs, strict=True)]


RULES = {"GaLore": galore}
JOINT = {"APOLLO": apollo}
MATRIX = ("GaLore",)
"""The basis of a gradient with singular values near each other turns with its rounding."""
