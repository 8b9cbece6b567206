"""AdamP and SGDP."""

import math

from keras import ops

from kopt.optimizers.adam_like import AdamLike
from kopt.optimizers.engine.tensor_math import sums_of_units
from kopt.optimizers.optimizer import Fraction, Optimizer, Positive, Slot, Slots, Step, Tensor, ema, override


def projected(u: Tensor, g: Tensor, w: Tensor, rule: "AdamP | SGDP") -> tuple[Tensor, Tensor]:
    """Returns u without its radial part where g is nearly orthogonal to w, and w as it decays."""
    if len(w.shape) < 2:
        return u, w
    kept, decayed, channels = u, w, [sums_of_units(a * b) for a, b in ((w, w), (g, g), (g, w), (w, u))]
    whole = [ops.sum(x) for x in channels]
    for (ww, gg, gw, wu), count in ((whole, 1), (channels, w.shape[-1])):  # channels take precedence
        size = max(math.prod(w.shape) // max(count, 1), 1)
        norm = ops.sqrt(ww)
        bound = rule.delta / math.sqrt(size) * norm * ops.sqrt(gg)
        orthogonal = ops.all(ops.abs(gw) <= bound)  # a weight of zeros, too
        kept = ops.where(orthogonal, u - w * (wu / ops.square(norm + rule.epsilon)), kept)
        decayed = ops.where(orthogonal, rule.wd_ratio * w, decayed)
    return kept, decayed


class AdamP(AdamLike):
    r"""AdamP: Adam without the growth of the norm of weights that a normalization follows.

        m ← β₁ m + (1-β₁) g
        v ← β₂ v + (1-β₂) g²
        u = m / (1-β₁ᵗ) / (√(v / (1-β₂ᵗ)) + ε)      (nesterov: β₁ m + (1-β₁) g in place of m)
        if |cos(g, w)| < δ/√n:  u ← u - ŵ ⟨ŵ, u⟩,  λ ← ρ λ,  ŵ = w / (‖w‖ + ε)
        w ← w - η (u + λ w)

    n, cos and ŵ are those of the n elements of each channel if all channels pass the test, else of the whole weight if
    that passes. A channel is what leads to one unit of the last axis. Vectors are not projected.

    Slots: m, v, each like w (4 bytes/parameter).  Not row-wise.

    Args:
        epsilon: ε > 0, keeps the quotients finite.
        delta: δ > 0, how close to orthogonal gradient and weight must be.
        wd_ratio: ρ in [0, 1), what a projected weight keeps of its decay.
        nesterov: look one momentum step ahead.
        weight_decay: λ ≥ 0; 0.01 as in the authors' example.

    Agrees with the authors' code, where channels stand on the first axis, as torch has them.
    Reference: Heo et al., 2021, arXiv:2006.08217.
    """

    weight_decay = 0.01
    beta_1: Fraction = 0.9
    beta_2: Fraction = 0.999
    epsilon: Positive = 1e-8
    delta: Positive = 0.1
    wd_ratio: Fraction = 0.1
    nesterov: bool = False
    row_wise = bounded = False

    @override
    def advance(self, g: Tensor, w: Tensor, s: Slots, t: Tensor) -> Step:
        new = self.moments(g, s)
        u = self.rate(new, t) * (ema(new.m, g, self.beta_1) if self.nesterov else new.m)
        u, decayed = projected(u, g, w, self)
        return w - s.learning_rate * (u + s.weight_decay * decayed), vars(new)


class SGDP(Optimizer):
    r"""SGDP: momentum without the growth of the norm of weights that a normalization follows.

        b ← μ b + g
        u = b                                       (nesterov: g + μ b)
        w ← step along u, projected as in `AdamP`

    Slots: b, like w (4 bytes/parameter).  Not row-wise.

    Args:
        momentum: μ in [0, 1), what a step keeps of the one before.
        nesterov: look one momentum step ahead; on as in the authors' example, whose rate is 0.1.
        epsilon: ε > 0, as in `AdamP`.
        delta: δ > 0, as there.
        wd_ratio: ρ in [0, 1), as there.

    Differs from the authors' code in the unit of λ, which is divided by 1-μ there, and in the default of the momentum,
    which is 0 there; else agrees with it, and with `pytorch_optimizer.SGDP`. Channels stand on the first axis there, as
    torch has them.
    Reference: Heo et al., 2021, arXiv:2006.08217.
    """

    learning_rate = 0.1
    momentum: Fraction = 0.9
    nesterov: bool = True
    epsilon: Positive = 1e-8
    delta: Positive = 0.1
    wd_ratio: Fraction = 0.1
    row_wise = bounded = False
    slots = {"b": Slot()}

    @override
    def advance(self, g: Tensor, w: Tensor, s: Slots, t: Tensor) -> Step:
        b = self.momentum * s.b + g
        u, decayed = projected(g + self.momentum * b if self.nesterov else b, g, w, self)
        return w - s.learning_rate * (u + s.weight_decay * decayed), {"b": b}
