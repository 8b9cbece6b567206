"""KLSOAP."""

from keras import ops

from kopt.optimizers.matrix.blocks import Blocks, transposed
from kopt.optimizers.matrix.shampoo import SIDES, SOAP
from kopt.optimizers.optimizer import Slot, Slots, Tensor, ema, override

START = 0.1
"""First sizes along the columns of a basis."""
LEAST, MOST = 10, 4000
"""Bounds of what a product is magnified by, beside the length of the side."""


class KLSOAP(SOAP):
    r"""KL-SOAP: `SOAP` whose products see each other's: so both together are the covariance of g that is most likely.

        x = g B b^-½,  y = a^-½ Aᵀ g                                    at t = 1 both are g
        L ← β₃ L + (1-β₃) x xᵀ/q,  R ← β₃ R + (1-β₃) yᵀ y/p            for each block p × q
        a ← β₃ a + (1-β₃) mean((Aᵀ x)²),  b ← β₃ b + (1-β₃) mean((y B)²)      over the other side, from t = 2

    All else is as in SOAP. a and b, the sizes along the columns of A and B, begin at 0.1, move with the columns, and
    a^-½ is at most max(10, min(p, 4000)). A side without a basis counts as one that is known.

    Slots: those of SOAP, and of each block a and b, p + q numbers, always in 4 bytes.  Not row-wise, but for what AdamW
    moves.

    Differs from the authors' code in the first bases, as `SOAP` does, in that it corrects for the start of m and v at
    zero, and in that v moves with the columns.
    Reference: Lin et al., 2025, arXiv:2509.03378.
    """

    bounded = False

    @property
    @override
    def slots(self) -> dict[str, Slot]:
        return super().slots | {side.sizes: self.of_side(i, axes=1, init=START) for i, side in enumerate(SIDES)}

    @override
    def products(self, x: Tensor, s: Slots, first: Tensor) -> dict[str, Tensor]:
        blocks, found = Blocks.of(s.layout, self.block), dict[str, Tensor]()
        for i, seen in enumerate((x, transposed(x))):
            side, other, length = SIDES[i], SIDES[1 - i], ops.cast(blocks.lengths(1 - i), x.dtype)
            product, basis, sizes = (getattr(s, name) for name in side)
            if len(product.shape):
                if len(getattr(s, other.basis).shape):
                    across = ops.matmul(seen, getattr(s, other.basis)) * _root(getattr(s, other.sizes))[:, None, :]
                    seen = ops.where(first, seen, across)
                product = ema(product, ops.matmul(seen, transposed(seen)) / length, self.beta_3)
                along = ops.sum(ops.square(ops.matmul(transposed(basis), seen)) / length, axis=-1)
                sizes = ops.where(first, sizes, ema(sizes, along, self.beta_3))
            found |= {side.product: product, side.sizes: sizes}
        return found


def _root(sizes: Tensor) -> Tensor:
    """Returns 1/√sizes, within bounds."""
    return ops.rsqrt(ops.maximum(sizes, max(LEAST, min(sizes.shape[-1], MOST)) ** -2.0))
