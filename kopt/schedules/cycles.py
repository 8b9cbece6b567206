"""Rises and falls, once or again and again."""

import math
from typing import Literal

from keras import ops

from kopt.declare import Fraction, OpenFraction, Positive
from kopt.schedules.schedule import Schedule, Tensor


class OneCycle(Schedule):
    """One cycle: from peak/start_divisor up to the peak, then down to that over end_divisor.

    Args:
        rise: in (0, 1), share of the steps that go up.
        form: of both ways, "cosine" or "linear".
        start_divisor: > 0, the first rate is the peak over it.
        end_divisor: > 0, the last rate is the first one over it.

    Agrees with `torch.optim.lr_scheduler.OneCycleLR` without cycling the momentum and without its third phase; after
    the end torch raises, and here the last rate stays. Its max_lr is `peak_learning_rate`, total_steps `steps`,
    pct_start `rise`, anneal_strategy `form`, div_factor `start_divisor`, final_div_factor `end_divisor`.
    Reference: Smith and Topin, 2018, arXiv:1708.07120.
    """

    rise: OpenFraction = 0.3
    form: Literal["cosine", "linear"] = "cosine"
    start_divisor: Positive = 25.0
    end_divisor: Positive = 1e4

    def factor(self, t: Tensor) -> Tensor:
        """Returns the share of the peak after t updates."""
        last = self.steps - 1.0
        top = self.rise * self.steps - 1.0
        first = 1 / self.start_divisor
        up = self._between(first, 1.0, t / max(top, 1e-9))
        down = self._between(1.0, first / self.end_divisor, (t - top) / max(last - top, 1e-9))
        return ops.where(t <= top, up, down)

    def _between(self, a: float, b: float, p: Tensor) -> Tensor:
        p = ops.clip(p, 0.0, 1.0)
        return a + (b - a) * (0.5 * (1 - ops.cos(math.pi * p)) if self.form == "cosine" else p)


class Cyclical(Schedule):
    """Cyclical learning rates: a triangle between base and peak, again and again.

    Args:
        steps: ≥ 1, updates of one way up, half of a cycle.
        base: in [0, 1), the lowest rate, as a share of the peak.
        mode: "triangular"; "triangular2" halves the height after each cycle; "exponential" shrinks it by `gamma` with
            each update.
        gamma: in (0, 1), of "exponential".

    Agrees with `torch.optim.lr_scheduler.CyclicLR` and with TensorFlow Addons' schedules of these names.
    Reference: Smith, 2017, arXiv:1506.01186.
    """

    base: Fraction = 0.1
    mode: Literal["triangular", "triangular2", "exponential"] = "triangular"
    gamma: OpenFraction = 0.9999

    def factor(self, t: Tensor) -> Tensor:
        """Returns the share of the peak after t updates."""
        half = float(self.steps)
        cycle = ops.floor(t / (2 * half))
        height = 1 - ops.abs(t / half - 2 * cycle - 1)
        scale = {
            "triangular": lambda: 1.0,
            "triangular2": lambda: ops.power(0.5, cycle),
            "exponential": lambda: ops.power(self.gamma, t),
        }[self.mode]()
        return self.base + (1 - self.base) * height * scale

    def length(self) -> int:
        """Returns the updates of two cycles."""
        return 4 * self.steps
