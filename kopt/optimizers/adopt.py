"""ADOPT."""

from keras import ops

from kopt.optimizers.adam_like import AdamLike
from kopt.optimizers.optimizer import Fraction, Positive, Slots, Step, Tensor, ema, override


class ADOPT(AdamLike):
    r"""ADOPT: Adam that divides by the second moment before this gradient, and converges with any β₂.

        first step:   v ← g²                                            and nothing moves
        then:         m ← β₁ m + (1-β₁) clip(g / max(√v, ε), ±(t-1)^¼)
                      w ← w - η (m + λ w)
                      v ← β₂ v + (1-β₂) g²

    Slots: m, v, each like w (4 bytes/parameter).  Row-wise.

    Args:
        beta_1: β₁ in [0, 1), memory of the normalized gradient.
        beta_2: β₂ in [0, 1), memory of the square.
        epsilon: ε > 0, smallest divisor.
        clip: bound the normalized gradient, as the later versions of the paper do.

    Differs from `pytorch_optimizer.ADOPT`, whose bound counts one step more, t^¼, and which decays at the first step,
    too; agrees with the authors' code with `decouple=True` and, without decay, with `optax.contrib.adopt`.
    Reference: Taniguchi et al., 2024, arXiv:2411.02853.
    """

    beta_1: Fraction = 0.9
    beta_2: Fraction = 0.9999
    epsilon: Positive = 1e-6
    clip: bool = True

    @override
    def advance(self, g: Tensor, w: Tensor, s: Slots, t: Tensor) -> Step:
        first, square, bound = ops.equal(t, 1), ops.square(g), ops.power(t - 1.0, 0.25)
        x = ops.clip(g * self.rate(s, t), -bound, bound) if self.clip else g * self.rate(s, t)
        m = ops.where(first, s.m, ema(s.m, x, self.beta_1))
        moved = ops.where(first, w, w - s.learning_rate * (m + s.weight_decay * w))
        return moved, {"m": m, "v": ops.where(first, square, ema(s.v, square, self.beta_2))}

    @override
    def rate(self, s: Slots, t: Tensor) -> Tensor:
        return 1.0 / ops.maximum(ops.sqrt(s.v), self.epsilon)
