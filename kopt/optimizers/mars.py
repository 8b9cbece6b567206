"""MARS."""

from collections.abc import Mapping
from types import SimpleNamespace as State
from typing import Any, Literal

from keras import ops

from kopt.declare import Fraction, NonNegative, Positive
from kopt.optimizers.engine.state.slots import Slot
from kopt.optimizers.engine.tensor_math import Tensor, debias, ema, sum_of_squares
from kopt.optimizers.optimizer import Optimizer


class MARS(Optimizer):
    r"""MARS: AdamW or Lion on a gradient from which a part of the noise is taken by the gradient before.

        c = g + γ β₁/(1-β₁) (g - g₋),  c ← c / max(‖c‖, 1)          (g₋ the gradient before, 0 at first)
        m ← β₁ m + (1-β₁) c
        adamw:  v ← β₂ v + (1-β₂) c²,  u = m / (1-β₁ᵗ) / (√(v / (1-β₂ᵗ)) + ε)
        lion:   u = sign(m)

    Slots: m, g₋ and with "adamw" v, each like w (4 bytes/parameter).  Not row-wise.

    Args:
        beta_1: β₁ in [0, 1), memory of the gradient.
        beta_2: β₂ in [0, 1), memory of its square. Nothing in "lion".
        gamma: γ ≥ 0, how much of the difference is added; 0 has AdamW or Lion with clipped gradients.
        form: "adamw" or "lion", what is done with c.
        epsilon: ε > 0, keeps the quotient finite. Nothing in "lion".

    This is MARS-approx, whose g₋ is that of the last batch; MARS itself takes a second gradient on this one.
    Differs from the authors' code, which leaves biases and gains to AdamW with a rate of their own unless told
    otherwise; then agrees with it, but for the place of ε, beside the uncorrected root there.
    Reference: Yuan et al., 2024, arXiv:2411.10438.
    """

    learning_rate = 3e-3
    beta_1: Fraction = 0.95
    beta_2: Fraction = 0.99
    gamma: NonNegative = 0.025
    form: Literal["adamw", "lion"] = "adamw"
    epsilon: Positive = 1e-8
    row_wise = False

    @property
    def slots(self) -> Mapping[str, Slot]:
        """The moments and the last gradient."""
        return {"m": Slot(), "last": Slot()} | ({"v": Slot()} if self.form == "adamw" else {})

    def rule(self, g: Tensor, w: Tensor, s: Any, t: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Corrects the gradient, then steps as AdamW or Lion."""
        c = g + self.gamma * self.beta_1 / (1 - self.beta_1) * (g - s.last)
        c = c / ops.maximum(ops.sqrt(sum_of_squares(c)), 1.0)
        new = State(m=ema(s.m, c, self.beta_1), last=g)
        if self.form == "lion":
            return ops.sign(new.m), vars(new)
        new.v = ema(s.v, ops.square(c), self.beta_2)
        return self.rate(new, t) * new.m, vars(new)

    def rate(self, s: Any, t: Tensor) -> Tensor:
        """1 / (1-β₁ᵗ) / (√(v / (1-β₂ᵗ)) + ε); 1 for Lion."""
        if self.form == "lion":
            return 1.0
        return 1.0 / debias(self.beta_1, t) / (ops.sqrt(s.v / debias(self.beta_2, t)) + self.epsilon)
