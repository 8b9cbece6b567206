"""AdEMAMix."""

import math

from keras import ops

from kopt.optimizers.adam_like import AdamLike
from kopt.optimizers.optimizer import Count, Fraction, NonNegative, Positive, Slot, Slots, Step, Tensor, override


class AdEMAMix(AdamLike):
    r"""AdEMAMix: AdamW with a second, much longer memory of the gradient.

        m ← β₁ m + (1-β₁) g
        l ← β₃ l + (1-β₃) g
        v ← β₂ v + (1-β₂) g²
        u = (m / (1-β₁ᵗ) + α l) / (√(v / (1-β₂ᵗ)) + ε)

    With alpha_warmup = T, α grows as α min(t/T, 1). With beta_3_warmup = T, 1/ln β₃ goes linearly from 1/ln β₁ to its
    value in T steps, so that the half-life of l grows linearly. Both are advised from scratch, over the whole training.

    Slots: m, l, v, each like w (4 bytes/parameter).  Row-wise.

    Args:
        beta_1: β₁ in [0, 1), short memory of the gradient.
        beta_3: β₃ in [0, 1), long memory of the gradient.
        alpha: α ≥ 0, weight of the long memory.
        alpha_warmup: ≥ 1, updates until α is reached; None starts there.
        beta_3_warmup: ≥ 1, updates until β₃ is reached; None starts there.

    Agrees with the authors' code, which adds 1e-8 inside of the logarithms.
    Reference: Pagliardini, Ablin and Grangier, 2024, arXiv:2409.03137.
    """

    beta_1: Fraction = 0.9
    beta_2: Fraction = 0.999
    beta_3: Fraction = 0.9999
    alpha: NonNegative = 5.0
    alpha_warmup: Count | None = None
    beta_3_warmup: Count | None = None
    epsilon: Positive = 1e-8
    slots = {"m": Slot(), "l": Slot(), "v": Slot()}

    @override
    def rule(self, g: Tensor, w: Tensor, s: Slots, t: Tensor) -> Step:
        new = self.moments(g, s)
        part = ops.minimum(t / self.beta_3_warmup, 1.0) if self.beta_3_warmup else ops.ones_like(t)
        first, last = (1.0 / math.log(beta) if beta else 0.0 for beta in (self.beta_1, self.beta_3))
        slope = (1.0 - part) * first + part * last  # 1/ln β₃
        new.l = s.l - (ops.expm1(1.0 / slope) if last else -1.0) * (g - s.l)  # 1 - β₃ would cancel
        alpha = self.alpha * (ops.minimum(t / self.alpha_warmup, 1.0) if self.alpha_warmup else 1.0)
        return self.rate(new, t) * (self.mean(new, t) + alpha * new.l), vars(new)

    @override
    def rate(self, s: Slots, t: Tensor) -> Tensor:
        return 1.0 / self.root(s, t)
