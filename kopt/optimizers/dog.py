"""DoG, LDoG and DoWG: the distance from the start over the gradients so far."""

from typing import ClassVar

import numpy as np
from keras import ops

from kopt.optimizers.optimizer import (
    Any,
    Optimizer,
    Positive,
    Slot,
    Slots,
    Step,
    Tensor,
    override,
    sum_of_squares,
    with_decay,
)


class Distance(Optimizer, abstract=True):
    r"""What the three share: steps along the gradient, and Δ, the sum of all steps.

    The authors measure ‖w - w₁‖. Here it is ‖Δ‖, the same in exact arithmetic: the first steps are too small for w - w₁
    to show them. What a constraint or an overwriting average does to the weights is not in Δ.

    Args:
        learning_rate: η ≥ 0; 1 unless training is unstable.
        weight_decay: λ ≥ 0, adds λ w to the gradient.
    """

    bounded = False
    learning_rate = 1.0
    slots = {"delta": Slot(exact=True)}
    row_wise = False

    @override
    def advance(self, g: Tensor, w: Tensor, s: Slots, t: Tensor) -> Step:
        step = s.learning_rate * self.rate(s, t) * with_decay(g, w, s)
        return w - step, {"delta": s.delta - step}


class OverGradients(Distance, abstract=True):
    r"""What `DoG` and `LDoG` share: r, G and the rate, of the weights that are summed.

    Args:
        reps_rel: ρ > 0, first distance, relative to 1 + ‖w₁‖: 1e-6, with batch normalisation 1e-4.
    """

    reps_rel: Positive = 1e-6

    @override
    def contribute(self, g: Tensor, w: Tensor, s: Slots, t: Tensor) -> dict[str, Tensor]:
        return {
            "gradient": sum_of_squares(with_decay(g, w, s)),
            "moved": sum_of_squares(s.delta),
            "weight": sum_of_squares(w),
        }

    @override
    def settle(self, sums: dict[str, Tensor], s: Slots, t: Tensor) -> dict[str, Tensor]:
        first = self.reps_rel * (1 + ops.sqrt(sums["weight"]))
        distance = ops.maximum(ops.where(ops.equal(t, 1), first, s.distance), ops.sqrt(sums["moved"]))
        return {"distance": distance, "total": s.total + sums["gradient"]}

    @override
    def rate(self, s: Slots, t: Tensor) -> Tensor:
        return s.distance / ops.sqrt(s.total + 1e-8)


class DoG(OverGradients):
    r"""DoG, distance over gradients: SGD that learns its step size from how far it has come.

        r ← max(r, ‖Δ‖)                  of all weights together; at first ρ (1 + ‖w₁‖)
        G ← G + ‖g‖²
        w ← w - η r / √(G + 10⁻⁸) g

    Meant for averaged weights (the authors have a polynomial average): give `use_ema=True`.

    Slots: Δ, like w (4 bytes/parameter), and the scalars r and G.  Not row-wise.

    Agrees with the authors' code and, with `init_step=("heuristic", ρ)`, with `optax.contrib.dog`.
    Reference: Ivgi, Hinder and Carmon, 2023, arXiv:2302.12022.
    """

    shared = {"distance": 0.0, "total": 0.0}


class LDoG(OverGradients):
    r"""LDoG: `DoG` with a distance r and a sum G of its own for every weight tensor.

    Meant for averaged weights, as `DoG` is: give `use_ema=True`.

    Slots: Δ, like w (4 bytes/parameter), and the scalars r and G of every weight.  Not row-wise.

    Agrees with the authors' code.
    Reference: Ivgi, Hinder and Carmon, 2023, arXiv:2302.12022.
    """

    scalar: ClassVar[Slot] = Slot(shape=lambda shape: (), exact=True)
    slots = {"distance": scalar, "total": scalar, **Distance.slots}

    @override
    def advance(self, g: Tensor, w: Tensor, s: Slots, t: Tensor) -> Step:
        own = self.settle(self.contribute(g, w, s, t), s, t)
        vars(s).update(own)
        moved, new = super().advance(g, w, s, t)
        return moved, {**new, **own}


class DoWG(Distance):
    r"""DoWG, distance over weighted gradients: normalised gradient descent that learns its step size.

        r² ← max(r², ‖Δ‖²)               of all weights together; at first r₀²
        v ← v + r² ‖g‖²
        w ← w - η r² / (√v + ε) g

    Its steps grow fast. Where they overshoot, as they may on minibatches, give η = 0.3 or take `DoG`. Gains from
    averaged weights: give `use_ema=True`.

    Slots: Δ, like w (4 bytes/parameter), and the scalars r² and v.  Not row-wise.

    Args:
        initial_distance: r₀ > 0, a distance that is surely not too long.
        epsilon: ε > 0.

    Agrees with the authors' code, where r₀² = ε, and with `optax.contrib.dowg`.
    Reference: Khaled, Mishchenko and Jin, 2023, arXiv:2305.16284.
    """

    initial_distance: Positive = 1e-2
    epsilon: Positive = 1e-4

    @property
    @override
    def shared(self) -> dict[str, Any]:
        square = np.float64(self.initial_distance**2)  # a Python number would be rounded to float32
        return {"square": square, "total": 0.0}

    @override
    def contribute(self, g: Tensor, w: Tensor, s: Slots, t: Tensor) -> dict[str, Tensor]:
        return {"gradient": sum_of_squares(with_decay(g, w, s)), "moved": sum_of_squares(s.delta)}

    @override
    def settle(self, sums: dict[str, Tensor], s: Slots, t: Tensor) -> dict[str, Tensor]:
        square = ops.maximum(s.square, sums["moved"])
        return {"square": square, "total": s.total + square * sums["gradient"]}

    @override
    def rate(self, s: Slots, t: Tensor) -> Tensor:
        return s.square / (ops.sqrt(s.total) + self.epsilon)
