"""RMSprop."""

from keras import ops

from kopt.optimizers.optimizer import Fraction, Optimizer, Positive, Slot, Slots, Step, Tensor, ema, override


class RMSprop(Optimizer):
    r"""RMSprop: divides by a running root mean square of the gradient.

        v ← ρ v + (1-ρ) g²
        a ← ρ a + (1-ρ) g                 (centered; else a = 0)
        u = g / (√(v - a²) + ε)
        b ← μ b + u,  u = b               (with momentum)

    Slots: v, a if centered, b with momentum, each like w (4 bytes/parameter).  Row-wise.

    Args:
        rho: ρ in [0, 1), memory of the mean square.
        momentum: μ in [0, 1), memory of the steps.
        epsilon: ε > 0, keeps the quotient finite.
        centered: divide by the standard deviation instead of the root mean square.

    Differs from `keras.optimizers.RMSprop`: ε outside of the root, and the momentum buffer is free of the learning
    rate; ε is 1e-7 there. Agrees with `torch.optim.RMSprop`.
    Reference: Tieleman and Hinton, Lecture 6.5, 2012; centered: Graves, 2013, arXiv:1308.0850.
    """

    learning_rate = 1e-3
    rho: Fraction = 0.9
    momentum: Fraction = 0.0
    epsilon: Positive = 1e-8
    centered: bool = False

    @property
    @override
    def slots(self) -> dict[str, Slot]:
        return {"v": Slot()} | ({"a": Slot()} if self.centered else {}) | ({"b": Slot()} if self.momentum else {})

    @override
    def rule(self, g: Tensor, w: Tensor, s: Slots, t: Tensor) -> Step:
        new = Slots(v=ema(s.v, ops.square(g), self.rho))
        if self.centered:
            new.a = ema(s.a, g, self.rho)
        u = self.rate(new, t) * g
        if self.momentum:
            u = new.b = self.momentum * s.b + u
        return u, vars(new)

    @override
    def rate(self, s: Slots, t: Tensor) -> Tensor:
        # a variance is not negative, but its difference may be by rounding
        variance = ops.maximum(s.v - ops.square(s.a), 0.0) if self.centered else s.v
        return 1.0 / (ops.sqrt(variance) + self.epsilon)
