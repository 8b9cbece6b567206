"""AdaBound and AdaBoundW."""

import math

import keras
from keras import ops

from kopt.optimizers.adam_like import AdamLike
from kopt.optimizers.optimizer import Any, Fraction, Positive, Slot, Slots, Tensor, debias, override


class AdaBound(AdamLike):
    r"""AdaBound: Adam whose step sizes are clipped to bounds that close in on that of SGD.

        m ← β₁ m + (1-β₁) g
        v ← β₂ v + (1-β₂) g²              (ams_bound: n ← max(n, v) takes the place of v below)
        l = f/η₀ (1 - 1/(γ t + 1)),  h = f/η₀ (1 + 1/(γ t))
        u = clip(√(1-β₂ᵗ) / (1-β₁ᵗ) / (√v + ε), l, h) m

    Slots: m, v and n with ams_bound, each like w (4 bytes/parameter).  Row-wise.

    Args:
        final_lr: f > 0, the step size of the SGD at the end, at the base learning rate.
        gamma: γ > 0, how fast the bounds close: they are within a factor of 2 after 1/γ updates.
        epsilon: ε > 0, beside the uncorrected root.
        ams_bound: divide by the largest v so far (AMSBound).
        base_learning_rate: η₀ > 0, the rate `final_lr` refers to. `None`: `learning_rate`, or the peak of a schedule;
            where that is 0, the default rate.

    Raises `ValueError` where η₀ cannot be told from the schedule.
    The authors clip η/√v to bounds around f η/η₀; η cancels from the direction u, so the bounds follow any schedule.
    Reference: Luo, Xiong, Liu and Sun, 2019, arXiv:1902.09843.
    """

    beta_1: Fraction = 0.9
    beta_2: Fraction = 0.999
    final_lr: Positive = 0.1
    gamma: Positive = 1e-3
    epsilon: Positive = 1e-8
    ams_bound: bool = False
    base_learning_rate: Positive | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.base_learning_rate = self.base_learning_rate or self._implied()  # saved: the rate may change

    @property
    @override
    def slots(self) -> dict[str, Slot]:
        return {"m": Slot(), "v": Slot()} | ({"n": Slot()} if self.ams_bound else {})

    @override
    def moments(self, g: Tensor, s: Slots) -> Slots:
        new = super().moments(g, s)
        if self.ams_bound:
            new.n = ops.maximum(s.n, new.v)
        return new

    @override
    def rate(self, s: Slots, t: Tensor) -> Tensor:
        return ops.clip(self._unbounded(s, t), *self.bounds(t))

    def bounds(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Returns l and h, as multiples of the learning rate."""
        final = self.final_lr / (self.base_learning_rate or self._implied())
        return final * (1 - 1 / (self.gamma * t + 1)), final * (1 + 1 / (self.gamma * t))

    @override
    def measure(self, s: Slots, t: Tensor) -> dict[str, Tensor]:
        (lower, upper), free = self.bounds(t), self._unbounded(s, t)
        eta = ops.cast(self.learning_rate, lower.dtype)
        reached = ops.cast(s.v > 0, eta.dtype)  # elements that never had a gradient have no step size
        count = ops.maximum(ops.sum(reached), 1)
        at = {"lower": free <= lower, "upper": free >= upper}
        shares = {f"share_at_{k}_bound": ops.sum(ops.where(there, reached, 0)) / count for k, there in at.items()}
        return {"lower_bound": lower * eta, "upper_bound": upper * eta} | shares

    def _implied(self) -> float:
        return _peak(self._argument("learning_rate"), self.fields["learning_rate"].default)

    def _changed(self, *left_out: str) -> list[str]:
        implied = self.base_learning_rate == self._implied()
        return super()._changed(*left_out, *(["base_learning_rate"] if implied else []))

    def _unbounded(self, s: Slots, t: Tensor) -> Tensor:
        correction = ops.sqrt(debias(self.beta_2, t)) / debias(self.beta_1, t)
        return correction / (ops.sqrt(s.n if self.ams_bound else s.v) + self.epsilon)


class AdaBoundW(AdaBound):
    r"""AdaBoundW: `AdaBound` with decoupled weight decay.

        w ← w - η u - (η/η₀) λ w

    Slots: as `AdaBound`.  Row-wise.

    Args:
        weight_decay: λ ≥ 0, the share of the weight that one update removes at the base learning rate.

    Differs from the authors' code under a schedule: they remove λ w whatever the rate; here the decay follows it, as
    the schedule multiplier of AdamW does. Equal at a constant rate.
    Reference: the authors' code to Luo et al., 2019, arXiv:1902.09843; Loshchilov and Hutter, 2019, arXiv:1711.05101.
    """

    weight_decay = 5e-4

    @override
    def decay(self, weight_decay: Any, updates: Tensor) -> Any:
        return super().decay(weight_decay, updates) / self.base_learning_rate


def _peak(rate: Any, default: float) -> float:
    """Returns the number, or the rate that a schedule is built around: Keras names it, others begin with it."""
    if isinstance(rate, float):
        peak: float | None = rate or default
    else:
        known = [getattr(rate, name, None) for name in ("warmup_target", "initial_learning_rate", "peak_learning_rate")]
        values = getattr(rate, "values", None)  # of PiecewiseConstantDecay
        known += [max(values)] if isinstance(values, (list, tuple)) else []
        peak = next((float(value) for value in known if value), None)
        if peak is None and isinstance(rate, keras.optimizers.schedules.LearningRateSchedule):
            peak = float(ops.convert_to_numpy(rate(0)))
    if peak is None or not 0 < peak < math.inf:
        raise ValueError(
            f"AdaBound needs the base rate that final_lr refers to, and learning_rate={rate!r} does not say it. "
            "Pass the peak of the schedule as base_learning_rate."
        )
    return peak
