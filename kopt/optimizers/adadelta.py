"""AdaDelta."""

from keras import ops

from kopt.optimizers.optimizer import Fraction, Optimizer, Positive, Slot, Slots, Step, Tensor, ema, override


class AdaDelta(Optimizer):
    r"""AdaDelta: steps of the size of the recent ones, in the units of the weights.

        v ← ρ v + (1-ρ) g²
        u = g √(d + ε) / √(v + ε)
        d ← ρ d + (1-ρ) u²

    Slots: v, d, each like w (4 bytes/parameter).  Row-wise.

    Args:
        learning_rate: η ≥ 0; 1 in the paper.
        rho: ρ in [0, 1), memory of the squares.
        epsilon: ε > 0; its root is the size of the first steps.

    Differs from `keras.optimizers.Adadelta` in η and ε, 0.001 and 1e-7 there; agrees with `torch.optim.Adadelta`.
    Reference: Zeiler, 2012, arXiv:1212.5701.
    """

    learning_rate = 1.0
    rho: Fraction = 0.95
    epsilon: Positive = 1e-6
    slots = {"v": Slot(), "d": Slot()}

    @override
    def rule(self, g: Tensor, w: Tensor, s: Slots, t: Tensor) -> Step:
        v = ema(s.v, ops.square(g), self.rho)
        u = g * ops.sqrt((s.d + self.epsilon) / (v + self.epsilon))
        return u, {"v": v, "d": ema(s.d, ops.square(u), self.rho)}

    @override
    def rate(self, s: Slots, t: Tensor) -> Tensor:
        return ops.sqrt((s.d + self.epsilon) / (s.v + self.epsilon))
