"""QHAdam."""

from keras import ops

from kopt.optimizers.adam_like import AdamLike
from kopt.optimizers.optimizer import Fraction, Positive, Share, Slots, Step, Tensor, debias, ema, override


class QHAdam(AdamLike):
    r"""QHAdam: Adam with both moments mixed with the gradient of now, as quasi-hyperbolic momentum does.

        m ← β₁ m + (1-β₁) g
        v ← β₂ v + (1-β₂) g²
        u = ((1-ν₁) g + ν₁ m / (1-β₁ᵗ)) / (√((1-ν₂) g² + ν₂ v / (1-β₂ᵗ)) + ε)

    Slots: m, v, each like w (4 bytes/parameter).  Row-wise.

    Args:
        nu_1: ν₁ in [0, 1], share of the momentum in the step; 1 is Adam, 0 RMSprop.
        nu_2: ν₂ in [0, 1], share of the memory in the mean square.

    Defaults are those that the paper recommends. The authors' code, and `pytorch_optimizer.QHAdam` like it, has ν₁ = 1
    and β₁ = 0.9, that is Adam; given the same numbers, they agree.
    Reference: Ma and Yarats, 2019, arXiv:1810.06801.
    """

    beta_1: Fraction = 0.995
    beta_2: Fraction = 0.999
    nu_1: Share = 0.7
    nu_2: Share = 1.0
    epsilon: Positive = 1e-8

    @override
    def rule(self, g: Tensor, w: Tensor, s: Slots, t: Tensor) -> Step:
        new = self.moments(g, s)
        mean = ema(g, self.mean(new, t), 1 - self.nu_1)
        square = new.v / debias(self.beta_2, t)
        if self.nu_2 < 1:  # a factor of zero would make NaN of an infinite square
            newest = (1 - self.nu_2) * ops.square(g)
            square = self.nu_2 * square + newest if self.nu_2 else newest
        return mean / (ops.sqrt(square) + self.epsilon), vars(new)

    @override
    def rate(self, s: Slots, t: Tensor) -> Tensor:  # at ν₂ = 1, and near it at others
        return 1.0 / self.root(s, t)
