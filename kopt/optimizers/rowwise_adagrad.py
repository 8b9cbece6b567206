"""Row-wise AdaGrad."""

import math

from keras import ops

from kopt.optimizers.engine.tensor_math import beside, sums_of_rows
from kopt.optimizers.optimizer import Optimizer, Positive, Slot, Slots, Step, Tensor, override


class RowwiseAdaGrad(Optimizer):
    r"""Row-wise AdaGrad: one number a row, for embedding tables that fill the memory.

        n ← n + mean(g²)              over all axes but the first
        u = g / (√n + ε)

    Slots: n, a number a row: of a table of width 64, 4/64 bytes/parameter.  Row-wise.

    Args:
        epsilon: ε > 0, keeps the quotient finite.

    Differs from `AdaGrad` in the mean over a row. The formula is that of FBGEMM's row-wise AdaGrad, with its `eps`.
    Reference: Mudigere et al., 2022, arXiv:2104.05158.
    """

    learning_rate = 0.01
    epsilon: Positive = 1e-8
    slots = {"n": Slot(shape=lambda layout: layout[:1])}

    @override
    def rule(self, g: Tensor, w: Tensor, s: Slots, t: Tensor) -> Step:
        mean = ops.square(g)
        if len(g.shape) > 1:
            width = math.prod(g.shape[1:])
            mean = sums_of_rows(ops.reshape(mean, (-1, width))) / width if width else 0.0
        new = Slots(n=s.n + mean)
        return beside(self.rate(new, t), g) * g, vars(new)

    @override
    def rate(self, s: Slots, t: Tensor) -> Tensor:
        return 1.0 / (ops.sqrt(s.n) + self.epsilon)
