"""Orthogonalized."""

import dataclasses
from collections.abc import Mapping

from kopt.optimizers.matrix.newton_schulz import WORK, Named, Scale, length, orthogonalized
from kopt.optimizers.optimizer import Count, Slot, Slots, Tensor, override
from kopt.optimizers.wrappers.lengths import ForMatrices


class Orthogonalized(ForMatrices):
    r"""Orthogonalized: the direction of a matrix, made orthogonal, as `Muon` does with that of momentum.

        u ← direction of the optimizer within
        x ← u / ‖u‖,  k times:  x ← a x + b x xᵀ x + c x (xᵀ x)²            (o = x: U Vᵀ of u = U Σ Vᵀ, nearly)
        u ← 0.2 √max(p, q) o                            of p inputs and q outputs; other lengths by `scale`

    `Orthogonalized(kopt.SOAP())` is SOAP-Muon: SOAP has taken most of what differs between the directions of a matrix
    away, and this takes the rest. It does not matter in which basis it is done.

    Slots: those of the optimizer within, of which a short `state_dtype` is for m alone: every direction of a matrix
    counts alike here, also the small ones that come of rounding what divides.  Not row-wise, but for the weights that
    are no matrices.

    Args:
        scale: the length of u, "match_rms", "original" or "aspect", as in `Muon`.
        ns_steps: k ≥ 1, Newton-Schulz iterations, as in `Muon`.
        coefficients: of the iterations, as in `Muon`.

    Raises:
        ValueError: the optimizer within does not step along a direction.

    `optimizer.destinations(model)` tells which weights it sees; the others are moved by the optimizer within alone.
    Differs from the authors' code of SOAP-Muon, which also cuts off the elements above their median.
    Reference: Vyas et al., 2025, Improving SOAP using Iterative Whitening and Muon, nikhilvyas.github.io/SOAP_Muon.pdf.
    """

    scale: Scale = "match_rms"
    ns_steps: Count = 5
    coefficients: Named = "quintic"
    work = WORK

    @property
    @override
    def slots(self) -> Mapping[str, Slot]:
        return {k: dataclasses.replace(slot, exact=slot.exact or k != "m") for k, slot in super().slots.items()}

    @override
    def turned(self, u: Tensor, g: Tensor, w: Tensor, s: Slots) -> Tensor:
        if not self.takes(s.layout):
            return u
        o = orthogonalized(s.layout.as_matrices(u), self.coefficients, self.ns_steps)
        return length(self.scale, s.layout) * s.layout.from_matrices(o)

    @override
    def rate(self, s: Slots, t: Tensor) -> Tensor:
        return 1.0 if self.takes(s.layout) else super().rate(s, t)
