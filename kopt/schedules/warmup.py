"""A rise to the peak, then a fall."""

import math
from typing import Annotated, Literal

from keras import ops

from kopt.declare import Count, Fraction, Positive, Range
from kopt.schedules.schedule import Schedule, Tensor


class _Warmup(Schedule):
    """A linear rise from `start` to 1 over `warmup` steps, then a fall to `end` at `steps`, shaped by p in [0, 1]."""

    warmup: Annotated[int, Range(0)] = 0
    start: Fraction = 0.0
    end: Fraction = 0.0

    def __post_init__(self) -> None:
        if self.warmup >= self._falls_from():
            raise ValueError(
                f"{type(self).__name__}: the warm-up of {self.warmup} steps leaves none of {self.steps} at the peak."
            )

    def _falls_from(self) -> int:
        return self.steps

    def factor(self, t: Tensor) -> Tensor:
        """Returns the share of the peak after t updates."""
        rise = self.start + (1 - self.start) * t / max(self.warmup, 1)
        return ops.where(t < self.warmup, rise, self.end + (1 - self.end) * self.shape(self.progress(t)))

    def progress(self, t: Tensor) -> Tensor:
        """Returns p, from 0 at the end of the warm-up to 1 at `steps`."""
        return ops.clip((t - self.warmup) / (self.steps - self.warmup), 0.0, 1.0)

    def shape(self, p: Tensor) -> Tensor:
        """Returns the fall from 1 at p = 0 to 0 at p = 1."""
        raise NotImplementedError(f"{type(self).__name__} must define shape(self, p).")


class WarmupLinear(_Warmup):
    """A linear rise, then a linear fall: 1 - p.

    Args:
        warmup: ≥ 0, steps of the rise.
        start: in [0, 1), share of the peak at the first step.
        end: in [0, 1), share of the peak from `steps` on.

    Reference: the warm-up is that of Goyal et al., 2017, arXiv:1706.02677.
    """

    def shape(self, p: Tensor) -> Tensor:
        """1 - p."""
        return 1 - p


class WarmupCosine(_Warmup):
    """A linear rise, then half a cosine: (1 + cos πp)/2.

    Args:
        warmup: ≥ 0, steps of the rise.
        start: in [0, 1), share of the peak at the first step.
        end: in [0, 1), share of the peak from `steps` on.

    Differs from `keras.optimizers.schedules.CosineDecay` in its arguments alone: `steps` counts the warm-up in.
    Reference: Loshchilov and Hutter, 2017, arXiv:1608.03983.
    """

    def shape(self, p: Tensor) -> Tensor:
        """(1 + cos πp)/2."""
        return 0.5 * (1 + ops.cos(math.pi * p))


class WarmupPolynomial(_Warmup):
    """A linear rise, then a power: (1 - p)^power.

    Args:
        warmup: ≥ 0, steps of the rise.
        start: in [0, 1), share of the peak at the first step.
        end: in [0, 1), share of the peak from `steps` on.
        power: > 0; 1 is `WarmupLinear`.

    Reference: Chen et al., 2017, arXiv:1606.00915 ("poly").
    """

    power: Positive = 2.0

    def shape(self, p: Tensor) -> Tensor:
        """(1 - p)^power."""
        return ops.power(1 - p, self.power)


class REX(_Warmup):
    """Reflected exponential: high for long, then a steep fall, (1 - p)/(1 - p/2). Good when the budget is small.

    Args:
        warmup: ≥ 0, steps of a linear rise before.
        start: in [0, 1), share of the peak at the first step.
        end: in [0, 1), share of the peak from `steps` on.

    Reference: Chen, Wolfe and Kyrillidis, 2021, arXiv:2107.04197.
    """

    def shape(self, p: Tensor) -> Tensor:
        """(1 - p)/(1 - p/2)."""
        return (1 - p) / (1 - p / 2)


class _Stable(_Warmup):
    """A linear rise, the peak, and a fall over the last `decay` steps."""

    decay: Count = 100

    def _falls_from(self) -> int:
        return self.steps - self.decay + 1

    def progress(self, t: Tensor) -> Tensor:
        """Returns p, from 0 where the fall begins to 1 at `steps`."""
        return ops.clip((t - (self.steps - self.decay)) / self.decay, 0.0, 1.0)


class WarmupStableDecay(_Stable):
    """A linear rise, the peak, and a fall over the last `decay` steps: training can go on from any point of the peak.

    Args:
        warmup: ≥ 0, steps of the rise.
        start: in [0, 1), share of the peak at the first step.
        end: in [0, 1), share of the peak from `steps` on.
        decay: ≥ 1, steps of the fall.
        form: of the fall, "linear", "cosine" or "sqrt", 1 - √p.

    Reference: Hu et al., 2024, arXiv:2404.06395; forms: Hägele et al., 2024, arXiv:2405.18392.
    """

    form: Literal["linear", "cosine", "sqrt"] = "linear"

    def shape(self, p: Tensor) -> Tensor:
        """The fall of that form."""
        if self.form == "cosine":
            return 0.5 * (1 + ops.cos(math.pi * p))
        return 1 - (ops.sqrt(p) if self.form == "sqrt" else p)


class PowerCooldown(_Stable):
    """A linear rise, the peak, and a power over the last `decay` steps: (1 - p)^power.

    Args:
        warmup: ≥ 0, steps of the rise.
        start: in [0, 1), share of the peak at the first step.
        end: in [0, 1), share of the peak from `steps` on.
        decay: ≥ 1, steps of the fall; with power above 1 half of all steps and more.
        power: > 0; 1 is `WarmupStableDecay`.

    Reference: Y. Pande, 2026, github.com/KellerJordan/modded-nanogpt, track 3 ("PowerCool"), with power 1.2; with
    power 1.5 and an end: its record 20260511_klsoap_h_lr_power_decay.
    """

    power: Positive = 1.2

    def shape(self, p: Tensor) -> Tensor:
        """(1 - p)^power."""
        return ops.power(1 - p, self.power)
