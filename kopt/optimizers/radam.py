"""RAdam."""

from typing import Annotated

from keras import ops

from kopt.declare import Range
from kopt.optimizers.adam_like import AdamLike
from kopt.optimizers.engine.tensor_math import rectification
from kopt.optimizers.optimizer import Fraction, Positive, Slots, Tensor, debias, override


class RAdam(AdamLike):
    r"""RAdam: Adam that warms up by itself, by the variance of its own rate.

        m ← β₁ m + (1-β₁) g
        v ← β₂ v + (1-β₂) g²
        ρ = ρ∞ - 2 t β₂ᵗ / (1-β₂ᵗ),  ρ∞ = 2/(1-β₂) - 1
        u = r m / (1-β₁ᵗ) / (√(v / (1-β₂ᵗ)) + ε),  r = √((ρ-4)(ρ-2) ρ∞ / ((ρ∞-4)(ρ∞-2) ρ))     while ρ > threshold
        u = m / (1-β₁ᵗ)                                                                        before

    Slots: m, v, each like w (4 bytes/parameter).  Row-wise.

    Args:
        threshold: ≥ 4, length ρ of the average from which the rate is trusted: 4 in the paper, 5 in its authors' code.

    Differs from the authors' code and from `pytorch_optimizer.RAdam`, which neither step nor decay until ρ reaches 5
    (the first five updates with the default β₂) unless `degenerated_to_sgd` is on. Agrees with them when it is, and
    with `torch.optim.RAdam(decoupled_weight_decay=True)`, but for the place of ε, beside the uncorrected root there.
    Reference: Liu et al., 2020, arXiv:1908.03265.
    """

    beta_1: Fraction = 0.9
    beta_2: Fraction = 0.999
    epsilon: Positive = 1e-8
    threshold: Annotated[float, Range(4)] = 5.0

    @override
    def rate(self, s: Slots, t: Tensor) -> Tensor:
        r = rectification(self.beta_2, t, self.threshold)
        return ops.where(r > 0, r / self.root(s, t), 1.0) / debias(self.beta_1, t)
