"""Rules that see a kernel as a matrix [inputs, outputs], and leave vectors to AdamW."""

import numpy as np

from kopt.optimizers.engine import noise
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


def lengths(p, q):
    """Returns the factors of the orthogonal direction of a matrix of p inputs and q outputs."""
    return {"match_rms": 0.2 * np.sqrt(max(p, q)), "original": np.sqrt(max(1, q / p)), "aspect": np.sqrt(q / p)}


def muon(w, *, momentum, nesterov, ns_steps, coefficients, scale, **rest) -> Step:
    """kellerjordan.github.io/posts/muon, with the lengths of arXiv:2502.16982 and arXiv:2409.20325."""
    turned = orthogonal_momentum(momentum, nesterov, coefficients, ns_steps)

    return by_matrix(w, lambda g, t: lengths(*g.shape)[scale] * turned(g), **rest)


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


def cut(x, block):
    """Yields the places of the blocks of a matrix: each side in equal parts, as few as there may be."""
    sides = [-(-n // -(-n // block)) for n in x.shape]
    for i in range(0, x.shape[0], sides[0]):
        for j in range(0, x.shape[1], sides[1]):
            yield slice(i, i + sides[0]), slice(j, j + sides[1])


def in_blocks(make, block):
    """Returns a direction whose blocks each have a direction of their own."""
    steps = {}

    def direction(g, t):
        u = np.zeros_like(g)
        for place in cut(g, block):
            key = str(place)
            steps[key] = steps.get(key) or make()
            u[place] = steps[key](g[place], t)
        return u

    return direction


def root(x, damping):
    """Returns (x + δ ‖x‖)^-¼."""
    values, vectors = np.linalg.eigh(x)
    return vectors @ np.diag((np.maximum(values, 0) + damping * np.linalg.norm(x)) ** -0.25) @ vectors.T


def shampoo(w, *, beta, momentum, damping, every, block, **rest) -> Step:
    """arXiv:1802.09568, Algorithm 1, with averages, momentum, and roots that are renewed now and then."""

    def make():
        left = right = m = a = b = 0.0

        def direction(g, t):
            nonlocal left, right, m, a, b
            left, right = beta * left + g @ g.T, beta * right + g.T @ g
            if (t - 1) % every == 0:
                a, b = root(left, damping), root(right, damping)
            m = momentum * m + (1 - momentum) * a @ g @ b
            return m / (1 - momentum**t)

        return direction

    return by_matrix(w, in_blocks(make, block), **rest)


def soap(w, *, beta_1, beta_2, beta_3, epsilon, every, block, ratio, kl=False, **rest) -> Step:
    """arXiv:2409.11321, Algorithm 3, with the bases of the first gradient, renewed as in the authors' code.

    With `kl` the products are those of arXiv:2509.03378: of a gradient whose other side is along the basis there, in
    units of the sizes along it.
    """

    def make():
        products, bases, sizes, m, v = {}, {}, {}, 0.0, 0.0

        def seen_by(side, g):
            x = g if side == 0 else g.T
            if not kl or 1 - side not in bases:
                return x
            there = sizes[1 - side]
            return (x @ bases[1 - side]) * np.minimum(there**-0.5, max(10, min(len(there), 4000)))

        def turned(x, back=False):
            for side, q in bases.items():
                q = q.T if back else q
                x = q.T @ x if side == 0 else x @ q
            return x

        def direction(g, t):
            nonlocal m, v
            u = np.zeros_like(g)
            if t > 1:
                m = beta_1 * m + (1 - beta_1) * g
                v = beta_2 * v + (1 - beta_2) * turned(g) ** 2
                length = np.sqrt(1 - beta_2 ** (t - 1)) / (1 - beta_1 ** (t - 1))
                u = length * turned(turned(m) / (np.sqrt(v) + epsilon), back=True)
            sides = [side for side in (0, 1) if g.shape[side] <= ratio * g.shape[1 - side]]
            for side, x in [(side, seen_by(side, g)) for side in sides]:
                new = x @ x.T / (x.shape[1] if kl else 1)
                products[side] = beta_3 * products.get(side, 0) + (1 - beta_3) * new
                if kl and t == 1:
                    sizes[side] = np.full(len(x), 0.1)
            if kl and t > 1:
                along = {side: ((bases[side].T @ seen_by(side, g)) ** 2).mean(1) for side in sides}
                sizes.update({side: beta_3 * sizes[side] + (1 - beta_3) * new for side, new in along.items()})
            for side, product in products.items():
                if t == 1:
                    bases[side] = np.linalg.qr(g if side == 0 else g.T, mode="complete")[0]
                elif (t - 1) % every == 0:
                    order = np.argsort(-np.diag(bases[side].T @ product @ bases[side]), kind="stable")
                    v = v[order] if side == 0 else v[:, order]
                    bases[side] = np.linalg.qr((product @ bases[side])[:, order])[0]
                    sizes.update({side: sizes[side][order]} if kl else {})
            return u

        return direction

    moments = {"beta_1": beta_1, "beta_2": beta_2, "epsilon": epsilon}
    return by_matrix(w, in_blocks(make, block), **moments, **rest)


def kl_soap(w, **hyper) -> Step:
    """arXiv:2509.03378, with the start and the bounds of the authors' code."""
    return soap(w, kl=True, **hyper)


def scion(
    w, *, momentum, radius, last_radius, ns_steps, coefficients, others, learning_rate, weight_decay, inputs=None
) -> Step:
    """arXiv:2502.07529, Algorithm 2 with a decay of 1 and 1 with none; `others` are matrices of the last layer."""
    (there, back), m = matrix_of(w, inputs), 0.0

    def direction(g, t):
        nonlocal m
        m = momentum * m + (1 - momentum) * g
        if w.ndim < 2:
            return radius * m / np.sqrt((m**2).mean())
        if others:
            return last_radius * np.sign(m) / len(there(m))
        return radius * back(lengths(*there(m).shape)["aspect"] * polynomials(there(m), coefficients, ns_steps))

    return descent(w, learning_rate, weight_decay, direction)


def bound(a):
    """Returns a lower bound of the largest eigenvalue of a symmetric matrix: a step of the power method."""
    b = a @ a[(a**2).sum(1).argmax()]
    return np.linalg.norm(a @ b) / np.linalg.norm(b)


def psgd_kron(w, *, momentum, fit_rate, every, flat_start, max_size, ratio, damping, **rest) -> Step:
    """arXiv:2402.04553, the Kronecker product of triangular factors, with the numbers that kopt draws."""
    m, factors = 0.0, None

    def turned(qs, x):
        return qs[0] @ x @ qs[1].T

    def direction(g, t):
        nonlocal m, factors
        m = momentum * m + (1 - momentum) * g
        x = m / (1 - momentum**t)
        full = [n <= max_size and n <= ratio * other for n, other in (x.shape, x.shape[::-1])]
        if factors is None:
            factors = [(np.sqrt((x**2).mean()) + damping) ** -0.25 * np.eye(n) for n in x.shape]
        if t <= flat_start or (t - 1) % every == 0:
            v = np.asarray(noise.normal(np.zeros((1, *x.shape), "float32"), t, -(2**31)), "float64")[0]
            y, v = turned(factors, x + damping * v), turned([np.linalg.inv(q).T for q in factors], v)
            for i, (a, b) in enumerate(((y @ y.T, v @ v.T), (y.T @ y, v.T @ v))):
                size = bound(a + b) if full[i] else np.diag(a + b).max()
                change = np.triu(a - b) if full[i] else np.diag(np.diag(a - b))
                factors[i] = factors[i] - fit_rate * change @ factors[i] / size
        u = turned([q.T for q in factors], turned(factors, x))
        return u * min(1, 1.1 / (np.sqrt((u**2).mean()) + 1e-6))

    return by_matrix(w, direction, **rest)


RULES = {
    "KLSOAP": kl_soap,
    "Muon": muon,
    "NorMuon": normuon,
    "PSGDKron": psgd_kron,
    "Scion": scion,
    "Shampoo": shampoo,
    "SOAP": soap,
}
MATRIX = tuple(RULES)
"""Rules whose products make rounding errors grow: to 1e-4 in float32 and 1e-6 in float64."""
