"""PSGDKron."""

from typing import Annotated

from keras import ops

from kopt.declare import Range
from kopt.optimizers.engine.noise import normal
from kopt.optimizers.engine.tensor_math import beside, is_due, of_largest
from kopt.optimizers.matrix.blocks import transposed
from kopt.optimizers.matrix.by_matrix import ByMatrix
from kopt.optimizers.optimizer import (
    Count,
    Fraction,
    Layout,
    Positive,
    Slot,
    Slots,
    Step,
    Tensor,
    debias,
    ema,
    override,
)

SALT = -(2**31)
"""Tells these random numbers from those of the engine."""
LONGEST = 1.1
"""Root of the mean square of a step."""


class PSGDKron(ByMatrix):
    r"""PSGD Kron: momentum, whitened by two triangular factors that are fitted along the way; AdamW for the rest.

        m ← μ m + (1-μ) g,  x = m / (1-μᵗ)
        t ≤ n, and t = 1, 1+k, 1+2k ...:    v: normal numbers, others each time,  y = x + δ v
            X = L y Rᵀ,  V = L⁻ᵀ v R⁻¹
            L ← L - ρ triu(X Xᵀ - V Vᵀ) L / ‖X Xᵀ + V Vᵀ‖
            R ← R - ρ triu(Xᵀ X - Vᵀ V) R / ‖Xᵀ X + Vᵀ V‖
            L, R ← c L, R / c                                      (max |L| = max |R|, which changes no step)
        u = Lᵀ L x Rᵀ R,  u ← u min(1, 1.1 / rms(u))

    Both begin as (rms(x) + δ)^-¼ times the identity, at the first gradient that is not zero. So u has an rms near 1
    from the start, some three times AdamW's, whose rate is three times as high here. ‖a‖ is a lower bound of the
    largest eigenvalue, ‖a b‖/‖b‖ of b = a a_j with the longest row a_j. Of a diagonal factor the diagonals of all these
    are taken.

    Slots: m, like w (4 bytes/parameter); L and R: of a kernel p × q p² + q² numbers, of a diagonal factor p or q,
    always in 4 bytes; of what AdamW moves v like w.  Not row-wise, but for that.

    Args:
        momentum: μ in [0, 1), memory of the gradient.
        fit_rate: ρ in (0, 0.5], the largest part of a factor that a renewal changes.
        every: k ≥ 1, updates from one renewal to the next, which is a part of the compiled step.
        flat_start: n ≥ 0, updates at the beginning that all renew the factors.
        max_size: ≥ 1, longest side with a triangular factor; that of a longer one is diagonal.
        ratio: ≥ 1; a side more than so many times as long as the other has a diagonal factor, too.
        damping: δ > 0, size of gradients that are taken for nothing: no direction is magnified beyond 1/δ for long.

    Differs from `pytorch_optimizer.Kron`, as from the authors' code, in what AdamW moves, which has diagonal factors
    there, and in kernels of more axes, which have a factor for each; in how the factors begin, at 1 there; and in when
    they are renewed, there less and less often. Without damping, and begun alike, both agree.
    Reference: Li, 2015, arXiv:1512.04202; Pooladzandi and Li, 2024, arXiv:2402.04553.
    """

    adam_rate = 3.0
    momentum: Fraction = 0.9
    fit_rate: Annotated[float, Range(high=0.5, above=0, closed=True)] = 0.1
    every: Count = 10
    flat_start: Annotated[int, Range(0)] = 100
    max_size: Count = 1024
    ratio: Annotated[float, Range(1)] = 2.0
    damping: Positive = 1e-9

    @property
    @override
    def slots(self) -> dict[str, Slot]:
        return super().slots | {name: self._factor(side) for side, name in enumerate("LR")}

    def _factor(self, side: int) -> Slot:
        def shape(layout: Layout) -> tuple[int, ...]:
            if not self.takes(layout):
                return ()
            *stacked, p, q = layout.matrices
            length, other = (p, q) if side == 0 else (q, p)
            full = length <= self.max_size and length <= self.ratio * other
            return (*(stacked or [1]), *([length, length] if full else [length]))

        return Slot(shape=shape, exact=True)

    @override
    def matrix_rule(self, g: Tensor, s: Slots, t: Tensor) -> Step:
        m, shape = ema(s.m, g, self.momentum), s.layout.matrices
        x = ops.reshape(m / debias(self.momentum, t), (-1, *shape[-2:]))
        due = ops.logical_or(t <= self.flat_start, is_due(t, self.every))
        left, right = ops.cond(due, lambda: self._renewed(x, s), lambda: (s.L, s.R))
        u = transposed(_times(right, transposed(_times(left, x))))
        u = transposed(_back(right, transposed(_back(left, u))))
        u = u * ops.minimum(1.0, LONGEST / (_rms(u) + 1e-6))
        return ops.reshape(u, shape), {"m": m, "L": left, "R": right}

    def _renewed(self, x: Tensor, s: Slots) -> tuple[Tensor, Tensor]:
        v, size = normal(x, s.update, SALT), _rms(x)[:, 0, 0]
        begun = _largest(s.L) > 0
        start = (size + self.damping) ** -0.25
        left, right = (ops.where(beside(begun, q), q, beside(start, q) * _one(q)) for q in (s.L, s.R))
        y = transposed(_times(right, transposed(_times(left, x + self.damping * v))))
        v = transposed(_solved(right, transposed(_solved(left, v))))
        unit = beside(ops.maximum(_largest(y), _largest(v)), x)  # squares of what is large would overflow
        y, v = y / unit, v / unit
        left, right = self._moved(left, y, v), self._moved(right, transposed(y), transposed(v))
        c = ops.sqrt(_largest(right) / _largest(left))
        left, right = left * beside(c, left), right / beside(c, right)
        alive = ops.logical_or(begun, size > 0)
        return ops.where(beside(alive, left), left, s.L), ops.where(beside(alive, right), right, s.R)

    def _moved(self, q: Tensor, y: Tensor, v: Tensor) -> Tensor:
        """Returns a factor that fits y a little better, of which v is what it does to normal numbers."""
        if is_diagonal(q):
            fits, noise = ops.sum(ops.square(y), axis=-1), ops.sum(ops.square(v), axis=-1)
            return q - self.fit_rate * (fits - noise) * q / ops.max(fits + noise, axis=-1, keepdims=True)
        fits, noise = ops.matmul(y, transposed(y)), ops.matmul(v, transposed(v))
        return q - self.fit_rate * ops.matmul(ops.triu(fits - noise), q) / _norm(fits + noise)


def is_diagonal(q: Tensor) -> bool:
    """Whether of stacked matrices there are the diagonals alone."""
    return len(q.shape) == 2


def _one(q: Tensor) -> Tensor:
    return ops.ones_like(q) if is_diagonal(q) else ops.eye(q.shape[-1], dtype=q.dtype)


def _times(q: Tensor, x: Tensor) -> Tensor:
    return q[:, :, None] * x if is_diagonal(q) else ops.matmul(q, x)


def _back(q: Tensor, x: Tensor) -> Tensor:
    """Returns qᵀ x."""
    return _times(q if is_diagonal(q) else transposed(q), x)


def _solved(q: Tensor, x: Tensor) -> Tensor:
    """Returns q⁻ᵀ x."""
    return x / q[:, :, None] if is_diagonal(q) else ops.linalg.solve_triangular(transposed(q), x, lower=True)


def _largest(x: Tensor) -> Tensor:
    return ops.max(ops.abs(x), axis=tuple(range(1, len(x.shape))))


def _rms(x: Tensor) -> Tensor:
    """Returns the roots of the mean squares of matrices, whose squares may be too large for a float."""
    return beside(_largest(x), x) * ops.sqrt(ops.mean(ops.square(of_largest(x)), axis=(-2, -1), keepdims=True))


def _norm(a: Tensor) -> Tensor:
    """Returns lower bounds of the largest eigenvalues of symmetric matrices, which are at most √2 times as large."""
    longest = ops.argmax(ops.sum(ops.square(a), axis=-1), axis=-1)
    b = ops.matmul(a, ops.take_along_axis(a, longest[:, None, None], axis=2))
    before, after = (ops.sum(ops.square(x), axis=1, keepdims=True) for x in (b, ops.matmul(a, b)))
    return ops.sqrt(after / before)
