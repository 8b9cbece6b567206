"""AdaMax."""

from keras import ops

from kopt.optimizers.adam_like import AdamLike
from kopt.optimizers.optimizer import Slot, Slots, Tensor, ema, override


class AdaMax(AdamLike):
    r"""AdaMax: Adam with the maximum in place of the root mean square.

        m ← β₁ m + (1-β₁) g
        n ← max(β₂ n, |g|)
        u = m / (1-β₁ᵗ) / (n + ε)

    Slots: m, n, each like w (4 bytes/parameter).  Row-wise.

    Args:
        beta_2: β₂ in [0, 1), memory of its size.
        epsilon: ε > 0; the paper has none and divides by zero where no gradient came.

    Differs from `torch.optim.Adamax`, which adds ε to |g|: equal to within ε/|g|. In `keras.optimizers.Adamax` ε is
    1e-7.
    Reference: Kingma and Ba, 2015, arXiv:1412.6980, section 7.1.
    """

    slots = {"m": Slot(), "n": Slot()}

    @override
    def moments(self, g: Tensor, s: Slots) -> Slots:
        return Slots(m=ema(s.m, g, self.beta_1), n=ops.maximum(self.beta_2 * s.n, ops.abs(g)))

    @override
    def root(self, s: Slots, t: Tensor) -> Tensor:
        return s.n + self.epsilon
