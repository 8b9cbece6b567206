"""Muon and NorMuon."""

import math

from keras import ops

from kopt.optimizers.matrix.by_matrix import ByMatrix
from kopt.optimizers.matrix.newton_schulz import WORK, Named, Scale, length, orthogonalized
from kopt.optimizers.optimizer import (
    Count,
    Fraction,
    Layout,
    Positive,
    Slot,
    Slots,
    Step,
    Tensor,
    ema,
    override,
)

SMALL = 128
"""Longest short side of matrices that are moved together: twelve of 64 × 64 take 0.7 of the time, of 256 × 256 the same
as one after the other: `python -m benchmarks.muon`."""


class MuonLike(ByMatrix, abstract=True):
    """What Muon and its kin share: momentum, made orthogonal.

    Args:
        momentum: μ in [0, 1), memory of the gradient.
        nesterov: look ahead by one gradient.
        ns_steps: k ≥ 1, Newton-Schulz iterations. "polar_express" has coefficients for eight, the last of which
            repeat.
        coefficients: of the iterations: "quintic", the same (3.4445, -4.775, 2.0315) each time, or "polar_express", the
            best for each.
    """

    momentum: Fraction = 0.95
    nesterov: bool = True
    ns_steps: Count = 5
    coefficients: Named = "quintic"
    work = WORK

    @override
    def stacks(self, layout: Layout) -> bool:
        return self.takes(layout) and not layout.stacks and min(layout.fan_in, layout.fan_out) <= SMALL

    def turned(self, g: Tensor, s: Slots) -> tuple[Tensor, Tensor]:
        """Returns o, the orthogonal direction, and m."""
        m = ema(s.m, g, self.momentum)
        ahead = ema(m, g, self.momentum) if self.nesterov else m
        return orthogonalized(ahead, self.coefficients, self.ns_steps), m


class Muon(MuonLike):
    r"""Muon: momentum for matrices, made orthogonal, so that every direction moves alike; AdamW for the rest.

        m ← μ m + (1-μ) g,  n = μ m + (1-μ) g                   (without nesterov n = m)
        x ← n / ‖n‖,  k times:  x ← a x + b x xᵀ x + c x (xᵀ x)²            (o = x: U Vᵀ of n = U Σ Vᵀ, nearly)
        match_rms:  u = 0.2 √max(p, q) o        of p inputs and q outputs
        original:   u = √max(1, q/p) o
        aspect:     u = √(q/p) o

    Singular values of n of 0.01 ‖n‖ and more become 0.68 to 1.14 with the five iterations of "quintic".

    Slots: m, like w (4 bytes/parameter); of weights that AdamW moves v, too.  Not row-wise, but for those.

    Args:
        scale: the length of u. "match_rms" is that of AdamW's, so that both have one η, and a rate that is good for
            AdamW is good here; "original" and "aspect" take about 0.02, with `adam_rate` about 0.05.

    `optimizer.destinations(model)` tells which weights are moved in which way; about layers see `ByMatrix`.
    Differs from `keras.optimizers.Muon`, which leaves kernels of more than two axes to AdamW and takes the last matrix;
    from `torch.optim.Muon`, which refuses all but matrices, rounds them to bfloat16, and decays by 0.1; else the
    steps are the same.
    Reference: Jordan et al., 2024, kellerjordan.github.io/posts/muon; "match_rms": Liu et al., 2025, arXiv:2502.16982;
    "aspect": Bernstein and Newhouse, 2024, arXiv:2409.20325; "polar_express": Amsel et al., 2025, arXiv:2505.16932.
    """

    weight_decay = 0.01
    scale: Scale = "match_rms"

    @override
    def matrix_rule(self, g: Tensor, s: Slots, t: Tensor) -> Step:
        o, m = self.turned(g, s)
        return length(self.scale, s.layout) * o, {"m": m}


class NorMuon(MuonLike):
    r"""NorMuon: Muon whose outputs, too, move alike: each is divided by the root of its mean square so far.

        m, o as `Muon`
        v ← β v + (1-β) mean(o²)             over the p inputs of each output
        x = o / (√v + ε)
        u = 0.2 √(p q) x / ‖x‖

    Slots: m, like w (4 bytes/parameter), and v, a number an output; of what AdamW moves v like w.  Not row-wise, but
    for that.

    Args:
        beta: β in [0, 1), memory of the mean squares.
        root_epsilon: ε > 0, beside the root.

    Differs from the authors' code in the axes (there the outputs come first) and in bfloat16.
    Reference: Li et al., 2025, arXiv:2510.05491.
    """

    weight_decay = 0.01
    beta: Fraction = 0.95
    root_epsilon: Positive = 1e-8

    @property
    @override
    def slots(self) -> dict[str, Slot]:
        return super().slots | {"v": Slot(shape=self._shape)}

    def _shape(self, layout: Layout) -> tuple[int, ...]:
        return (*layout.matrices[:-2], 1, layout.fan_out) if self.takes(layout) else tuple(layout)

    @override
    def matrix_rule(self, g: Tensor, s: Slots, t: Tensor) -> Step:
        o, m = self.turned(g, s)
        v = ema(s.v, ops.mean(ops.square(o), axis=-2, keepdims=True), self.beta)
        x = o / (ops.sqrt(v) + self.root_epsilon)
        norm = ops.sqrt(ops.sum(ops.square(x), axis=(-2, -1), keepdims=True))
        size = 0.2 * math.sqrt(s.layout.fan_in * s.layout.fan_out)
        return size * x / ops.where(norm > 0, norm, 1.0), {"m": m, "v": v}
