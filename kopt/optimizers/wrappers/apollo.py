"""APOLLO."""

import math
from typing import Annotated, ClassVar

from keras import ops

from kopt.declare import Range
from kopt.optimizers.engine.noise import normal
from kopt.optimizers.engine.rule_checks import direction
from kopt.optimizers.optimizer import Any, Literal, Mapping, Positive, Slot, Slots, Step, Tensor, override
from kopt.optimizers.wrappers.low_rank import LowRank, is_wide, projected


class APOLLO(LowRank):
    r"""APOLLO: a large kernel moves along its gradient, by lengths that the optimizer within finds in few dimensions.

        P: r random normal vectors of variance 1/r, others after every k updates
        x = direction of the optimizer within for Pᵀ g                      (g: p × q, p ≤ q; else g P, and rows)
        f = ‖column of x‖ / ‖column of Pᵀ g‖                                (by "tensor": ‖x‖ / ‖Pᵀ g‖)
        u = α g f, each column by its own f
        u ← u γ n/‖u‖ if ‖u‖ > γ n > 0;  n ← ‖u‖

    P is computed where it is needed, and not kept. APOLLO-Mini is `APOLLO(rank=1, by="tensor", scale=128.0)`.

    Slots: n, a number, and of a kernel p × q with p ≤ q each slot of the optimizer within, r q numbers; of other
    weights those of the optimizer within.  Not row-wise, but for those if the optimizer within is.

    Args:
        scale: α > 0, of the steps of such kernels.
        by: whether each column has its length, or the whole matrix has one.
        growth: γ ≥ 1, how much longer than the one before a step may be.

    Differs from the authors' code in the random numbers alone, and from `pytorch_optimizer.APOLLO`, which moves along
    the few dimensions and not along the gradient.
    Reference: Zhu et al., 2024, arXiv:2412.05270; the bound on growth: Chen et al., 2024, arXiv:2410.01623.
    """

    scale: Positive = 1.0
    by: Literal["channel", "tensor"] = "channel"
    growth: Annotated[float, Range(1)] = 1.01
    own_slots: ClassVar[Mapping[str, Any]] = {"norm": Slot(shape=lambda layout: (), exact=True)}

    @override
    def rule(self, g: Tensor, w: Tensor, s: Slots, t: Tensor) -> Step:
        layout = s.layout
        if not self.takes(layout):
            u, new = direction(self.optimizer, g, w, s, t)
            return u, {**new, "norm": s.norm}
        x, wide = layout.as_matrices(g), is_wide(layout)
        short = min(layout.fan_in, layout.fan_out)
        chosen = (s.update - 1) // self.every
        basis = normal(ops.zeros((short, self.rank), x.dtype), chosen, -(2**30) - 1 - s.index) / math.sqrt(self.rank)
        low = projected(x, basis, layout)
        found, new = direction(self.optimizer, low, projected(layout.as_matrices(w), basis, layout), s, t)
        axes = (-2, -1) if self.by == "tensor" else (-2,) if wide else (-1,)
        before = _norms(low, axes)
        u = self.scale * x * ops.where(before > 0, _norms(found, axes) / ops.where(before > 0, before, 1.0), 0.0)
        length, bound = _norms(u, tuple(range(len(u.shape)))), self.growth * s.norm
        u = u * ops.where((bound > 0) & (length > bound), bound / ops.where(length > 0, length, 1.0), 1.0)
        length = ops.where(bound > 0, ops.minimum(length, bound), length)
        return layout.from_matrices(u), {**new, "norm": ops.reshape(length, ())}


def _norms(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    return ops.sqrt(ops.sum(ops.square(x), axis=axes, keepdims=True))
