"""GaLore."""

from keras import ops

from kopt.optimizers.engine.rule_checks import direction
from kopt.optimizers.engine.tensor_math import is_due, of_largest
from kopt.optimizers.optimizer import Layout, Mapping, Positive, Slot, Slots, Step, Tensor, override
from kopt.optimizers.wrappers.low_rank import LowRank, is_even, is_wide, projected

TURNS = 16
"""Orthogonal iterations at each choice of P: an error falls to its share (σ₂/σ₁)³² in them."""


class GaLore(LowRank):
    r"""GaLore: the optimizer within sees the gradient of a large kernel along its largest singular vectors alone.

        t = 1, 1+k, 1+2k ...:  P₀ ← P,  P ← the r largest left singular vectors of g (p × q, p ≤ q)
                               moments m ← Pᵀ P₀ m,  means of squares v ← (Pᵀ P₀)² v        (not at t = 1)
        u = α P (direction of the optimizer within for Pᵀ g)                    (p > q: right ones, and g P)

    The singular vectors are found by orthogonal iteration inside of the compiled step, P ← Q of g gᵀ P = Q U, sixteen
    times from the last P.

    Slots: of a kernel p × q with p ≤ q P, p r numbers (in 4 bytes always), and each slot of the optimizer within, r q
    numbers; of other weights those of the optimizer within.  Not row-wise, but for those if the optimizer within is.

    Args:
        scale: α > 0, of the steps of such kernels.

    Differs from the authors' code and `pytorch_optimizer.GaLore`, which take the vectors from a full decomposition and
    leave the moments as they are when P changes, although their axes are others then; the turn is that of LDAdam. Until
    P changes for the first time all agree.
    Reference: Zhao et al., 2024, arXiv:2403.03507; the turn of moments: Robert et al., 2024, arXiv:2410.16103.
    """

    scale: Positive = 0.25

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        self._even = is_even(self.optimizer)

    @property
    @override
    def slots(self) -> Mapping[str, Slot]:
        return {**super().slots, "P": Slot(shape=self._basis, exact=True)}

    def _basis(self, layout: Layout) -> tuple[int, ...]:
        if not self.takes(layout):
            return ()
        return (*layout.matrices[:-2], min(layout.fan_in, layout.fan_out), self.rank)

    @override
    def rule(self, g: Tensor, w: Tensor, s: Slots, t: Tensor) -> Step:
        layout = s.layout
        if not self.takes(layout):
            u, new = direction(self.optimizer, g, w, s, t)
            return u, {**new, "P": s.P}
        x, names = layout.as_matrices(g), [*self.optimizer.slots]
        kept = [s.P, *(getattr(s, name) for name in names)]
        basis, *slots = ops.cond(is_due(t, self.every), lambda: self._renewed(x, s, t, names), lambda: kept)
        seen = Slots(**{**vars(s), **dict(zip(names, slots, strict=True))})
        along = projected(layout.as_matrices(w), basis, layout)
        u, new = direction(self.optimizer, projected(x, basis, layout), along, seen, t)
        back = ops.matmul(basis, u) if is_wide(layout) else ops.matmul(u, ops.swapaxes(basis, -1, -2))
        return self.scale * layout.from_matrices(back), {**new, "P": basis}

    def _renewed(self, x: Tensor, s: Slots, t: Tensor, names: list[str]) -> list[Tensor]:
        """Returns P of this gradient, and the slots along it."""
        first, wide = ops.equal(t, 1), is_wide(s.layout)
        tall = of_largest(x if wide else ops.swapaxes(x, -1, -2))
        basis = ops.where(first, ops.eye(*s.P.shape[-2:], dtype=x.dtype), s.P)

        def turn(_: Tensor, basis: Tensor) -> Tensor:
            seen = ops.matmul(ops.swapaxes(tall, -1, -2), basis)
            return ops.linalg.qr(of_largest(ops.matmul(tall, seen)), mode="reduced")[0]

        basis = ops.fori_loop(0, TURNS, turn, basis)
        change = ops.matmul(ops.swapaxes(basis, -1, -2), s.P)
        slots = []
        for name in names:
            by, old = ops.square(change) if self._even[name] else change, getattr(s, name)
            turned = ops.matmul(by, old) if wide else ops.matmul(old, ops.swapaxes(by, -1, -2))
            slots.append(ops.where(first, old, turned))
        return [basis, *slots]
