"""What Adam and its kin share."""

from keras import ops

from kopt.optimizers.optimizer import Fraction, Optimizer, Positive, Slot, Slots, Step, Tensor, debias, ema, override


class AdamLike(Optimizer, abstract=True):
    r"""Base of the rules that are Adam but for one thing; a subclass overrides the method in which it differs.

        m ← β₁ m + (1-β₁) g                              `moments`
        v ← β₂ v + (1-β₂) g²
        u = m / (1-β₁ᵗ) / (√(v / (1-β₂ᵗ)) + ε)           `mean` / `root` = `rate` m

    Args:
        beta_1: β₁ in [0, 1), memory of the gradient.
        beta_2: β₂ in [0, 1), memory of its square.
        epsilon: ε > 0, keeps the quotient finite.
    """

    learning_rate = 1e-3
    beta_1: Fraction = 0.9
    beta_2: Fraction = 0.999
    epsilon: Positive = 1e-8

    @property
    @override
    def slots(self) -> dict[str, Slot]:
        return {"m": Slot(), "v": Slot()}

    def moments(self, g: Tensor, s: Slots) -> Slots:
        """Returns m and v after this gradient."""
        return Slots(m=ema(s.m, g, self.beta_1), v=ema(s.v, ops.square(g), self.beta_2))

    def mean(self, s: Slots, t: Tensor) -> Tensor:
        """Returns m / (1-β₁ᵗ)."""
        return s.m / debias(self.beta_1, t)

    def root(self, s: Slots, t: Tensor) -> Tensor:
        """Returns √(v / (1-β₂ᵗ)) + ε."""
        return ops.sqrt(s.v / debias(self.beta_2, t)) + self.epsilon

    @override
    def rule(self, g: Tensor, w: Tensor, s: Slots, t: Tensor) -> Step:
        new = self.moments(g, s)
        return self.rate(new, t) * new.m, vars(new)

    @override
    def rate(self, s: Slots, t: Tensor) -> Tensor:
        return 1.0 / debias(self.beta_1, t) / self.root(s, t)
