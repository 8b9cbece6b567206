"""AdaMax."""

from types import SimpleNamespace as State
from typing import Any

from keras import ops

from kopt.declare import Fraction, Positive
from kopt.optimizers.engine.state.slots import Slot
from kopt.optimizers.engine.tensor_math import Tensor, debias, ema
from kopt.optimizers.optimizer import Optimizer


class AdaMax(Optimizer):
    r"""AdaMax: Adam with the maximum in place of the root mean square.

        m ← β₁ m + (1-β₁) g
        n ← max(β₂ n, |g|)
        u = m / (1-β₁ᵗ) / (n + ε)

    Slots: m, n, each like w (4 bytes/parameter).  Row-wise.

    Args:
        beta_1: β₁ in [0, 1), memory of the gradient.
        beta_2: β₂ in [0, 1), memory of its size.
        epsilon: ε > 0; the paper has none and divides by zero where no gradient came.

    Differs from `torch.optim.Adamax`, which adds ε to |g|: equal to within ε/|g|. In `keras.optimizers.Adamax` ε is
    1e-7.
    Reference: Kingma and Ba, 2015, arXiv:1412.6980, section 7.1.
    """

    learning_rate = 1e-3
    beta_1: Fraction = 0.9
    beta_2: Fraction = 0.999
    epsilon: Positive = 1e-8
    slots = {"m": Slot(), "n": Slot()}

    def rule(self, g: Tensor, w: Tensor, s: Any, t: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Divides the momentum by the largest recent gradient."""
        new = State(m=ema(s.m, g, self.beta_1), n=ops.maximum(self.beta_2 * s.n, ops.abs(g)))
        return self.rate(new, t) * new.m, vars(new)

    def rate(self, s: Any, t: Tensor) -> Tensor:
        """1 / (1-β₁ᵗ) / (n + ε)."""
        return 1.0 / debias(self.beta_1, t) / (s.n + self.epsilon)
