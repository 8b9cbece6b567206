"""EMANesterov."""

from typing import ClassVar

from keras import ops

from kopt.optimizers.optimizer import Any, Count, Fraction, NonNegative, Slot, Slots, Step, Tensor, ema, override
from kopt.optimizers.wrappers.wrapper import Wrapper


class EMANesterov(Wrapper):
    r"""EMA-Nesterov: gradients are taken ahead, where an average of the steps so far leads.

        x = w - β m                                    w is ahead of x
        z ← step of the optimizer within from w
        m ← γ m + (1-γ) (z - x)
        w ← z + β m                                    β = 0 for the first updates and after the last ones

    Nesterov's method has the last step in place of m, which is mostly noise with mini-batches. At the end the weights
    are x if β is 0 then: set `end` to where the learning rate begins to fall. Else they are ahead of it by β m, less
    than a step.

    Slots: those of the optimizer within, and m (4 bytes/parameter).  Row-wise: rows of an embedding that no batch reads
    stay, and so does their m.

    Args:
        lookahead: β ≥ 0, how many mean steps ahead.
        momentum: γ in [0, 1), memory of the steps.
        start: ≥ 1, updates before the first gradient ahead.
        end: ≥ 1, updates after which no gradient is taken ahead; None is never.

    Raises:
        ValueError: `end` is not after `start`.

    Agrees with the authors' code with a constant β; there it may follow the learning rate.
    Reference: Yau et al., 2026, arXiv:2605.25395.
    """

    lookahead: NonNegative = 0.3
    momentum: Fraction = 0.99
    start: Count = 1
    end: Count | None = None
    own_slots: ClassVar[Any] = {"ahead": Slot()}

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        if self.end is not None and self.end <= self.start:
            raise ValueError(f"EMANesterov: end must be after start. Received: start={self.start}, end={self.end}")

    @override
    def advance(self, g: Tensor, w: Tensor, s: Slots, t: Tensor) -> Step:
        x = w - self._share(t) * s.ahead
        z, new = super().advance(g, w, s, t)
        m = ema(s.ahead, z - x, self.momentum)
        return z + self._share(t + 1) * m, {**new, "ahead": m}

    def _share(self, t: Tensor) -> Tensor:
        """Returns β of update t."""
        on = t > self.start if self.end is None else ops.logical_and(t > self.start, t <= self.end)
        return self.lookahead * ops.cast(on, t.dtype)
