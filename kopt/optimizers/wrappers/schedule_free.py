"""Schedule-Free: an average of the iterates in place of a schedule."""

from typing import ClassVar

from keras import ops

from kopt.optimizers.engine.rule_checks import direction, settled
from kopt.optimizers.engine.tensor_math import rectification
from kopt.optimizers.optimizer import (
    Any,
    Fraction,
    NonNegative,
    OpenFraction,
    Optimizer,
    Positive,
    Slot,
    Slots,
    Step,
    Tensor,
    debias,
    ema,
    override,
)
from kopt.optimizers.wrappers.wrapper import Wrapper, takes_directions


class Averaging(Optimizer, abstract=True):
    r"""What the Schedule-Free rules share: three sequences, of which the weights are y.

        z ← z - η (u + λ y)                         u at y
        c = a / Σ a,  a = tʳ (max η)ᵖ
        x ← (1-c) x + c z                           the average, to evaluate and to keep
        y = (1-β₁) z + β₁ x

    Kept are y and z; x = z + (y - z)/β₁. Evaluate at x: give `fit` the callback `kopt.AveragedWeights()`.

    Args:
        beta_1: β₁ in (0, 1), where between z and x gradients are taken.
        power: r ≥ 0, how much more late iterates weigh.
        rate_power: p ≥ 0, how much more iterates of a larger learning rate weigh.
    """

    beta_1: OpenFraction = 0.9
    power: NonNegative = 0.0
    rate_power: NonNegative = 2.0
    own_slots: ClassVar[Any] = {"z": Slot("weight", exact=True)}
    own_shared: ClassVar[Any] = {"peak": 0.0, "total": 0.0, "share": 1.0}

    @override
    def settle(self, sums: dict[str, Tensor], s: Slots, t: Tensor) -> dict[str, Tensor]:
        peak = ops.maximum(s.peak, s.learning_rate * self.warmth(t))
        mass = ops.power(t, self.power) * ops.power(peak, self.rate_power)
        total = s.total + mass
        return {"peak": peak, "total": total, "share": mass / ops.where(total > 0, total, 1.0)}

    def warmth(self, t: Tensor) -> Tensor:
        """Returns the factor of η that the rule itself asks for."""
        return 1.0

    @override
    def advance(self, g: Tensor, w: Tensor, s: Slots, t: Tensor) -> Step:
        u, new = direction(self, g, w, s, t)
        step = s.learning_rate * self.warmth(t) * self.decayed(u, w, s)
        y = w + s.share * (s.z - w) - (1 - self.beta_1 * (1 - s.share)) * step
        return y, {**new, "z": s.z - step}

    def averages(self) -> list[Tensor]:
        """Returns x of each weight, in the order of `build`."""
        pairs = [(p.weight(), p.remembered()["z"]) for p in self.setup.parameters]
        return [z + (y - z) / self.beta_1 for y, z in pairs]


class ScheduleFree(Averaging, Wrapper):
    r"""Schedule-Free learning around any rule that steps along a direction; see `Averaging` for the equations.

    The momentum of the optimizer within should be off: β₁ takes its place.

    Slots: those of the optimizer within, and z (4 bytes/parameter).  Row-wise, but rows that a batch does not read keep
    their y.

    Raises:
        ValueError: the optimizer within does not step along a direction.

    Agrees with the authors' wrapper where the rule has no momentum of its own.
    Reference: Defazio et al., 2024, arXiv:2405.15682.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if type(self.optimizer).advance is not Optimizer.advance:
            raise ValueError(takes_directions(self))

    @override
    def settle(self, sums: dict[str, Tensor], s: Slots, t: Tensor) -> dict[str, Tensor]:
        return super().settle(sums, s, t) | settled(self.optimizer, sums, s, t)

    @override
    def rule(self, g: Tensor, w: Tensor, s: Slots, t: Tensor) -> Step:
        u, new = direction(self.optimizer, g, w, s, t)
        return u, dict(new)


class ScheduleFreeSGD(Averaging):
    r"""Schedule-Free SGD: `Averaging` with u = g.

    Slots: z (4 bytes/parameter).  Row-wise, but rows that a batch does not read keep their y.

    Differs from the authors' code in its warm-up: give a schedule that warms up.
    Reference: Defazio et al., 2024, arXiv:2405.15682.
    """

    learning_rate = 1.0
    slots = Averaging.own_slots
    shared = Averaging.own_shared

    @override
    def rule(self, g: Tensor, w: Tensor, s: Slots, t: Tensor) -> Step:
        return g, {}


class ScaledAveraging(Averaging, abstract=True):
    r"""What the rules share that scale the gradient as Adam does.

    Args:
        beta_2: β₂ in [0, 1), memory of the square.
        epsilon: ε > 0.
    """

    learning_rate = 2.5e-3
    beta_2: Fraction = 0.999
    epsilon: Positive = 1e-8
    slots = {"v": Slot(), **Averaging.own_slots}
    shared = Averaging.own_shared

    @override
    def rule(self, g: Tensor, w: Tensor, s: Slots, t: Tensor) -> Step:
        new = Slots(v=ema(s.v, ops.square(g), self.beta_2))
        return self.rate(new, t) * g, vars(new)

    @override
    def rate(self, s: Slots, t: Tensor) -> Tensor:
        return 1.0 / (ops.sqrt(s.v / debias(self.beta_2, t)) + self.epsilon)


class ScheduleFreeAdamW(ScaledAveraging):
    r"""Schedule-Free AdamW: `Averaging` with Adam's scaling and without its momentum.

        v ← β₂ v + (1-β₂) g²
        u = g / (√(v / (1-β₂ᵗ)) + ε)

    Slots: v, z (8 bytes/parameter).  Row-wise, but rows that a batch does not read keep their y.

    Differs from `keras.optimizers.ScheduleFreeAdamW`, in which β₁ has no effect on TensorFlow and the average ignores
    the learning rate; agrees with the authors' code, but for its warm-up: give a schedule that warms up.
    Reference: Defazio et al., 2024, arXiv:2405.15682.
    """


class ScheduleFreeRAdam(ScaledAveraging):
    r"""Schedule-Free RAdam: `ScheduleFreeAdamW` that needs no warm-up, because it rectifies the rate.

        ρ = ρ∞ - 2 t β₂ᵗ / (1-β₂ᵗ),  ρ∞ = 2/(1-β₂) - 1
        η ← η √((ρ-4)(ρ-2) ρ∞ / ((ρ∞-4)(ρ∞-2) ρ))          0 while ρ ≤ 4

    Slots: v, z (8 bytes/parameter).  Row-wise, but rows that a batch does not read keep their y.

    Differs from the authors' code while ρ ≤ 4 if its `silent_sgd_phase` is off.
    Reference: Defazio et al., 2024, arXiv:2405.15682; Liu et al., 2019, arXiv:1908.03265.
    """

    @override
    def warmth(self, t: Tensor) -> Tensor:
        return rectification(self.beta_2, t, 4.0)
