"""ASGD."""

from typing import Annotated

from keras import ops

from kopt.declare import Range
from kopt.optimizers.optimizer import NonNegative, Optimizer, Share, Slot, Slots, Step, Tensor, override


class ASGD(Optimizer):
    r"""ASGD: averaged stochastic gradient descent, with a rate that falls slowly enough for the average.

        k = 1 / (1 + λ₁ η (t-1))^α
        w ← w - η k (g + (λ₁ + λ) w)
        a ← a + (w - a) / max(1, t - 1 - t₀)

    Training goes on from w; evaluate at a, by the callback `kopt.AveragedWeights()`, and save it by its keep=True.

    Slots: a, like w (4 bytes/parameter).  Row-wise, but rows that a batch does not read keep their average.

    Args:
        lambd: λ₁ ≥ 0, decay, and speed of the fall of the rate.
        alpha: α in [0, 1], power of the fall.
        t0: t₀ ≥ 0, updates before the average begins.

    Agrees with `torch.optim.ASGD`, where t₀ is 10⁶: before, the average is the weight itself.
    Reference: Polyak and Juditsky, 1992, doi:10.1137/0330046; in this form Xu, 2011, arXiv:1107.2490.
    """

    learning_rate = 0.01
    lambd: NonNegative = 1e-4
    alpha: Share = 0.75
    t0: Annotated[int, Range(0)] = 0
    slots = {"a": Slot("weight", exact=True)}

    @override
    def advance(self, g: Tensor, w: Tensor, s: Slots, t: Tensor) -> Step:
        w = w - s.learning_rate * self.rate(s, t) * (g + (self.lambd + s.weight_decay) * w)
        return w, {"a": s.a + (w - s.a) / ops.maximum(t - 1 - self.t0, 1.0)}

    @override
    def rate(self, s: Slots, t: Tensor) -> Tensor:
        return ops.power(1.0 + self.lambd * s.learning_rate * (t - 1), -self.alpha)

    def averages(self) -> list[Tensor]:
        """Returns the averages a, in the order of `build`."""
        return [p.remembered()["a"] for p in self.setup.parameters]
