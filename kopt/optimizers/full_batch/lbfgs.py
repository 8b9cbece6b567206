"""L-BFGS."""

from keras import ops

from kopt.optimizers.full_batch import inverse_hessian, line_search
from kopt.optimizers.full_batch.full_batch import FullBatch
from kopt.optimizers.optimizer import Any, Count, Literal, Slot, Slots, Step, Tensor, override


class LBFGS(FullBatch):
    r"""L-BFGS: the quasi-Newton method that keeps the last steps and gradient differences, for full batches.

        d = -H g        H from the last pairs: kopt/optimizers/full_batch/inverse_hessian.py
        w ← x + a d     a from a search along d: kopt/optimizers/full_batch/line_search.py

    Each update is one evaluation. It looks at the trial point x + a d, and either accepts it as the new x, or refines
    a. At the end of `fit` the weights are put back to the last accepted point; until then they are at a trial point. It
    needs the loss of the same examples each time: use all of them (`examples` and `batch_size`).

    Slots: S and Y, x and its gradient (8 history + 8 bytes/parameter).  Not row-wise.

    Args:
        learning_rate: η, first trial of a in each search, or a itself; 1 is right for all but noisy gradients.
        history: ≥ 1, number of pairs.
        line_search: "strong_wolfe" finds where f has decreased and is flat enough, "armijo" where it has decreased;
            "fixed" accepts every finite point.
        pairs: "curved" leaves out those of hardly any curvature, sᵀy < 0.01 |sᵀg|, which no strong Wolfe search makes;
            "damped" pulls y towards s/γ until sᵀy ≥ 0.2 sᵀs/γ; "cautious" asks for sᵀy > 0.1 ‖s‖ ‖y‖, and with
            line_search="fixed" goes on with mini-batches, where searches stall: their losses cannot be compared.

    Differs from `torch.optim.LBFGS`, which evaluates a function several times in one step.
    Reference: Liu and Nocedal, 1989, doi:10.1007/BF01589116.
    """

    learning_rate = 1.0
    history: Count = 10
    line_search: Literal["strong_wolfe", "armijo", "fixed"] = "strong_wolfe"
    pairs: Literal["curved", "damped", "cautious"] = "curved"
    needs_loss = True

    @property
    @override
    def takes_minibatches(self) -> bool:
        return self.pairs == "cautious" and self.line_search == "fixed"

    @property
    @override
    def slots(self) -> dict[str, Slot]:
        history = Slot(shape=lambda weight: (self.history, *weight), exact=True)
        return {"S": history, "Y": history, "x": Slot("weight", exact=True), "g": Slot(exact=True)}

    @property
    @override
    def shared(self) -> dict[str, Any]:
        return {**inverse_hessian.memory(self.history), **line_search.idle()}

    @override
    def contribute(self, g: Tensor, w: Tensor, s: Slots, t: Tensor) -> dict[str, Tensor]:
        return inverse_hessian.products(self.pairs, g, w, s) | self._coarse(g)

    @override
    def settle(self, sums: dict[str, Tensor], s: Slots, t: Tensor) -> dict[str, Tensor]:
        value, noise = s.loss + sums["penalty"], self._rounding_error(s.value, sums)
        accepted, failed, search = line_search.judge(
            self.line_search, s, value, sums["last_sg"], sums["last_ss"], noise
        )
        memory = inverse_hessian.remember(self.pairs, sums, s, ops.logical_and(accepted, s.searching > 0))
        direction, slope = inverse_hessian.direction(memory, sums["gg"])
        arrived = memory | direction | line_search.begin(value, slope, s.learning_rate)._asdict()
        old = vars(s) | {k: ops.where(failed, 0.0, getattr(s, k)) for k in ("sy", "yy")} | search._asdict()
        new = {k: ops.where(accepted, x, old[k]) for k, x in arrived.items()}  # a failed search forgets the history
        return new | line_search.outcome(s, accepted, failed)

    @override
    def advance(self, g: Tensor, w: Tensor, s: Slots, t: Tensor) -> Step:
        g, scale = g + s.weight_decay * w, s.multiplier
        step = w - s.x
        y = s.kept * (g - s.g) + (s.added / scale if scale else 0.0) * step
        accepted, paired = s.accepted > 0, ops.logical_and(s.accepted > 0, s.paired > 0)
        x, g = ops.where(accepted, w, s.x), ops.where(accepted, g, s.g)
        steps = inverse_hessian.with_newest(s.S, step, paired, s.oldest)
        changes = inverse_hessian.with_newest(s.Y, y, paired, s.oldest)
        by_s, by_y = (inverse_hessian.in_ring(x, s.oldest) for x in (s.by_s, s.by_y))
        d = ops.tensordot(by_s, steps, 1) + scale * (ops.tensordot(by_y, changes, 1) - s.gamma * g)
        return ops.where(s.searching > 0, x + s.step * d, x), {"S": steps, "Y": changes, "x": x, "g": g}
