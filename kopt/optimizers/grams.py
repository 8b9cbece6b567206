"""Grams."""

from keras import ops

from kopt.optimizers.adam import Adam
from kopt.optimizers.optimizer import Slots, Step, Tensor, override


class Grams(Adam):
    r"""Grams: steps as long as Adam's, in the direction of this gradient.

        u = sign(g) |û|,  û the direction of `Adam`

    Slots: as `Adam`.  Row-wise.

    Differs from the authors' code, which has ε = 1e-6 beside the uncorrected root; agrees with it without ε.
    Reference: Cao, Li and Song, 2024, arXiv:2412.17107.
    """

    @override
    def rule(self, g: Tensor, w: Tensor, s: Slots, t: Tensor) -> Step:
        u, new = super().rule(g, w, s, t)
        return ops.sign(g) * ops.abs(u), new
