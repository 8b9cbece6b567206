"""The orthogonal factor of matrices by products alone."""

from keras import ops

from kopt.optimizers.optimizer import Layout, Literal, Tensor

Scale = Literal["match_rms", "original", "aspect"]
"""How long the orthogonal direction of a matrix is made."""
Named = Literal["quintic", "polar_express"]
"""Coefficients of the iterations by name."""
Coefficients = tuple[float, float, float]
QUINTIC: Coefficients = (3.4445, -4.7750, 2.0315)
"""Those of Jordan et al., 2024: the steepest at zero whose iterations stay within 0.68 and 1.14."""
POLAR_EXPRESS: tuple[Coefficients, ...] = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
    (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
    (1.875, -1.25, 0.375),
)
"""Those of arXiv:2505.16932 for singular values of at least 0.001, one for each iteration; the last one repeats."""
WORK = 9
"""Arrays like a kernel that lie between the products; found with Muon: XLA keeps those of all kernels at one time."""
SAFETY = 1.01
"""By how much the paper has singular values too large in all iterations but the last, lest rounding makes them grow."""


def coefficients(name: Named, iterations: int) -> list[Coefficients]:
    """Returns a, b, c of each iteration of "quintic" or "polar_express"."""
    if name == "quintic":
        return [QUINTIC] * iterations
    safe = [(a / SAFETY, b / SAFETY**3, c / SAFETY**5) for a, b, c in POLAR_EXPRESS[:-1]]
    return [*safe, *[POLAR_EXPRESS[-1]] * iterations][:iterations]


def length(scale: Scale, layout: Layout) -> float:
    """Returns the factor of the orthogonal direction of a matrix of p inputs and q outputs."""
    p, q = layout.fan_in, layout.fan_out
    return {"match_rms": 0.2 * max(p, q) ** 0.5, "original": max(1.0, q / p) ** 0.5, "aspect": (q / p) ** 0.5}[scale]


def orthogonalized(x: Tensor, name: Named, iterations: int) -> Tensor:
    """Returns U Vᵀ of x = U Σ Vᵀ, nearly: x ← a x + b x xᵀ x + c x (xᵀ x)² again and again.

    Where a side is twice as long as the other, g = x xᵀ and the product f of all factors are carried along instead,
    which are as small as the short side:

        h = b g + c g²,  f ← (a + h) f,  g ← (a + h) g (a + h);  at the end x ← f x

    Args:
        x: [..., p, q]; of zeros comes zero.
        name: "quintic" or "polar_express".
        iterations: how many.
    """
    wide = x.shape[-2] <= x.shape[-1]
    norm = ops.sqrt(ops.sum(ops.square(x), axis=(-2, -1), keepdims=True))
    x = x / ops.where(norm > 0, (SAFETY if name == "polar_express" else 1.0) * norm, 1.0)
    x = x if wide else ops.swapaxes(x, -1, -2)
    turn = _by_squares if x.shape[-1] >= 2 * x.shape[-2] else _by_products
    x = turn(x, coefficients(name, iterations))
    return x if wide else ops.swapaxes(x, -1, -2)


def _by_products(x: Tensor, polynomials: list[Coefficients]) -> Tensor:
    for a, b, c in polynomials:
        g = ops.matmul(x, ops.swapaxes(x, -1, -2))
        x = a * x + ops.matmul(b * g + c * ops.matmul(g, g), x)
    return x


def _by_squares(x: Tensor, polynomials: list[Coefficients]) -> Tensor:
    g = ops.matmul(x, ops.swapaxes(x, -1, -2))
    one = ops.eye(x.shape[-2], dtype=x.dtype)
    f = None
    for a, b, c in polynomials:
        factor = a * one + b * g + c * ops.matmul(g, g)
        f = factor if f is None else ops.matmul(factor, f)
        g = ops.matmul(ops.matmul(factor, g), factor)
    return ops.matmul(f, x)
