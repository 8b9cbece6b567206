"""DiffGrad."""

from types import SimpleNamespace as State
from typing import Any

from keras import ops

from kopt.declare import Fraction, Positive
from kopt.optimizers.engine.state.slots import Slot
from kopt.optimizers.engine.tensor_math import Tensor, debias, ema
from kopt.optimizers.optimizer import Optimizer


class DiffGrad(Optimizer):
    r"""DiffGrad: Adam whose steps shrink, down to one half, where the gradient hardly changes.

        ξ = sigmoid(|p - g|),  p ← g
        m ← β₁ m + (1-β₁) g
        v ← β₂ v + (1-β₂) g²
        u = ξ m / (1-β₁ᵗ) / (√(v / (1-β₂ᵗ)) + ε)

    Slots: m, v and the gradient before, p, each like w (4 bytes/parameter).  Row-wise.

    Args:
        beta_1: β₁ in [0, 1), memory of the gradient.
        beta_2: β₂ in [0, 1), memory of its square.
        epsilon: ε > 0, keeps the quotient finite.

    Differs from the first code of the authors, which compares the gradient with itself, so that ξ = 1/2; agrees with
    their second one and with `pytorch_optimizer.DiffGrad`, but that they put ε beside the uncorrected root.
    Reference: Dubey et al., 2020, arXiv:1909.11015.
    """

    learning_rate = 1e-3
    beta_1: Fraction = 0.9
    beta_2: Fraction = 0.999
    epsilon: Positive = 1e-8
    slots = {"m": Slot(), "v": Slot(), "p": Slot()}

    def rule(self, g: Tensor, w: Tensor, s: Any, t: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Updates the moments and brakes by the change of the gradient."""
        new = State(m=ema(s.m, g, self.beta_1), v=ema(s.v, ops.square(g), self.beta_2), p=g)
        friction = ops.sigmoid(ops.abs(s.p - g))
        return self.rate(new, t) * friction * new.m, vars(new)

    def rate(self, s: Any, t: Tensor) -> Tensor:
        """1 / (1-β₁ᵗ) / (√(v / (1-β₂ᵗ)) + ε), before ξ."""
        return 1.0 / debias(self.beta_1, t) / (ops.sqrt(s.v / debias(self.beta_2, t)) + self.epsilon)
