"""Scion."""

from keras import ops

from kopt.optimizers.matrix.by_matrix import SeesMatrices
from kopt.optimizers.matrix.newton_schulz import WORK, Named, length, orthogonalized
from kopt.optimizers.optimizer import Count, Fraction, Layout, Positive, Slot, Slots, Step, Tensor, ema, override


class Scion(SeesMatrices):
    r"""Scion: momentum, and the steepest step by a norm that suits each kind of weight.

        m ← μ m + (1-μ) g
        u = ρ √(q/p) o              of matrices p × q; o: U Vᵀ of m = U Σ Vᵀ, nearly, as in `Muon`
        u = ρ' sign(m) / p          of the last one, or of `others`
        u = ρ m / rms(m)            of vectors; of embeddings, each row by itself

    With a decay of λ = 1 each weight stays within the ball of its norm of radius ρ; 0 is the unconstrained form.

    Slots: m, like w (4 bytes/parameter).  Not row-wise, but for embeddings.

    Args:
        momentum: μ in [0, 1), memory of the gradient.
        radius: ρ > 0.
        last_radius: ρ' > 0.
        ns_steps: k ≥ 1, Newton-Schulz iterations, as in `Muon`.
        coefficients: of the iterations, as in `Muon`.

    Differs from the authors' code, where `momentum` is 1 - μ, the kernel of a convolution k × k steps k times less far,
    the norm of each weight is said by the user, and rounding is to bfloat16.
    Reference: Pethick et al., 2025, arXiv:2502.07529.
    """

    learning_rate = 2.0**-12
    weight_decay = 1.0
    momentum: Fraction = 0.9
    radius: Positive = 50.0
    last_radius: Positive = 3000.0
    ns_steps: Count = 5
    coefficients: Named = "quintic"
    work = WORK
    slots = {"m": Slot()}
    scale_free = True

    @override
    def is_row_wise(self, layout: Layout) -> bool:
        return layout.is_table

    @override
    def other(self, layout: Layout) -> str:
        return f"Scion by {'rows' if layout.is_table else 'signs' if layout.is_matrix else 'length'}"

    @override
    def rule(self, g: Tensor, w: Tensor, s: Slots, t: Tensor) -> Step:
        m, layout = ema(s.m, g, self.momentum), s.layout
        if self.takes(layout):
            o = orthogonalized(layout.as_matrices(m), self.coefficients, self.ns_steps)
            u = length("aspect", layout) * layout.from_matrices(o)
        elif layout.is_matrix:
            return self.last_radius / layout.fan_in * ops.sign(m), {"m": m}
        else:
            rms = ops.sqrt(ops.mean(ops.square(m), axis=-1 if layout.is_table else None, keepdims=True))
            u = m / ops.where(rms > 0, rms, 1.0)
        return self.radius * u, {"m": m}
