"""AdamP."""

import math
from types import SimpleNamespace as State
from typing import Any

from keras import ops

from kopt.declare import Fraction, Positive
from kopt.optimizers.engine.state.slots import Slot
from kopt.optimizers.engine.tensor_math import Tensor, debias, ema
from kopt.optimizers.optimizer import Optimizer


class AdamP(Optimizer):
    r"""AdamP: Adam without the growth of the norm of weights that a normalization follows.

        m ← β₁ m + (1-β₁) g
        v ← β₂ v + (1-β₂) g²
        u = m / (1-β₁ᵗ) / (√(v / (1-β₂ᵗ)) + ε)      (nesterov: β₁ m + (1-β₁) g in place of m)
        if |cos(g, w)| < δ/√n:  u ← u - ŵ ⟨ŵ, u⟩,  λ ← ρ λ,  ŵ = w / (‖w‖ + ε)
        w ← w - η (u + λ w)

    n, cos and ŵ are those of the n elements of each channel if all channels pass the test, else of the whole weight if
    that passes. A channel is what leads to one unit of the last axis. Vectors are not projected.

    Slots: m, v, each like w (4 bytes/parameter).  Not row-wise.

    Args:
        beta_1: β₁ in [0, 1), memory of the gradient.
        beta_2: β₂ in [0, 1), memory of its square.
        epsilon: ε > 0, keeps the quotients finite.
        delta: δ > 0, how close to orthogonal gradient and weight must be.
        wd_ratio: ρ in [0, 1), what a projected weight keeps of its decay.
        nesterov: look one momentum step ahead.
        weight_decay: λ ≥ 0; 0.01 as in the authors' example.

    Agrees with the authors' code, where channels stand on the first axis, as torch has them.
    Reference: Heo et al., 2021, arXiv:2006.08217.
    """

    bounded = False
    learning_rate = 1e-3
    weight_decay = 0.01
    beta_1: Fraction = 0.9
    beta_2: Fraction = 0.999
    epsilon: Positive = 1e-8
    delta: Positive = 0.1
    wd_ratio: Fraction = 0.1
    nesterov: bool = False
    slots = {"m": Slot(), "v": Slot()}
    row_wise = False

    def advance(self, g: Tensor, w: Tensor, s: Any, t: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Steps as AdamW does, after the projection."""
        new = State(m=ema(s.m, g, self.beta_1), v=ema(s.v, ops.square(g), self.beta_2))
        u = self.rate(new, t) * (ema(new.m, g, self.beta_1) if self.nesterov else new.m)
        u, decayed = self._project(u, g, w) if len(w.shape) > 1 else (u, w)
        return w - s.learning_rate * (u + s.weight_decay * decayed), vars(new)

    def rate(self, s: Any, t: Tensor) -> Tensor:
        """1 / (1-β₁ᵗ) / (√(v / (1-β₂ᵗ)) + ε), before the projection."""
        return 1.0 / debias(self.beta_1, t) / (ops.sqrt(s.v / debias(self.beta_2, t)) + self.epsilon)

    def _project(self, u: Tensor, g: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        """Returns u and w as it decays."""
        kept, decayed, axes = u, w, tuple(range(len(w.shape)))
        for over in (axes, axes[:-1]):  # channels come last: they take precedence
            size = max(math.prod(w.shape[axis] for axis in over), 1)
            norm = ops.sqrt(_dot(w, w, over))
            bound = self.delta / math.sqrt(size) * norm * ops.sqrt(_dot(g, g, over))
            orthogonal = ops.all(ops.abs(_dot(g, w, over)) <= bound)  # a weight of zeros, too
            direction = w / (norm + self.epsilon)
            kept = ops.where(orthogonal, u - direction * _dot(direction, u, over), kept)
            decayed = ops.where(orthogonal, self.wd_ratio * w, decayed)
        return kept, decayed


def _dot(a: Tensor, b: Tensor, over: tuple[int, ...]) -> Tensor:
    return ops.sum(a * b, axis=over, keepdims=True)
