"""Tiger."""

from keras import ops

from kopt.optimizers.engine.tensor_math import mean
from kopt.optimizers.optimizer import Fraction, Optimizer, Slot, Slots, Step, Tensor, ema, override


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
    def row_wise(self) -> bool:
        """Whether it is not `relative`, for that has a mean over the whole weight and steps that grow with it."""
        return not self.relative

    bounded = row_wise

    @override
    def advance(self, g: Tensor, w: Tensor, s: Slots, t: Tensor) -> Step:
        m = ema(s.m, g, self.beta)
        return w - s.learning_rate * self._scale(w) * (ops.sign(m) + s.weight_decay * w), {"m": m}

    def _scale(self, w: Tensor) -> Tensor:
        if not self.relative:
            return 1.0
        rms = ops.sqrt(mean(ops.square(w)))
        return ops.where(rms > 0, rms, 0.5) if len(w.shape) > 1 else 0.5
