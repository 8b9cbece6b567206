"""ADOPT."""

from typing import Any

from keras import ops

from kopt.declare import Fraction, Positive
from kopt.optimizers.engine.state.slots import Slot
from kopt.optimizers.engine.tensor_math import Tensor, ema
from kopt.optimizers.optimizer import Optimizer


class ADOPT(Optimizer):
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

    learning_rate = 1e-3
    beta_1: Fraction = 0.9
    beta_2: Fraction = 0.9999
    epsilon: Positive = 1e-6
    clip: bool = True
    slots = {"m": Slot(), "v": Slot()}

    def advance(self, g: Tensor, w: Tensor, s: Any, t: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Normalizes by the old v, then renews it."""
        first, square = ops.equal(t, 1), ops.square(g)
        x = g * self.rate(s, t)
        if self.clip:
            bound = ops.power(t - 1.0, 0.25)
            x = ops.clip(x, -bound, bound)
        m = ops.where(first, s.m, ema(s.m, x, self.beta_1))
        moved = ops.where(first, w, w - s.learning_rate * (m + s.weight_decay * w))
        return moved, {"m": m, "v": ops.where(first, square, ema(s.v, square, self.beta_2))}

    def rate(self, s: Any, t: Tensor) -> Tensor:
        """1 / max(√v, ε)."""
        return 1.0 / ops.maximum(ops.sqrt(s.v), self.epsilon)
