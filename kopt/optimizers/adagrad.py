"""AdaGrad."""

from collections.abc import Mapping
from types import SimpleNamespace as State
from typing import Any

from keras import ops

from kopt.declare import NonNegative, Positive
from kopt.optimizers.engine.state.slots import Slot
from kopt.optimizers.engine.tensor_math import Tensor
from kopt.optimizers.optimizer import Optimizer


class AdaGrad(Optimizer):
    r"""AdaGrad: steps shrink with the sum of all squared gradients of a coordinate.

        a ← a + g²
        u = g / (√a + ε)

    Slots: a, like w (4 bytes/parameter).  Row-wise; a row that was not read does not move in either case, so that
    `sparse="lazy"` and "exact" are equal.

    Args:
        initial_accumulator_value: a before the first step, ≥ 0.
        epsilon: ε > 0, keeps the quotient finite.

    Differs from `keras.optimizers.Adagrad`: ε outside of the root and a = 0 at first, as in the paper; η is 0.001
    there. Agrees with `torch.optim.Adagrad`.
    Reference: Duchi, Hazan and Singer, 2011, jmlr.org/papers/v12/duchi11a.
    """

    learning_rate = 0.01
    initial_accumulator_value: NonNegative = 0.0
    epsilon: Positive = 1e-10

    @property
    def slots(self) -> Mapping[str, Slot]:
        """The accumulator a."""
        return {"a": Slot(self.initial_accumulator_value)}

    def rule(self, g: Tensor, w: Tensor, s: Any, t: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Divides by the root of the accumulated squares."""
        new = State(a=s.a + ops.square(g))
        return self.rate(new, t) * g, vars(new)

    def rate(self, s: Any, t: Tensor) -> Tensor:
        """1 / (√a + ε)."""
        return 1.0 / (ops.sqrt(s.a) + self.epsilon)
