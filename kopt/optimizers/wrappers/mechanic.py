"""Mechanic."""

from typing import ClassVar

import numpy as np
from keras import ops

from kopt.optimizers.optimizer import (
    Any,
    NonNegative,
    Positive,
    Slot,
    Slots,
    Step,
    Tensor,
    dot,
    override,
    sum_of_squares,
)
from kopt.optimizers.wrappers.wrapper import Wrapper

BETAS = np.array([0.9, 0.99, 0.999, 0.9999, 0.99999, 0.999999])


class Mechanic(Wrapper):
    r"""Mechanic: learns the factor of the learning rate, by betting on what it would have gained.

        h = -⟨Δ, g + λ (Σ s) ‖g‖ w/‖w‖⟩                      over all weights, before the step: what a larger s gains
        r ← β r + s clip(h, -m, m)                            for each β of six from 0.9 to 0.999999
        m ← max(β m, |h| + ε),  v ← β² v + h²
        s ← (s₀/6 m + max(r, 0)) / (√v + ε)
        Δ ← Δ + step of the optimizer within,  w = w₁ + (Σ s) Δ

    Slots: those of the optimizer within, Δ and the first weights (8 bytes/parameter), and 4 × 6 scalars.  Not row-wise.

    Args:
        start: s₀ > 0, first factor.
        pull: λ ≥ 0, keeps the factor from growing without need.
        epsilon: ε > 0.

    Agrees with the authors' code, which bounds h and |h| where the paper has h alone; there Δ is worked out anew from
    the weights at each step.
    Reference: Cutkosky, Defazio and Mehta, 2023, arXiv:2306.00144.
    """

    bounded = False
    row_wise = False
    start: Positive = 1e-8
    pull: NonNegative = 0.01
    epsilon: Positive = 1e-8
    own_slots: ClassVar[Any] = {"first": Slot("weight", exact=True), "delta": Slot(exact=True, anchored=True)}

    @property
    @override
    def shared(self) -> dict[str, Any]:
        zero = np.zeros(len(BETAS))
        own = {"most": zero, "square": zero, "reward": zero, "scale": zero + self.start}
        return {**self.optimizer.shared, **own}

    @override
    def contribute(self, g: Tensor, w: Tensor, s: Slots, t: Tensor) -> dict[str, Tensor]:
        own = {
            "delta_g": dot(s.delta, g),
            "delta_w": dot(s.delta, w),
            "g_g": sum_of_squares(g),
            "w_w": sum_of_squares(w),
        }
        return super().contribute(g, w, s, t) | own

    @override
    def settle(self, sums: dict[str, Tensor], s: Slots, t: Tensor) -> dict[str, Tensor]:
        betas = ops.cast(BETAS, s.scale.dtype)
        ratio = ops.sqrt(sums["g_g"]) / (ops.sqrt(sums["w_w"]) + self.epsilon)
        h = -(sums["delta_g"] + self.pull * ops.sum(s.scale) * ratio * sums["delta_w"])
        reward = betas * s.reward + s.scale * ops.minimum(ops.maximum(h, -s.most), s.most)
        most = ops.maximum(betas * s.most, ops.abs(h) + self.epsilon)
        square = ops.square(betas) * s.square + ops.square(h)
        wealth = self.start / len(BETAS) * most + ops.maximum(reward, 0.0)
        scale = wealth / (ops.sqrt(square) + self.epsilon)
        own = {"most": most, "square": square, "reward": reward, "scale": scale}
        return super().settle(sums, s, t) | own

    @override
    def advance(self, g: Tensor, w: Tensor, s: Slots, t: Tensor) -> Step:
        there, new = super().advance(g, w, s, t)
        delta = s.delta + (there - w)
        return s.first + ops.sum(s.scale) * delta, {**new, "delta": delta}
