"""AdaBelief."""

from keras import ops

from kopt.optimizers.adam_like import AdamLike
from kopt.optimizers.engine.tensor_math import rectification
from kopt.optimizers.optimizer import Fraction, Positive, Slots, Tensor, debias, ema, override


class AdaBelief(AdamLike):
    r"""AdaBelief: long steps where the gradient is as expected, short ones where it is not.

        m ← β₁ m + (1-β₁) g
        v ← β₂ v + (1-β₂) (g - m)² + ε
        u = m / (1-β₁ᵗ) / (√(v / (1-β₂ᵗ)) + ε)                         (rectify: times r, as in `RAdam`)

    Slots: m, v, each like w (4 bytes/parameter).  Row-wise.

    Args:
        beta_2: β₂ in [0, 1), memory of its deviation.
        epsilon: ε > 0, also added to v at each step: its root bounds the rate. Larger ones, 1e-8, are nearer to SGD.
        rectify: warm up as `RAdam` does, with u = m / (1-β₁ᵗ) as long as the average is too short.

    Agrees with the authors' code and `pytorch_optimizer.AdaBelief`, which has rectify off unless told otherwise.
    TensorFlow Addons' ε is 1e-14.
    Reference: Zhuang et al., 2020, arXiv:2010.07468.
    """

    beta_1: Fraction = 0.9
    beta_2: Fraction = 0.999
    epsilon: Positive = 1e-16
    rectify: bool = True

    @override
    def moments(self, g: Tensor, s: Slots) -> Slots:
        m = ema(s.m, g, self.beta_1)
        return Slots(m=m, v=ema(s.v, ops.square(g - m), self.beta_2) + self.epsilon)

    @override
    def rate(self, s: Slots, t: Tensor) -> Tensor:
        rate = 1.0 / self.root(s, t)
        if self.rectify:
            r = rectification(self.beta_2, t, 5.0)
            rate = ops.where(r > 0, r * rate, 1.0)
        return rate / debias(self.beta_1, t)
