"""Tiger."""

from typing import Any

from keras import ops

from kopt.declare import Fraction
from kopt.optimizers.engine.state.slots import Slot
from kopt.optimizers.engine.tensor_math import Tensor, ema
from kopt.optimizers.optimizer import Optimizer


class Tiger(Optimizer):
    r"""Tiger: Lion with one β, the sign of the momentum.

        m ← β m + (1-β) g
        w ← w - η k (sign(m) + λ w),  k = 1
        relative: k = rms(w) of a matrix, 1/2 of a vector

    Slots: m, like w (4 bytes/parameter).  Row-wise, but for `relative`.  Scale-free.

    Args:
        beta: β in [0, 1), memory of the gradient.
        relative: let η count relative to the root mean square of the weight, as LAMB does. A matrix that is zero takes
            k = 1/2 for one step and grows by the factor 1 + η from there: give such matrices an optimizer of their own.
        weight_decay: λ ≥ 0.

    Agrees with `pytorch_optimizer.Tiger`. The author's code is always relative, with the rows of an embedding one by
    one, and does not decay vectors (here `decay_mask`); its shrinking of weights on NaN is left to `on_nonfinite`.
    Reference: Su, Tiger: A Tight-fisted Optimizer, 2023, github.com/bojone/tiger.
    """

    learning_rate = 1e-3
    weight_decay = 0.01
    beta: Fraction = 0.965
    relative: bool = False
    slots = {"m": Slot()}
    scale_free = True

    @property
    def bounded(self) -> bool:
        """Unless the step grows with the weight."""
        return not self.relative

    @property
    def row_wise(self) -> bool:
        """Unless a mean goes over the whole matrix."""
        return not self.relative

    def advance(self, g: Tensor, w: Tensor, s: Any, t: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Steps along the sign of the momentum."""
        m = ema(s.m, g, self.beta)
        return w - s.learning_rate * self._scale(w) * (ops.sign(m) + s.weight_decay * w), {"m": m}

    def _scale(self, w: Tensor) -> Tensor:
        if not self.relative:
            return 1.0
        rms = ops.sqrt(ops.mean(ops.square(w)))
        return ops.where(rms > 0, rms, 0.5) if len(w.shape) > 1 else 0.5
