"""Yogi."""

from collections.abc import Mapping
from types import SimpleNamespace as State
from typing import Any

from keras import ops

from kopt.declare import Fraction, NonNegative, Positive
from kopt.optimizers.engine.state.slots import Slot
from kopt.optimizers.engine.tensor_math import Tensor, debias, ema
from kopt.optimizers.optimizer import Optimizer


class Yogi(Optimizer):
    r"""Yogi: Adam whose second moment moves by a share of g², so that it cannot forget quickly.

        m ← β₁ m + (1-β₁) g
        v ← v - (1-β₂) sign(v - g²) g²
        u = m / (1-β₁ᵗ) / (√(v / (1-β₂ᵗ)) + ε)

    Slots: m, v, each like w (4 bytes/parameter).  Row-wise.

    Args:
        beta_1: β₁ in [0, 1), memory of the gradient.
        beta_2: β₂ in [0, 1), memory of its square.
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
    def slots(self) -> Mapping[str, Slot]:
        """The moments m and v."""
        return {"m": Slot(), "v": Slot(self.initial_accumulator_value)}

    def rule(self, g: Tensor, w: Tensor, s: Any, t: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Adds to or takes from the second moment by its sign against g²."""
        square = ops.square(g)
        new = State(m=ema(s.m, g, self.beta_1), v=s.v - (1 - self.beta_2) * ops.sign(s.v - square) * square)
        return self.rate(new, t) * new.m, vars(new)

    def rate(self, s: Any, t: Tensor) -> Tensor:
        """1 / (1-β₁ᵗ) / (√(v / (1-β₂ᵗ)) + ε)."""
        return 1.0 / debias(self.beta_1, t) / (ops.sqrt(s.v / debias(self.beta_2, t)) + self.epsilon)
