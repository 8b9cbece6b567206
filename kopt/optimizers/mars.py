"""MARS."""

from keras import ops

from kopt.optimizers.adam_like import AdamLike
from kopt.optimizers.optimizer import (
    Fraction,
    Literal,
    NonNegative,
    Positive,
    Slot,
    Slots,
    Step,
    Tensor,
    ema,
    override,
    sum_of_squares,
)


class MARS(AdamLike):
    r"""MARS: AdamW or Lion on a gradient from which a part of the noise is taken by the gradient before.

        c = g + γ β₁/(1-β₁) (g - g₋),  c ← c / max(‖c‖, 1)          (g₋ the gradient before, 0 at first)
        m ← β₁ m + (1-β₁) c
        adamw:  v ← β₂ v + (1-β₂) c²,  u = m / (1-β₁ᵗ) / (√(v / (1-β₂ᵗ)) + ε)
        lion:   u = sign(m)

    Slots: m, g₋ and with "adamw" v, each like w (4 bytes/parameter).  Not row-wise.

    Args:
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
    @override
    def slots(self) -> dict[str, Slot]:
        return {"m": Slot(), "last": Slot()} | ({"v": Slot()} if self.form == "adamw" else {})

    @override
    def moments(self, g: Tensor, s: Slots) -> Slots:
        return super().moments(g, s) if self.form == "adamw" else Slots(m=ema(s.m, g, self.beta_1))

    @override
    def rule(self, g: Tensor, w: Tensor, s: Slots, t: Tensor) -> Step:
        c = g + self.gamma * self.beta_1 / (1 - self.beta_1) * (g - s.last)
        c = c / ops.maximum(ops.sqrt(sum_of_squares(c)), 1.0)
        new = self.moments(c, s)
        u = self.rate(new, t) * new.m if self.form == "adamw" else ops.sign(new.m)
        return u, {**vars(new), "last": g}

    @override
    def rate(self, s: Slots, t: Tensor) -> Tensor:
        return super().rate(s, t) if self.form == "adamw" else 1.0
