"""Prodigy."""

import math

from keras import ops

from kopt.optimizers.dadapt import Adaptive, quotient
from kopt.optimizers.optimizer import (
    Fraction,
    Positive,
    Slot,
    Slots,
    Step,
    Tensor,
    dot,
    ema,
    override,
    total,
    with_decay,
)


class Prodigy(Adaptive):
    r"""Prodigy: Adam that estimates the distance to the solution, faster than D-Adaptation.

        κ = η d                           (use_bias_correction: times √(1-β₂ᵗ) / (1-β₁ᵗ))
        n ← β₃ n - d/d₀ κ ⟨g, Δ⟩                                over all weights
        m ← β₁ m + (1-β₁) d g
        v ← β₂ v + (1-β₂) d² g²
        s ← β₃ s + d/d₀ κ g               (safeguard_warmup: d in place of κ)
        w ← w - κ (m / (√v + d ε) + λ w),  Δ ← Δ + the step
        d̂ = c n / ‖s‖₁,  d ← max(d, d̂)

    Δ is w - w₁, summed from the steps: the first are too small for the difference to show them.

    d never falls, so at a constant rate the step stays as long as it was, and late in training the weights may leave
    the solution again, as they may with Adam at such a rate. Give a schedule that falls to 0 at the last update:
    `kopt.schedules.WarmupCosine(1.0, steps=...)`.

    Slots: m, v, s and Δ, each like w (4 bytes/parameter), and the scalars d and n.  Not row-wise.

    Args:
        beta_3: β₃ in [0, 1), memory of the estimate; `None` takes √β₂.
        d_coef: c > 0, the best way to make steps longer or shorter: try 0.5 and 2.
        growth_rate: q > 1, bounds the growth of d by one step, but for its first; `None` does not.
        safeguard_warmup: leave η out of s, for schedules that warm up.

    Differs from `prodigyopt.Prodigy` in ε, there times the next d, and at β₁ = 0, where its step has the next d, too;
    agrees otherwise. `optax.contrib.prodigy` always corrects the bias, and has ε times the next d.
    Reference: Mishchenko and Defazio, 2023, arXiv:2306.06101.
    """

    beta_3: Fraction | None = None
    d_coef: Positive = 1.0
    safeguard_warmup: bool = False
    slots = {"m": Slot(), "v": Slot(), "s": Slot(), "delta": Slot(exact=True)}
    sums = {"numerator": 0.0, "peak": 0.0}  # n, and the largest d̂ so far, up to which d grows

    @override
    def contribute(self, g: Tensor, w: Tensor, s: Slots, t: Tensor) -> dict[str, Tensor]:
        gain = -s.d / self.d0 * self._kappa(s, s.d, t) * dot(g, s.delta)
        return {"gain": gain, "size": total(ops.abs(self._sum(g, s, s.d, t)))}

    @override
    def settle(self, sums: dict[str, Tensor], s: Slots, t: Tensor) -> dict[str, Tensor]:
        numerator = self._beta_3 * s.numerator + sums["gain"]
        estimate = self.d_coef * quotient(numerator, sums["size"])
        peak = ops.maximum(ops.maximum(s.peak, s.d), estimate)
        d = ops.where(ops.equal(s.d, self.d0), ops.maximum(s.d, estimate), s.d)
        d = ops.minimum(peak, self.growth_rate * d) if self.growth_rate else peak
        return {"numerator": numerator, "peak": peak, "d": d, "used": s.d}

    @override
    def advance(self, g: Tensor, w: Tensor, s: Slots, t: Tensor) -> Step:
        d = s.used
        new = Slots(m=ema(s.m, d * g, self.beta_1), v=ema(s.v, ops.square(d * g), self.beta_2))
        u = new.m / (ops.sqrt(new.v) + d * self.epsilon)
        step = self._kappa(s, d, t) * with_decay(u, w, s)
        new.s, new.delta = self._sum(g, s, d, t), s.delta - step
        return w - step, vars(new)

    @override
    def rate(self, s: Slots, t: Tensor) -> Tensor:
        return s.used**2 * self.correction(t) / (ops.sqrt(s.v) + s.used * self.epsilon)

    @property
    def _beta_3(self) -> float:
        return math.sqrt(self.beta_2) if self.beta_3 is None else self.beta_3

    def _kappa(self, s: Slots, d: Tensor, t: Tensor) -> Tensor:
        return s.learning_rate * d * self.correction(t)

    def _sum(self, g: Tensor, s: Slots, d: Tensor, t: Tensor) -> Tensor:
        step = s.multiplier * d if self.safeguard_warmup else self._kappa(s, d, t)
        return self._beta_3 * s.s + d / self.d0 * step * g
