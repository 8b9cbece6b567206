r"""Levenberg-Marquardt.

With J = ∂r/∂w at w, and D the largest lengths so far of the columns of J, a step solves

    min ‖r + J δ‖²   for  ‖D δ‖ ≤ Δ          δ = D⁻¹ z,  z = -(AᵀA + λ)⁻¹ Aᵀ r,  A = J D⁻¹,  λ ≥ 0 for the bound

in the space of kopt/optimizers/full_batch/bidiagonal.py, which is the same for every λ: a step that is refused costs
one more evaluation of r, and no products. With ρ the decrease of ‖r‖² over the one that was predicted:

    ρ < 1/4             Δ ← min(Δ, 10 ‖z‖) times the step to the least of a parabola, within [1/10, 1/2]
    ρ ≥ 3/4 or λ = 0    Δ ← 2 ‖z‖
    ρ > 10⁻⁴            w ← w + δ
"""

from typing import NamedTuple

import numpy as np

from kopt.declare import Count, Positive, checked
from kopt.optimizers.full_batch.bidiagonal import Bidiagonal, Vector, bidiagonal
from kopt.optimizers.full_batch.residuals import Residuals
from kopt.optimizers.full_batch.result import Result


class LevenbergMarquardt:
    r"""Levenberg-Marquardt: least squares to the last digit, for regressions and physics-informed networks.

    Between Gauss-Newton, which takes the residuals for linear in the weights, and steepest descent, as far as steps
    have kept what they promised. It sees the residuals one by one, not their sum, and the matrix of their derivatives
    only through products, of which a step takes up to twice `products`, each as dear as a gradient. For
    `kopt.minimize(..., optimizer=kopt.LevenbergMarquardt())`: a function returns the residuals, whose squares are
    summed; a model is fitted in the mean square.

    Memory: `products` vectors like the weights and as many like the residuals, in float64 on the host.

    Args:
        radius: > 0, first Δ, in units of ‖D w‖.
        products: ≥ 1, the dimensions in which a step is looked for. As many as there are weights make it exact, and
            fewer do where many directions matter little.

    Differs from MINPACK's `lmder` (`scipy.optimize.least_squares(method="lm")`) in that it needs no matrix, and finds λ
    exactly; on the problems of NIST's StRD it gets as many right (tests/optimizers/test_least_squares.py).
    Reference: Moré, 1978, doi:10.1007/BFb0067700; Golub and Kahan, 1965, doi:10.1137/0702016.
    """

    @checked
    def __init__(self, *, radius: Positive = 100.0, products: Count = 50) -> None:
        self.radius, self.products = radius, products

    def __repr__(self) -> str:
        """Returns the call that makes it."""
        return f"LevenbergMarquardt(radius={self.radius!r}, products={self.products!r})"

    def minimize(self, residuals: Residuals, tolerance: float, most: int) -> Result:
        """Minimizes the sum of the squares.

        Args:
            residuals: to make small.
            tolerance: ≥ 0; the largest element of the gradient of ‖r‖² at the end.
            most: ≥ 1, evaluations of r.
        """
        w = residuals.weights()
        r = residuals.move(w)
        value, count, stalled = _squared(r), 1, False
        scale, radius = np.zeros_like(w), 0.0
        while True:
            gradient = 2 * residuals.backward(r)
            norm = float(np.abs(gradient).max(initial=0.0))
            if norm <= tolerance:
                return Result(True, f"the gradient is within {tolerance:g}", count, value, norm)
            if count == 1 and not (np.isfinite(value) and np.isfinite(norm)):
                return Result(False, "loss or gradient are not finite at the start", count, value, norm)
            if stalled:
                return Result(False, "no step decreases the loss at this precision", count, value, norm)
            if count >= most:
                return Result(False, f"{count} evaluations were made", count, value, norm)
            if not radius:
                lengths = _scaled_space(residuals, np.ones_like(w), r, self.products).column_norms()
                scale = np.where(lengths > 0, lengths, 1.0)
                radius = self.radius * (float(np.linalg.norm(scale * w)) or 1.0)
            space = _scaled_space(residuals, scale, r, self.products)
            model = _Model.of(space.small, space.length)
            accepted = False
            while not (accepted or stalled or count >= most):
                step = model.within(radius)
                z = (model.turn @ step.y) @ space.rows
                there = residuals.move(w + z / scale)
                count += 1
                new = _squared(there)
                size, decrease = float(np.linalg.norm(step.y)), value - new
                kept = decrease / step.predicted if np.isfinite(new) and step.predicted > 0 else -1.0
                if kept < 0.25:
                    radius = min(radius, 10 * size) * _shortened(value, new, step.slope)
                elif kept >= 0.75 or not step.damping:
                    radius = 2 * size
                accepted = kept > 1e-4
                small = residuals.precision * max(float(np.linalg.norm(scale * w)), float(np.finfo("float64").tiny))
                stalled = step.predicted <= residuals.precision * value or radius <= small
                if accepted:
                    w, r, value = residuals.weights(), there, new
                    scale = np.maximum(scale, space.column_norms() * scale)
            if not accepted:
                residuals.move(w)


class _Step(NamedTuple):
    """A step in the small space: where to, its λ, what it promises, and how fast ‖r‖² falls at its beginning."""

    y: Vector
    damping: float
    predicted: float
    slope: float


class _Model(NamedTuple):
    """‖r + A z‖² in the small space, turned so that it is a sum: Σ (σᵢ yᵢ - cᵢ)², and what no step reaches.

    Attributes:
        sizes: σ.
        wanted: c.
        turn: from y to the vectors v.
    """

    sizes: Vector
    wanted: Vector
    turn: Vector

    @classmethod
    def of(cls, small: Vector, length: float) -> "_Model":
        """Returns that of a bidiagonal matrix and the length of r."""
        left, sizes, right = np.linalg.svd(small, full_matrices=False)
        return cls(sizes, -length * left[0], right.T)

    def within(self, radius: float) -> _Step:
        """Returns the best step of at most this length."""
        regular = self.sizes > np.finfo("float64").eps * self.sizes[0]
        y, damping = np.where(regular, self.wanted / np.where(regular, self.sizes, 1.0), 0.0), 0.0
        if np.linalg.norm(y) > 1.1 * radius:
            damping = self._damping(radius)
            y = self._damped(damping)
        left = self.wanted - self.sizes * y
        predicted = float(self.wanted @ self.wanted - left @ left)
        return _Step(y, damping, predicted, -2.0 * float(self.wanted @ (self.sizes * y)))

    def _damped(self, damping: float) -> Vector:
        return self.sizes * self.wanted / (self.sizes**2 + damping)

    def _damping(self, radius: float) -> float:
        """Returns λ for a step of this length, by halving the exponent; longer steps have a smaller one."""
        high = float(np.log(np.linalg.norm(self.sizes * self.wanted) / radius))
        low = high - 100.0
        for _ in range(60):
            middle = (low + high) / 2
            if np.linalg.norm(self._damped(np.exp(middle))) > radius:
                low = middle
            else:
                high = middle
        return float(np.exp(high))


def _squared(r: Vector) -> float:
    with np.errstate(over="ignore", invalid="ignore"):  # a step too far is taken back
        return float(r @ r)


def _shortened(value: float, new: float, slope: float) -> float:
    """Returns the factor of a radius whose step kept less than a fourth of its promise."""
    if not np.isfinite(new):
        return 0.1
    return float(np.clip(-slope / (2 * max(new - value - slope, np.finfo("float64").tiny)), 0.1, 0.5))


def _scaled_space(residuals: Residuals, scale: Vector, r: Vector, products: int) -> Bidiagonal:
    """Returns J D⁻¹ in the space that r and its products span, D the matrix of `scale`."""
    return bidiagonal(lambda z: residuals.forward(z / scale), lambda u: residuals.backward(u) / scale, r, products)
