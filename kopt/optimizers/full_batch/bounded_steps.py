r"""Where a step within bounds leads: the quadratic model of L-BFGS, on the host in float64.

    m(z) = f + gᵀ(z - x) + ½ (z - x)ᵀ B (z - x),    B = θ I - W M Wᵀ,  W = [Y θS],  θ = yᵀy / sᵀy of the last pair

with the steps S and the gradient differences Y of the last points. The generalised Cauchy point is the first minimum of
m along the path x - t g that bends where it meets a bound. Of the elements that it leaves free m is then minimised.

References: Byrd, Lu, Nocedal and Zhu, 1995, doi:10.1137/0916069, algorithm CP and section 5.1; the projection:
Morales and Nocedal, 2011, doi:10.1145/2049662.2049669.
"""

from typing import NamedTuple

import numpy as np

from kopt.optimizers.full_batch.bidiagonal import Vector

EPSILON = float(np.finfo("float64").eps)


class Box(NamedTuple):
    """Bounds of each element, infinite where there are none."""

    lower: Vector
    upper: Vector

    def nearest(self, x: Vector) -> Vector:
        """Returns the nearest point within."""
        return np.clip(x, self.lower, self.upper)

    def slope(self, x: Vector, g: Vector) -> float:
        """Returns the largest element of the projected gradient: how far a step along -g leads before a bound."""
        return float(np.abs(self.nearest(x - g) - x).max(initial=0.0))

    def reach(self, x: Vector, d: Vector) -> float:
        """Returns the largest step along d that stays within; infinite without a bound ahead."""
        with np.errstate(divide="ignore", invalid="ignore"):
            steps = np.where(d > 0, (self.upper - x) / d, np.where(d < 0, (self.lower - x) / d, np.inf))
        return float(steps.min(initial=np.inf))


class Curvature(NamedTuple):
    """The matrix B.

    Attributes:
        theta: θ.
        w: W, [elements, 2 pairs].
        m: M, [2 pairs, 2 pairs].
    """

    theta: float
    w: Vector
    m: Vector

    @classmethod
    def of(cls, steps: Vector, changes: Vector) -> "Curvature":
        """Returns that of the pairs, in their order in time, each [pairs, elements].

        Raises:
            numpy.linalg.LinAlgError: the pairs have lost their digits.
        """
        if not len(steps):
            return cls(1.0, np.zeros((steps.shape[1], 0)), np.zeros((0, 0)))
        theta = float(changes[-1] @ changes[-1] / (steps[-1] @ changes[-1]))
        products = steps @ changes.T
        lower, diagonal = np.tril(products, -1), np.diag(np.diag(products))
        m = np.linalg.inv(np.block([[-diagonal, lower.T], [lower, theta * (steps @ steps.T)]]))
        return cls(theta, np.concatenate([changes, theta * steps]).T, m)


def cauchy_point(x: Vector, g: Vector, box: Box, b: Curvature) -> tuple[Vector, Vector]:
    """Returns the generalised Cauchy point, and c = Wᵀ (point - x)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        times = np.where(g < 0, (x - box.upper) / g, np.where(g > 0, (x - box.lower) / g, np.inf))
    d = np.where(times > 0, -g, 0.0)
    point, p, c = x.copy(), b.w.T @ d, np.zeros(b.w.shape[1])
    slope = -float(d @ d)
    least = curve = -b.theta * slope - float(p @ b.m @ p)
    least = EPSILON * least
    now, wait = 0.0, -slope / curve if slope else 0.0
    breaks = np.flatnonzero((times > 0) & np.isfinite(times))
    for i in breaks[np.argsort(times[breaks], kind="stable")]:
        passed = times[i] - now
        if wait < passed:
            break
        point[i] = box.upper[i] if d[i] > 0 else box.lower[i]
        c += passed * p
        row, gi = b.w[i], g[i]
        slope += passed * curve + gi * (gi + b.theta * (point[i] - x[i]) - float(row @ b.m @ c))
        curve -= gi * (b.theta * gi + 2 * float(row @ b.m @ p) + gi * float(row @ b.m @ row))
        curve = max(curve, least)
        p += gi * row
        d[i], now = 0.0, times[i]
        wait = max(-slope / curve, 0.0)
    moving = d != 0
    wait = wait if moving.any() else 0.0
    point[moving] = x[moving] + (now + wait) * d[moving]
    return point, c + wait * p


def lowest_point(x: Vector, g: Vector, box: Box, b: Curvature) -> Vector:
    """Returns the point within the bounds that a step goes towards.

    Raises:
        numpy.linalg.LinAlgError: the pairs have lost their digits.
    """
    start, c = cauchy_point(x, g, box, b)
    free = (start > box.lower) & (start < box.upper)
    if not b.w.shape[1] or not free.any():
        return start
    w, theta = b.w[free], b.theta
    r = g[free] + theta * (start - x)[free] - w @ (b.m @ c)
    inner = np.eye(w.shape[1]) - b.m @ (w.T @ w) / theta
    d = -r / theta - w @ np.linalg.solve(inner, b.m @ (w.T @ r)) / theta**2
    point = start.copy()
    point[free] += d
    point = box.nearest(point)
    if (point - x) @ g >= 0:  # the projection has turned the step uphill: end it at the first bound
        inside = Box(box.lower[free], box.upper[free])
        point = start.copy()
        point[free] += min(1.0, inside.reach(start[free], d)) * d
    return point
