"""AdamAtan2."""

import math
from types import SimpleNamespace as State
from typing import Any

from keras import ops

from kopt.declare import Fraction, Positive
from kopt.optimizers.engine.state.slots import Slot
from kopt.optimizers.engine.tensor_math import Tensor, debias, ema
from kopt.optimizers.optimizer import Optimizer


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

    def rule(self, g: Tensor, w: Tensor, s: Any, t: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Takes the angle between first moment and root of the second."""
        new = State(m=ema(s.m, g, self.beta_1), v=ema(s.v, ops.square(g), self.beta_2))
        root = ops.sqrt(new.v / debias(self.beta_2, t))
        return self.a * ops.arctan2(new.m / debias(self.beta_1, t), self.b * root), vars(new)
