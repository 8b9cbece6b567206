"""Shampoo and SOAP."""

import math
from collections.abc import Sequence
from typing import Annotated, NamedTuple

from keras import ops

from kopt.declare import Range
from kopt.optimizers.engine.tensor_math import is_due, of_largest
from kopt.optimizers.matrix.blocks import Blocks, transposed
from kopt.optimizers.matrix.by_matrix import ByMatrix
from kopt.optimizers.optimizer import (
    Count,
    Fraction,
    Layout,
    Mapping,
    OpenFraction,
    Slot,
    Slots,
    Step,
    Tensor,
    debias,
    ema,
    override,
)


class Side(NamedTuple):
    """What is kept for a side of the blocks: the names of its slots."""

    product: str
    basis: str
    sizes: str


SIDES = (Side("L", "A", "a"), Side("R", "B", "b"))
"""Inputs and outputs. What a basis has for sizes along its columns is a matter of the rule."""


class TwoSided(ByMatrix, abstract=True):
    """What Shampoo and SOAP share: for both sides of each block of a kernel two square matrices.

    Args:
        every: k ≥ 1, updates from one renewal to the next, which is a part of the compiled step.
        block: ≥ 1, longest side of a block; longer sides are cut into equal parts. On accelerators 1024 is usual.
    """

    every: Count = 10
    block: Count = 256

    def of_side(self, side: int, axes: int = 2, init: float = 0.0) -> Slot:
        """Returns the slot of a square matrix, or a vector, for a side of each block; a number where there is none."""

        def shape(layout: Layout) -> tuple[int, ...]:
            if not self.takes(layout):
                return ()
            blocks = Blocks.of(layout, self.block)
            return (blocks.count, *[blocks.sides[side]] * axes) if self.has_side(blocks, side) else ()

        return Slot(init, shape=shape, exact=True)

    def has_side(self, blocks: Blocks, side: int) -> bool:
        """Returns whether there are matrices for a side."""
        return True


class Shampoo(TwoSided):
    r"""Shampoo: AdaGrad for matrices, with a preconditioner for each side; AdamW for the rest.

        L ← β L + g gᵀ,  R ← β R + gᵀ g                           for each block of g
        t = 1, 1+k, 1+2k ...:  A = (L + δ ‖L‖ 1)^-¼,  B = (R + δ ‖R‖ 1)^-¼
        m ← μ m + (1-μ) A g B
        u = m / (1-μᵗ)

    Slots: m, like w (4 bytes/parameter); L, A, R, B: of each block of p × q twice p² + q² numbers, always in 4 bytes;
    of what AdamW moves v like w.  Not row-wise, but for that.

    Args:
        beta: β in (0, 1], memory of the products; 1, as in the paper, sums them.
        momentum: μ in [0, 1), memory of the directions.
        damping: δ in (0, 1), in units of ‖L‖ and ‖R‖.

    Differs from `pytorch_optimizer.Shampoo`, where δ is an absolute number, kernels of more axes have a preconditioner
    for each, and momentum mixes gradients with directions.
    Reference: Gupta, Koren and Singer, 2018, arXiv:1802.09568.
    """

    learning_rate = 0.01
    beta: Annotated[float, Range(high=1, above=0, closed=True)] = 1.0
    momentum: Fraction = 0.9
    damping: OpenFraction = 1e-4
    bounded = False

    @property
    @override
    def slots(self) -> dict[str, Slot]:
        return super().slots | {name: self.of_side(side) for side, names in enumerate(("LA", "RB")) for name in names}

    @override
    def matrix_rule(self, g: Tensor, s: Slots, t: Tensor) -> Step:
        blocks = Blocks.of(s.layout, self.block)
        x = blocks.split(g)
        left = self.beta * s.L + ops.matmul(x, transposed(x))
        right = self.beta * s.R + ops.matmul(transposed(x), x)

        def renewed() -> tuple[Tensor, Tensor]:
            return inverse_fourth_root(left, self.damping), inverse_fourth_root(right, self.damping)

        a, b = ops.cond(is_due(t, self.every), renewed, lambda: (s.A, s.B))
        m = ema(s.m, blocks.join(ops.matmul(ops.matmul(a, x), b), s.layout), self.momentum)
        return m / debias(self.momentum, t), {"m": m, "L": left, "A": a, "R": right, "B": b}


def inverse_fourth_root(x: Tensor, damping: float) -> Tensor:
    """Returns (x + δ ‖x‖ 1)^-¼ of symmetric matrices without negative eigenvalues, by Newton's method.

        y ← (5 - m)/4,  m ← y⁴ m,  h ← h y        from m = z a, h = z^¼ 1, to m = 1, h = a^-¼

    By products alone: the eigenvectors of 256 columns take XLA two seconds on a CPU. ‖x‖ is the root of the sum of
    squares.

    Args:
        x: [..., p, p].
        damping: δ in (0, 1): the smaller, the more iterations.
    """
    norm = ops.sqrt(ops.sum(ops.square(x), axis=(-2, -1), keepdims=True))
    norm = ops.where(norm > 0, norm, 1.0)
    one, z = ops.eye(x.shape[-1], dtype=x.dtype), 2.5 / (1 + damping)
    rounds = 6 + math.ceil(math.log(1 / damping) / math.log(1.25**4))  # small eigenvalues grow by that much in each

    def turn(_: Tensor, both: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        m, h = both
        y = 1.25 * one - 0.25 * m
        square = ops.matmul(y, y)
        return ops.matmul(square, ops.matmul(square, m)), ops.matmul(h, y)

    m = z * (x / norm + damping * one)
    _, h = ops.fori_loop(0, rounds, turn, (m, ops.zeros_like(x) + z**0.25 * one))
    return h / ops.sqrt(ops.sqrt(norm))


class SOAP(TwoSided):
    r"""SOAP: Adam in the basis in which Shampoo would precondition; AdamW for the rest.

        t = 1:  L = (1-β₃) g gᵀ,  R = (1-β₃) gᵀ g,  A = Q of g = Q U,  B = Q of gᵀ = Q U;  u = 0
        then:   m ← β₁ m + (1-β₁) g
                v ← β₂ v + (1-β₂) (Aᵀ g B)²
                u = A (Aᵀ m B / (√v + ε)) Bᵀ √(1-β₂ᵗ⁻¹) / (1-β₁ᵗ⁻¹)
                L ← β₃ L + (1-β₃) g gᵀ,  R ← β₃ R + (1-β₃) gᵀ g
        t = 1+k, 1+2k ...:  columns of A in the order of falling Aᵀ L A, rows of v with them;  A ← Q of L A = Q U;  so B

    Slots: m, v, like w (4 bytes/parameter each); L, A, R, B: of each block of p × q twice p² + q² numbers, always in 4
    bytes.  Not row-wise, but for what AdamW moves.

    Args:
        beta_1: β₁ in [0, 1), memory of the gradient, also in AdamW.
        beta_2: β₂ in [0, 1), memory of its square, also in AdamW.
        epsilon: ε > 0, also in AdamW.
        beta_3: β₃ in [0, 1), memory of the products.
        ratio: ≥ 1; a side more than so many times as long as the other stays as it is, without a basis: little of it
            would be known after the first gradient.

    Differs from the authors' code, as from `pytorch_optimizer.SOAP`, in the first bases, which are eigenvectors of L
    and R there: XLA takes long to find these, and one gradient says little of them. Begun with these bases both agree,
    but for `ratio`, and AdamW, which moves vectors at the first update, too.
    Reference: Vyas et al., 2024, arXiv:2409.11321.
    """

    learning_rate = 3e-3
    weight_decay = 0.01
    beta_1: Fraction = 0.95
    beta_2: Fraction = 0.95
    beta_3: Fraction = 0.95
    ratio: Annotated[float, Range(1)] = 2.0

    @property
    @override
    def slots(self) -> dict[str, Slot]:
        def like_blocks(layout: Layout) -> tuple[int, ...]:
            if not self.takes(layout):
                return tuple(layout)
            blocks = Blocks.of(layout, self.block)
            return (blocks.count, *blocks.sides)

        squares = {name: self.of_side(side) for side, names in enumerate(("LA", "RB")) for name in names}
        return super().slots | {"v": Slot(shape=like_blocks)} | squares

    @override
    def has_side(self, blocks: Blocks, side: int) -> bool:
        return blocks.sides[side] <= self.ratio * blocks.sides[1 - side]

    @override
    def matrix_rule(self, g: Tensor, s: Slots, t: Tensor) -> Step:
        blocks, first, k = Blocks.of(s.layout, self.block), ops.equal(t, 1), ops.maximum(t - 1, 1.0)
        x, m = blocks.split(g), ops.where(first, 0.0, ema(s.m, g, self.beta_1))
        v = ops.where(first, 0.0, ema(s.v, ops.square(self._turned(x, s)), self.beta_2))
        inside = self._turned(blocks.split(m), s) / (ops.sqrt(v) + self.epsilon)
        length = ops.sqrt(debias(self.beta_2, k)) / debias(self.beta_1, k)
        u = length * blocks.join(self._turned(inside, s, back=True), s.layout)
        new = {"m": m, "v": v, "A": s.A, "B": s.B} | self.products(x, s, first)
        sides = [side for side in SIDES if len(getattr(s, side.basis).shape)]
        old = {name: new[name] for name in ("v", *(k for side in sides for k in side[1:] if k in new))}
        renewed = ops.cond(
            is_due(t, self.every),
            lambda: ops.cond(first, lambda: self._begun(x, old, sides), lambda: self._renewed(new, old, sides)),
            lambda: old,
        )
        return ops.where(first, 0.0, u), new | renewed

    def products(self, x: Tensor, s: Slots, first: Tensor) -> dict[str, Tensor]:
        """Returns L and R, and what else is kept of products, after a gradient in blocks; `first`: at t = 1."""
        found = {}
        for side, seen in zip(SIDES, (x, transposed(x)), strict=True):
            product = getattr(s, side.product)
            new = ema(product, ops.matmul(seen, transposed(seen)), self.beta_3) if len(product.shape) else product
            found[side.product] = new
        return found

    def _turned(self, x: Tensor, s: Slots, back: bool = False) -> Tensor:
        """Returns Aᵀ x B, or A x Bᵀ."""
        if len(s.A.shape):
            x = ops.matmul(s.A if back else transposed(s.A), x)
        if len(s.B.shape):
            x = ops.matmul(x, transposed(s.B) if back else s.B)
        return x

    def _begun(self, x: Tensor, old: Mapping[str, Tensor], sides: Sequence[Side]) -> dict[str, Tensor]:
        seen = {"A": x, "B": transposed(x)}
        return {**old, **{side.basis: _orthonormal(seen[side.basis]) for side in sides}}

    def _renewed(self, s: Mapping[str, Tensor], old: Mapping[str, Tensor], sides: Sequence[Side]) -> dict[str, Tensor]:
        new = dict(old)
        for side in sides:
            basis = s[side.basis]
            product = of_largest(ops.matmul(s[side.product], basis))
            order = ops.argsort(-ops.sum(basis * product, axis=-2), axis=-1)
            axis, places = (1, order[:, :, None]) if side is SIDES[0] else (2, order[:, None, :])
            new["v"] = ops.take_along_axis(new["v"], places, axis=axis)
            new[side.basis] = _orthonormal(ops.take_along_axis(product, order[:, None, :], axis=2))
            if side.sizes in new:
                new[side.sizes] = ops.take_along_axis(new[side.sizes], order, axis=1)
        return new


def _orthonormal(x: Tensor) -> Tensor:
    """Returns Q of x = Q U, all of its columns."""
    return ops.linalg.qr(of_largest(x), mode="complete")[0]
