"""ProximalAdaGrad."""

from collections.abc import Mapping
from types import SimpleNamespace as State
from typing import Any

from keras import ops

from kopt.declare import NonNegative, Positive
from kopt.optimizers.engine.state.slots import Slot
from kopt.optimizers.engine.tensor_math import Tensor, soft
from kopt.optimizers.optimizer import Optimizer


class ProximalAdaGrad(Optimizer):
    r"""ProximalAdaGrad: AdaGrad with l1 and l2 penalties that make weights exactly zero.

        a ← a + g²,  κ = η / √a
        x = w - κ g - η λ w
        w ← sign(x) max(|x| - κ l₁, 0) / (1 + κ l₂)

    Slots: a, like w (4 bytes/parameter).  Row-wise.

    Args:
        initial_accumulator_value: a before the first step, > 0.
        l1: l₁ ≥ 0, weight of |w| in the objective.
        l2: l₂ ≥ 0, weight of w²/2 in the objective.

    Agrees with TensorFlow's `ResourceApplyProximalAdagrad`.
    Reference: Duchi, Hazan and Singer, 2011, jmlr.org/papers/v12/duchi11a; Duchi and Singer, 2009,
    jmlr.org/papers/v10/duchi09a (the proximal step).
    """

    learning_rate = 0.01
    initial_accumulator_value: Positive = 0.1
    l1: NonNegative = 0.0
    l2: NonNegative = 0.0

    @property
    def slots(self) -> Mapping[str, Slot]:
        """The accumulator a."""
        return {"a": Slot(self.initial_accumulator_value)}

    def advance(self, g: Tensor, w: Tensor, s: Any, t: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """An AdaGrad step, then the minimum of penalties and distance."""
        new = State(a=s.a + ops.square(g))
        length = s.learning_rate * self.rate(new, t)
        x = w - length * g - s.learning_rate * s.weight_decay * w
        return soft(x, length * self.l1) / (1.0 + length * self.l2), vars(new)

    def rate(self, s: Any, t: Tensor) -> Tensor:
        """1 / √a."""
        return 1.0 / ops.sqrt(s.a)
