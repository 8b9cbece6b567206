"""LaProp."""

from kopt.optimizers.adam_like import AdamLike
from kopt.optimizers.optimizer import Positive, Slots, Step, Tensor, ema, override


class LaProp(AdamLike):
    r"""LaProp: Adam that scales the gradient first and then averages, so that any β₁ goes with any β₂.

        v ← β₂ v + (1-β₂) g²
        m ← β₁ m + (1-β₁) g / (√(v / (1-β₂ᵗ)) + ε)
        u = m / (1-β₁ᵗ)

    Slots: m, v, each like w (4 bytes/parameter).  Row-wise.

    Args:
        epsilon: ε > 0; small, as in the authors' code.

    Agrees with the authors' code and with `pytorch_optimizer.LaProp` while η is constant: there η is inside of the sum
    m, so that a new one acts by and by.
    Reference: Ziyin, Wang and Ueda, 2020, arXiv:2002.04839.
    """

    learning_rate = 4e-4
    epsilon: Positive = 1e-15

    @override
    def rule(self, g: Tensor, w: Tensor, s: Slots, t: Tensor) -> Step:
        v = self.moments(g, s).v
        m = ema(s.m, g / self.root(Slots(v=v), t), self.beta_1)
        new = Slots(m=m, v=v)
        return self.mean(new, t), vars(new)

    @override
    def rate(self, s: Slots, t: Tensor) -> Tensor:
        return 1.0 / self.root(s, t)
