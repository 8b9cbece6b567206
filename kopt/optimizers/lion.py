"""Lion."""

from keras import ops

from kopt.optimizers.optimizer import Fraction, Optimizer, Slot, Slots, Step, Tensor, ema, override


class Lion(Optimizer):
    r"""Lion: the sign of an interpolated momentum.

        u = sign(β₁ m + (1-β₁) g)
        m ← β₂ m + (1-β₂) g
        w ← w - η (u + λ w)

    Slots: m, like w (4 bytes/parameter).  Row-wise.  Scale-free.

    Args:
        beta_1: β₁ in [0, 1), weight of the old momentum in the step.
        beta_2: β₂ in [0, 1), weight of the old momentum in the memory.

    Differs from `keras.optimizers.Lion`: decay touches only updated rows; η is 0.001 there, and β₁ = 0 is refused.
    Reference: Chen et al., 2023, arXiv:2302.06675.
    """

    learning_rate = 1e-4
    beta_1: Fraction = 0.9
    beta_2: Fraction = 0.99
    slots = {"m": Slot()}
    scale_free = True

    @override
    def rule(self, g: Tensor, w: Tensor, s: Slots, t: Tensor) -> Step:
        return ops.sign(ema(s.m, g, self.beta_1)), {"m": ema(s.m, g, self.beta_2)}
