"""DiffGrad."""

from keras import ops

from kopt.optimizers.adam_like import AdamLike
from kopt.optimizers.optimizer import Slot, Slots, Step, Tensor, override


class DiffGrad(AdamLike):
    r"""DiffGrad: Adam whose steps shrink, down to one half, where the gradient hardly changes.

        ξ = sigmoid(|p - g|),  p ← g
        m ← β₁ m + (1-β₁) g
        v ← β₂ v + (1-β₂) g²
        u = ξ m / (1-β₁ᵗ) / (√(v / (1-β₂ᵗ)) + ε)

    Slots: m, v and the gradient before, p, each like w (4 bytes/parameter).  Row-wise.

    Differs from the first code of the authors, which compares the gradient with itself, so that ξ = 1/2; agrees with
    their second one and with `pytorch_optimizer.DiffGrad`, but that they put ε beside the uncorrected root.
    Reference: Dubey et al., 2020, arXiv:1909.11015.
    """

    slots = {"m": Slot(), "v": Slot(), "p": Slot()}

    @override
    def rule(self, g: Tensor, w: Tensor, s: Slots, t: Tensor) -> Step:
        new, friction = self.moments(g, s), ops.sigmoid(ops.abs(s.p - g))
        return self.rate(new, t) * friction * new.m, {**vars(new), "p": g}
