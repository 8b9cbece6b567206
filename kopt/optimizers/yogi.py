"""Yogi."""

from keras import ops

from kopt.optimizers.adam_like import AdamLike
from kopt.optimizers.optimizer import Fraction, NonNegative, Positive, Slot, Slots, Tensor, ema, override


class Yogi(AdamLike):
    r"""Yogi: Adam whose second moment moves by a share of g², so that it cannot forget quickly.

        m ← β₁ m + (1-β₁) g
        v ← v - (1-β₂) sign(v - g²) g²
        u = m / (1-β₁ᵗ) / (√(v / (1-β₂ᵗ)) + ε)

    Slots: m, v, each like w (4 bytes/parameter).  Row-wise.

    Args:
        epsilon: ε > 0; large, as in the paper.
        initial_accumulator_value: v before the first step, ≥ 0.

    The paper leaves the corrections 1-βᵗ out for brevity. Differs from `optax.yogi` and `pytorch_optimizer.Yogi`, where
    m begins at 1e-6, too, and from TensorFlow Addons', where ε stands beside the uncorrected root.
    Reference: Zaheer et al., 2018, papers.nips.cc/paper/8186.
    """

    learning_rate = 0.01
    beta_1: Fraction = 0.9
    beta_2: Fraction = 0.999
    epsilon: Positive = 1e-3
    initial_accumulator_value: NonNegative = 1e-6

    @property
    @override
    def slots(self) -> dict[str, Slot]:
        return {"m": Slot(), "v": Slot(self.initial_accumulator_value)}

    @override
    def moments(self, g: Tensor, s: Slots) -> Slots:
        square = ops.square(g)
        return Slots(m=ema(s.m, g, self.beta_1), v=s.v - (1 - self.beta_2) * ops.sign(s.v - square) * square)
