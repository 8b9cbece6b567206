"""AdaHessian."""

from keras import ops

from kopt.optimizers.by_curvature import ByCurvature
from kopt.optimizers.optimizer import (
    Count,
    Fraction,
    Layout,
    Positive,
    Slot,
    Slots,
    Step,
    Tensor,
    debias,
    ema,
    override,
)


class AdaHessian(ByCurvature):
    r"""AdaHessian: Adam with the diagonal of the Hessian where Adam has the gradient below the root.

        t = 1, 1+k, 1+2k ...:  v ← β₂ v + (1-β₂) D²      D = |z ⊙ ∇²L z|
        m ← β₁ m + (1-β₁) g
        u = m / (1-β₁ᵗ) / ((v / (1-β₂ⁿ))^(p/2) + ε)       n estimates so far; 0 without any

    z are random signs (`kopt.Curvature`). With `spatial` D is its mean over the positions of a kernel of four axes or
    more: all of them but the last two.

    Slots: m, like w (4 bytes/parameter); v like w, or with `spatial` one number for all positions of a kernel; and the
    scalar n. v is never stored in fewer bytes, because the smallest curvatures make the largest steps.  Row-wise, but
    for such kernels.

    Args:
        every: k ≥ 1; the paper takes 1, and finds little loss up to 5.
        beta_1: β₁ in [0, 1), memory of the gradient.
        beta_2: β₂ in [0, 1), memory of the curvature.
        hessian_power: p > 0; 1 divides by the curvature, smaller powers by less.
        epsilon: ε > 0.
        spatial: whether the positions of a kernel share their mean.

    Differs from `pytorch_optimizer.AdaHessian`, which has no `spatial` mean and, with k > 1, corrects v as if it had
    changed at each update; without both it agrees, given the same curvature. The authors' code for images is that with
    `spatial`; their code for texts averages other blocks.
    Reference: Yao et al., 2021, arXiv:2006.00719.
    """

    learning_rate = 0.1
    every: Count = 1
    beta_1: Fraction = 0.9
    beta_2: Fraction = 0.999
    hessian_power: Positive = 1.0
    epsilon: Positive = 1e-4
    spatial: bool = True
    estimator = "hutchinson"

    @override
    def is_row_wise(self, layout: Layout) -> bool:
        return not self._shares(layout)

    @property
    @override
    def slots(self) -> dict[str, Slot]:
        def one_for_all(layout: Layout) -> tuple[int, ...]:
            return (1,) * (len(layout) - 2) + tuple(layout[-2:]) if self._shares(layout) else tuple(layout)

        return {"m": Slot(), "v": Slot(shape=one_for_all if self.spatial else None, exact=True)}

    @override
    def curved(self, c: Tensor, w: Tensor, s: Slots) -> dict[str, Tensor]:
        size = ops.abs(c)
        if self._shares(s.layout):
            size = ops.mean(size, axis=tuple(range(len(s.layout) - 2)), keepdims=True)
        return {"v": ema(s.v, ops.square(size), self.beta_2)}

    @override
    def rule(self, g: Tensor, w: Tensor, s: Slots, t: Tensor) -> Step:
        m = ema(s.m, g, self.beta_1)
        return self.rate(s, t) * m, {"m": m, "v": s.v}

    @override
    def rate(self, s: Slots, t: Tensor) -> Tensor:
        known = s.estimates > 0
        mean = s.v / ops.where(known, debias(self.beta_2, s.estimates), 1.0)
        size = ops.sqrt(mean) if self.hessian_power == 1 else ops.power(mean, self.hessian_power / 2)
        return ops.where(known, 1.0 / debias(self.beta_1, t) / (size + self.epsilon), 0.0)

    def _shares(self, layout: Layout) -> bool:
        """Returns whether the positions of a kernel share one curvature."""
        return self.spatial and len(layout) >= 4
