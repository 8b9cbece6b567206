"""Rules that see a kernel as a matrix [inputs, outputs], and leave vectors to AdamW."""

import numpy as np

from references.classic import adam
from references.forms import Step, descent

QUINTIC = (3.4445, -4.7750, 2.0315)
EXPRESS = np.array(
    [
        [8.28721201814563, -23.595886519098837, 17.300387312530933],
        [4.107059111542203, -2.9478499167379106, 0.5448431082926601],
        [3.9486908534822946, -2.908902115962949, 0.5518191394370137],
        [3.3184196573706015, -2.488488024314874, 0.51004894012372],
        [2.300652019954817, -1.6689039845747493, 0.4188073119525673],
    ]
)
"""arXiv:2505.16932, the first five, which `SAFE` makes safe for 1.01 times as large singular values."""
SAFE = EXPRESS / 1.01 ** np.array([1, 3, 5])


def matrix_of(w, inputs=None):
    """Returns the map from a kernel to the matrix, and back; `inputs`: how many axes count as inputs."""
    inputs = w.ndim - 1 if inputs is None else inputs
    rows = int(np.prod(w.shape[:inputs]))
    return (lambda x: x.reshape(rows, -1)), (lambda x: x.reshape(w.shape))


def polynomials(x, coefficients, ns_steps):
    """Applies a x + b x³ + c x⁵ to the singular values of a matrix, again and again."""
    u, s, vt = np.linalg.svd(x, full_matrices=False)
    s = s / np.linalg.norm(x)
    if coefficients == "polar_express":
        assert ns_steps <= 5, "of the rest the reference has no coefficients"
        s = s / 1.01
    for i in range(ns_steps):
        a, b, c = QUINTIC if coefficients == "quintic" else SAFE[i]
        s = a * s + b * s**3 + c * s**5
    return u @ np.diag(s) @ vt


def by_matrix(w, direction, *, learning_rate, weight_decay, beta_1, beta_2, epsilon, adam_rate, others, inputs=None):
    """Steps along `direction(g, t)` of a matrix; AdamW where there is none, or where `others` names it."""
    if w.ndim < 2 or others:
        moments = {"beta_1": beta_1, "beta_2": beta_2, "epsilon": epsilon}
        last, step = 0.0, adam(np.zeros_like(w), learning_rate=1.0, amsgrad=False, **moments)

        def adamw(g, t):
            nonlocal last
            now = step(g)
            u, last = last - now, now
            return adam_rate * u

        return descent(w, learning_rate, weight_decay, adamw)
    there, back = matrix_of(w, inputs)
    return descent(w, learning_rate, weight_decay, lambda g, t: back(direction(there(g), t)))


def orthogonal_momentum(momentum, nesterov, coefficients, ns_steps):
    """Returns the map from g to the orthogonal direction; kellerjordan.github.io/posts/muon."""
    m = 0.0

    def turned(g):
        nonlocal m
        m = momentum * m + (1 - momentum) * g
        ahead = momentum * m + (1 - momentum) * g if nesterov else m
        return polynomials(ahead, coefficients, ns_steps)

    return turned


def muon(w, *, momentum, nesterov, ns_steps, coefficients, scale, **rest) -> Step:
    """kellerjordan.github.io/posts/muon, with the lengths of arXiv:2502.16982 and arXiv:2409.20325."""
    turned = orthogonal_momentum(momentum, nesterov, coefficients, ns_steps)

    def direction(g, t):
        p, q = g.shape
        length = {"match_rms": 0.2 * np.sqrt(max(p, q)), "original": np.sqrt(max(1, q / p)), "aspect": np.sqrt(q / p)}
        return length[scale] * turned(g)

    return by_matrix(w, direction, **rest)


def normuon(w, *, momentum, nesterov, ns_steps, coefficients, beta, root_epsilon, **rest) -> Step:
    """arXiv:2510.05491, Algorithm 1, with its rows, the outputs, on the last axis."""
    turned, v = orthogonal_momentum(momentum, nesterov, coefficients, ns_steps), 0.0

    def direction(g, t):
        nonlocal v
        o = turned(g)
        v = beta * v + (1 - beta) * (o**2).mean(0)
        x = o / (np.sqrt(v) + root_epsilon)
        return 0.2 * np.sqrt(g.size) * x / np.linalg.norm(x)

    return by_matrix(w, direction, **rest)


RULES = {"Muon": muon, "NorMuon": normuon}
MATRIX = tuple(RULES)
"""Rules whose products make rounding errors grow: to 1e-4 in float32 and 1e-6 in float64."""
