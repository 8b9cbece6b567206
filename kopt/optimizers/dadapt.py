"""D-Adaptation: Adam, SGD and AdaGrad that estimate the distance to the solution."""

import math
from typing import Annotated, ClassVar

import numpy as np
from keras import ops

from kopt.declare import Range
from kopt.optimizers.engine.tensor_math import decays
from kopt.optimizers.optimizer import (
    Any,
    Fraction,
    Optimizer,
    Positive,
    Slot,
    Slots,
    Step,
    Tensor,
    debias,
    dot,
    ema,
    override,
    sum_of_squares,
    total,
    with_decay,
)


class DAdaptation(Optimizer, abstract=True):
    r"""What the rules share: d, a lower bound of the distance to the solution, which multiplies the learning rate.

        d' = max(d, min(q d, d̂))         after the step, which was made with d

    Args:
        learning_rate: η ≥ 0, multiplies d; 1 unless training is unstable. Give schedules around 1.
        d0: d₀ > 0, first d: smaller than any sensible step size.
        growth_rate: q > 1, bounds the growth of d by one step; `None` does not. 1.02 warms up, and helps where d
            comes out too large.
    """

    bounded = False
    learning_rate = 1.0
    d0: Positive = 1e-6
    growth_rate: Annotated[float, Range(above=1)] | None = None
    row_wise = False
    sums: ClassVar[dict[str, float]] = {}

    @property
    @override
    def shared(self) -> dict[str, Any]:
        first = np.float64(self.d0)  # a Python number would be rounded to float32 beside float64 weights
        return {"d": first, "used": first, **self.sums}

    def grown(self, s: Slots, estimate: Tensor) -> dict[str, Tensor]:
        """Returns d' as `d`, and d as `used`."""
        bounded = ops.minimum(estimate, self.growth_rate * s.d) if self.growth_rate else estimate
        return {"d": ops.maximum(s.d, bounded), "used": s.d}


class Adaptive(DAdaptation, abstract=True):
    r"""What `DAdaptAdam` and `Prodigy` share.

    Args:
        beta_1: β₁ in [0, 1), memory of the gradient.
        beta_2: β₂ in [0, 1), memory of its square.
        epsilon: ε > 0.
        use_bias_correction: warm up as Adam does.
        weight_decay: λ ≥ 0, decoupled; scaled by κ.
    """

    beta_1: Fraction = 0.9
    beta_2: Fraction = 0.999
    epsilon: Positive = 1e-8
    use_bias_correction: bool = False

    def correction(self, t: Tensor) -> Tensor:
        """Returns κ / (η d)."""
        if not self.use_bias_correction:
            return 1.0
        return ops.sqrt(debias(self.beta_2, t)) / debias(self.beta_1, t)


class DAdaptAdam(Adaptive):
    r"""DAdaptAdam: Adam with D-Adaptation.

        κ = η d                           (use_bias_correction: times √(1-β₂ᵗ) / (1-β₁ᵗ))
        n ← √β₂ n + (1-√β₂) κ ⟨g, s / (√v + ε)⟩                over all weights
        m ← β₁ m + (1-β₁) κ g
        v ← β₂ v + (1-β₂) g²
        s ← √β₂ s + (1-√β₂) κ g
        w ← w - m / (√v + ε) - κ λ w
        d̂ = n / ((1-√β₂) ‖s‖₁),  d ← max(d, d̂)

    d never falls, so at a constant rate the step stays as long as it was, and late in training the weights may leave
    the solution again, as they may with Adam at such a rate. Give a schedule that falls to 0 at the last update:
    `kopt.schedules.WarmupCosine(1.0, steps=...)`.

    Slots: m, v and s, each like w (4 bytes/parameter), and the scalars d and n.  Not row-wise.

    Agrees with the authors' code (`decouple=True`) and, with bias correction, with `optax.contrib.dadapt_adamw`.
    Reference: Defazio and Mishchenko, 2023, arXiv:2301.07733.
    """

    slots = {"m": Slot(), "v": Slot(), "s": Slot()}
    sums = {"numerator": 0.0}

    @override
    def contribute(self, g: Tensor, w: Tensor, s: Slots, t: Tensor) -> dict[str, Tensor]:
        step = s.learning_rate * s.d * self.correction(t)
        gain = step * total(g * s.s / (ops.sqrt(s.v) + self.epsilon))
        return {"gain": gain, "size": total(ops.abs(ema(s.s, step * g, math.sqrt(self.beta_2))))}

    @override
    def settle(self, sums: dict[str, Tensor], s: Slots, t: Tensor) -> dict[str, Tensor]:
        root = math.sqrt(self.beta_2)
        numerator = ema(s.numerator, sums["gain"], root)
        return {"numerator": numerator, **self.grown(s, quotient(numerator, (1 - root) * sums["size"]))}

    @override
    def advance(self, g: Tensor, w: Tensor, s: Slots, t: Tensor) -> Step:
        step = s.learning_rate * s.used * self.correction(t)
        m, v = ema(s.m, step * g, self.beta_1), ema(s.v, ops.square(g), self.beta_2)
        new = {"m": m, "v": v, "s": ema(s.s, step * g, math.sqrt(self.beta_2))}
        u = m / (ops.sqrt(v) + self.epsilon)
        return w - (u + step * s.weight_decay * w if decays(s) else u), new

    @override
    def rate(self, s: Slots, t: Tensor) -> Tensor:
        return s.used * self.correction(t) / (ops.sqrt(s.v) + self.epsilon)


class DAdaptSGD(DAdaptation):
    r"""DAdaptSGD: SGD with D-Adaptation.

        κ = η d / ‖g₁‖,  g ← g + λ w                            ‖g₁‖ of all first gradients, without λ w
        n ← n + κ ⟨g, s⟩                                        over all weights
        s ← s + κ g
        b ← μ b + κ g
        w ← w - (1-μ) b
        d̂ = 2 n / ‖s‖₂,  d ← max(d, d̂)

    The paper averages: z ← z - κ g, w ← μ w + (1-μ) z. That is the same, and needs the first weights besides.

    Slots: s, and b with momentum, each like w (4 bytes/parameter), and the scalars d, n and ‖g₁‖.  Not row-wise.
    Scale-free.

    Args:
        momentum: μ in [0, 1).
        weight_decay: λ ≥ 0, adds λ w to the gradient.

    Agrees with the authors' code.
    Reference: Defazio and Mishchenko, 2023, arXiv:2301.07733.
    """

    momentum: Fraction = 0.0
    sums = {"numerator": 0.0, "norm": 0.0}
    scale_free = True

    @property
    @override
    def slots(self) -> dict[str, Slot]:
        return {"s": Slot()} | ({"b": Slot()} if self.momentum else {})

    @override
    def contribute(self, g: Tensor, w: Tensor, s: Slots, t: Tensor) -> dict[str, Tensor]:
        change = self._change(g, w, s, s.d)  # zero at the first step, whose s is zero: no estimate comes of it
        square = sum_of_squares(s.s + change)
        return {"gain": dot(change, s.s), "size": square, "gradient": sum_of_squares(g)}

    @override
    def settle(self, sums: dict[str, Tensor], s: Slots, t: Tensor) -> dict[str, Tensor]:
        numerator = s.numerator + sums["gain"]
        norm = ops.where(s.norm > 0, s.norm, ops.sqrt(sums["gradient"]))
        estimate = quotient(2 * numerator, ops.sqrt(sums["size"]))
        return {"numerator": numerator, "norm": norm, **self.grown(s, estimate)}

    @override
    def advance(self, g: Tensor, w: Tensor, s: Slots, t: Tensor) -> Step:
        change = self._change(g, w, s, s.used)
        new = Slots(s=s.s + change)
        if self.momentum:
            new.b = change = self.momentum * s.b + change
        return w - (1 - self.momentum) * change, vars(new)

    @override
    def rate(self, s: Slots, t: Tensor) -> Tensor:
        return quotient(s.used, s.norm)

    def _change(self, g: Tensor, w: Tensor, s: Slots, d: Tensor) -> Tensor:
        return s.learning_rate * quotient(d, s.norm) * with_decay(g, w, s)


class DAdaptAdaGrad(DAdaptation):
    r"""DAdaptAdaGrad: AdaGrad with D-Adaptation, by dual averaging.

        κ = η d,  g ← g + λ w
        a ← a + g²
        s ← s + κ g
        w ← w₁ - s / √a
        n ← n + κ² ⟨g, g / √a⟩                                  over all weights
        d̂ = (⟨s, s / √a⟩ - n) / ‖s‖₁,  d ← max(d, d̂)

    Slower to find its rate than `DAdaptAdam`, which the authors recommend.

    Slots: w₁, s and a, each like w (4 bytes/parameter), and the scalars d and n.  Not row-wise.

    Args:
        initial_accumulator_value: first a, > 0.
        weight_decay: λ ≥ 0, adds λ w to the gradient.

    Agrees with the authors' code without momentum.
    Reference: Defazio and Mishchenko, 2023, arXiv:2301.07733.
    """

    initial_accumulator_value: Positive = 1e-6
    sums = {"spent": 0.0}

    @property
    @override
    def slots(self) -> dict[str, Slot]:
        return {
            "first": Slot("weight", exact=True),
            "s": Slot(exact=True, anchored=True),
            "a": Slot(self.initial_accumulator_value),
        }

    @override
    def contribute(self, g: Tensor, w: Tensor, s: Slots, t: Tensor) -> dict[str, Tensor]:
        change, new = self._summed(g, w, s, s.d)
        square, spent = (total(ops.square(x) / ops.sqrt(new.a)) for x in (new.s, change))
        return {"square": square, "spent": spent, "size": total(ops.abs(new.s))}

    @override
    def settle(self, sums: dict[str, Tensor], s: Slots, t: Tensor) -> dict[str, Tensor]:
        spent = s.spent + sums["spent"]
        return {"spent": spent, **self.grown(s, quotient(sums["square"] - spent, sums["size"]))}

    @override
    def advance(self, g: Tensor, w: Tensor, s: Slots, t: Tensor) -> Step:
        _, new = self._summed(g, w, s, s.used)
        return s.first - new.s / ops.sqrt(new.a), vars(new)

    @override
    def rate(self, s: Slots, t: Tensor) -> Tensor:
        return s.used / ops.sqrt(s.a)

    def _summed(self, g: Tensor, w: Tensor, s: Slots, d: Tensor) -> tuple[Tensor, Slots]:
        g = with_decay(g, w, s)
        change = s.learning_rate * d * g
        return change, Slots(s=s.s + change, a=s.a + ops.square(g))


def quotient(a: Tensor, b: Tensor) -> Tensor:
    """Returns a / b, 0 where b is 0."""
    return ops.where(b > 0, a / ops.where(b > 0, b, 1.0), 0.0)
