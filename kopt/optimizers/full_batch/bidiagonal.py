"""A matrix that is known by its products alone, in the small space that they span.

From r, k products with A and k with its transpose make orthonormal u₀ ... uₖ and v₁ ... vₖ and a small B:

    u₀ = r / ‖r‖,   αᵢ vᵢ = Aᵀ uᵢ₋₁ - βᵢ₋₁ vᵢ₋₁,   βᵢ uᵢ = A vᵢ - αᵢ uᵢ₋₁          A V = U B

B has the α on its diagonal and the β below it. Each new vector is made orthogonal to all before it, twice, without
which rounding would soon bring the old ones back. When k reaches the rank of A, nothing is left out.

Reference: Golub and Kahan, 1965, doi:10.1137/0702016.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]
Product = Callable[[Vector], Vector]


class Bidiagonal(NamedTuple):
    """A matrix A in the space of the products.

    Attributes:
        length: ‖r‖.
        small: B, [k + 1, k].
        rows: the vectors v, [k, columns of A].
    """

    length: float
    small: Vector
    rows: Vector

    def column_norms(self) -> Vector:
        """Returns the lengths of the columns of A, or of their parts in this space."""
        lengths: Vector = np.linalg.norm(self.small @ self.rows, axis=0)
        return lengths


def bidiagonal(forward: Product, backward: Product, r: Vector, products: int) -> Bidiagonal:
    """Returns A in the space that r and its products span.

    Args:
        forward: multiplies a vector by A.
        backward: multiplies a vector by Aᵀ.
        r: where the space begins, not zero.
        products: k ≥ 1, the most products with A; fewer when the space is spanned.
    """
    length = float(np.linalg.norm(r))
    us, vs = [r / length], list[Vector]()
    alphas, betas = list[float](), list[float]()
    v, largest = backward(us[0]), 0.0
    while len(vs) < products:
        alpha, v = _new_direction(v, vs)
        if alpha <= _LOST * largest:
            break
        vs.append(v)
        beta, u = _new_direction(forward(v) - alpha * us[-1], us)
        largest = max(largest, alpha, beta)
        alphas.append(alpha)
        betas.append(beta if beta > _LOST * largest else 0.0)
        if not betas[-1]:
            break
        us.append(u)
        v = backward(u) - beta * vs[-1]
    count = len(vs)
    small = np.zeros((count + 1, count))
    small[range(count), range(count)] = alphas
    small[range(1, count + 1), range(count)] = betas
    return Bidiagonal(length, small, np.reshape(vs, (count, -1)))


_LOST = 1e-14
"""Lengths in units of the largest that are rounding, not directions."""


def _new_direction(x: Vector, known: list[Vector]) -> tuple[float, Vector]:
    """Returns the length of what is new in x, and its direction."""
    for _ in range(2):
        for other in known:
            x = x - other * (other @ x)
    length = float(np.linalg.norm(x))
    return length, x / length if length else x
