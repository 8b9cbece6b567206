"""AdamAtan2."""

import math

from keras import ops

from kopt.optimizers.engine.tensor_math import arctan2
from kopt.optimizers.optimizer import Fraction, Optimizer, Positive, Slot, Slots, Step, Tensor, debias, ema, override


class AdamAtan2(Optimizer):
    r"""AdamAtan2: Adam without ε, whose quotient is bounded by the arc tangent.

        m ← β₁ m + (1-β₁) g
        v ← β₂ v + (1-β₂) g²
        u = a atan2(m / (1-β₁ᵗ), b √(v / (1-β₂ᵗ)))

    Slots: m, v, each like w (4 bytes/parameter).  Row-wise.

    Args:
        beta_1: β₁ in [0, 1), memory of the gradient.
        beta_2: β₂ in [0, 1), memory of its square.
        a: > 0, height of the bound, π/2 a; 4/π makes u = 1 where m = √v.
        b: > 0, width of the part that is nearly linear.

    Agrees with `pytorch_optimizer`'s `adam_atan2` and lucidrains' adam-atan2-pytorch, whose a is 1.27.
    Reference: Everett et al., 2024, arXiv:2407.05872.
    """

    learning_rate = 1e-3
    beta_1: Fraction = 0.9
    beta_2: Fraction = 0.999
    a: Positive = 4 / math.pi
    b: Positive = 1.0
    slots = {"m": Slot(), "v": Slot()}
    scale_free = True

    @override
    def rule(self, g: Tensor, w: Tensor, s: Slots, t: Tensor) -> Step:
        new = Slots(m=ema(s.m, g, self.beta_1), v=ema(s.v, ops.square(g), self.beta_2))
        root = ops.sqrt(new.v / debias(self.beta_2, t))
        return self.a * arctan2(new.m / debias(self.beta_1, t), self.b * root), vars(new)
