"""Batch gradient descent."""

from keras import ops

from kopt.optimizers.full_batch.full_batch import FullBatch
from kopt.optimizers.full_batch.line_search import BACKTRACKING, backtrack
from kopt.optimizers.optimizer import (
    Any,
    Literal,
    Slot,
    Slots,
    Step,
    Tensor,
    dot,
    override,
    sum_of_squares,
)


class BGD(FullBatch):
    r"""Batch gradient descent: steps along the gradient of all examples.

        w ← w - α g                        g with the penalty, g ← g + λ w
        fixed:            α = η
        armijo:           α ← α/2 until f(w - α g) ≤ f(w) - 10⁻⁴ α ‖g‖², then α ← 2 α; η is the first trial
        barzilai_borwein: α = Δwᵀ Δg / ‖Δg‖² where positive; η is the first step

    With "armijo" each update is one evaluation: it looks at a trial point, and either accepts it or shortens the step
    from the last accepted point, which `fit` puts back at its end. It needs the loss.

    Slots: the last point and its gradient (8 bytes/parameter), none with "fixed".  Not row-wise.

    Args:
        step: how the length of the step is found: "armijo", "barzilai_borwein" or "fixed".

    Reference: Cauchy, 1847; Armijo, 1966, doi:10.2140/pjm.1966.16.1; Barzilai and Borwein, 1988,
    doi:10.1093/imanum/8.1.141, equation 5.
    """

    learning_rate = 0.1
    step: Literal["armijo", "barzilai_borwein", "fixed"] = "armijo"

    @property
    @override
    def needs_loss(self) -> bool:
        return self.step == "armijo"

    @property
    @override
    def slots(self) -> dict[str, Slot]:
        return {} if self.step == "fixed" else {"x": Slot("weight", exact=True), "g": Slot(exact=True)}

    @property
    @override
    def shared(self) -> dict[str, Any]:
        return dict.fromkeys({"fixed": (), "barzilai_borwein": ("length",), "armijo": BACKTRACKING}[self.step], 0.0)

    @override
    def contribute(self, g: Tensor, w: Tensor, s: Slots, t: Tensor) -> dict[str, Tensor]:
        g, scale = g + s.weight_decay * w, s.multiplier
        y = g - s.g
        return {
            "penalty": s.weight_decay / 2 * sum_of_squares(w),
            "moved": sum_of_squares(g * w),
            "gg": scale * sum_of_squares(g),
            "gx": scale * dot(g, s.g),
            "sy": dot(w - s.x, y),
            "yy": scale * sum_of_squares(y),
        } | self._coarse(g)

    @override
    def settle(self, sums: dict[str, Tensor], s: Slots, t: Tensor) -> dict[str, Tensor]:
        length = ops.where(s.length > 0, s.length, s.learning_rate)
        if self.step == "barzilai_borwein":
            sound = ops.logical_and(sums["sy"] > 0, ops.isfinite(sums["yy"]))
            return {"length": ops.where(sound, sums["sy"] / ops.where(sound, sums["yy"], 1.0), length)}
        noise = self._rounding_error(s.value, sums)
        return backtrack(s, length, s.loss + sums["penalty"], sums, noise)

    @override
    def advance(self, g: Tensor, w: Tensor, s: Slots, t: Tensor) -> Step:
        g = g + s.weight_decay * w
        if self.step == "fixed":
            return w - s.learning_rate * g, {}
        if self.step == "armijo":
            accepted = s.accepted > 0
            w, g = ops.where(accepted, w, s.x), ops.where(accepted, g, s.g)
        searching = s.searching > 0 if self.step == "armijo" else True
        return ops.where(searching, w - s.length * s.multiplier * g, w), {"x": w, "g": g}
