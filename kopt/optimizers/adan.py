"""Adan."""

from keras import ops

from kopt.optimizers.optimizer import Fraction, Optimizer, Positive, Slot, Slots, Step, Tensor, debias, ema, override


class Adan(Optimizer):
    r"""Adan: Adam with Nesterov momentum estimated from differences of gradients.

        d = g - g₋                                          (g₋ the gradient before; d = 0 at the first step)
        m ← β₁ m + (1-β₁) g
        e ← β₂ e + (1-β₂) d
        v ← β₃ v + (1-β₃) (g + β₂ d)²
        u = (m / (1-β₁ᵗ) + β₂ e / (1-β₂ᵗ)) / (√(v / (1-β₃ᵗ)) + ε)
        w ← (w - η u) / (1 + η λ)

    Slots: m, e, v, g₋, each like w (4 bytes/parameter).  Row-wise.

    Args:
        beta_1: β₁ in [0, 1), memory of the gradient.
        beta_2: β₂ in [0, 1), memory of its differences.
        beta_3: β₃ in [0, 1), memory of the squares.
        epsilon: ε > 0, keeps the quotient finite.

    The β are those of the authors' code, 1 minus those of the paper. Differs from `optax.adan`, which multiplies the
    differences by 1-β₂ where the paper has β₂ of this notation; agrees with the authors' code.
    Reference: Xie et al., 2024, arXiv:2208.06677.
    """

    learning_rate = 1e-3
    beta_1: Fraction = 0.98
    beta_2: Fraction = 0.92
    beta_3: Fraction = 0.99
    epsilon: Positive = 1e-8
    slots = {"m": Slot(), "e": Slot(), "v": Slot(), "last": Slot()}

    @override
    def advance(self, g: Tensor, w: Tensor, s: Slots, t: Tensor) -> Step:
        d = ops.where(ops.equal(t, 1), 0.0, g - s.last)
        new = Slots(m=ema(s.m, g, self.beta_1), e=ema(s.e, d, self.beta_2), last=g)
        new.v = ema(s.v, ops.square(g + self.beta_2 * d), self.beta_3)
        u = self.rate(new, t) * (new.m / debias(self.beta_1, t) + self.beta_2 * new.e / debias(self.beta_2, t))
        return (w - s.learning_rate * u) / (1.0 + s.learning_rate * s.weight_decay), vars(new)

    @override
    def rate(self, s: Slots, t: Tensor) -> Tensor:
        return 1.0 / (ops.sqrt(s.v / debias(self.beta_3, t)) + self.epsilon)
