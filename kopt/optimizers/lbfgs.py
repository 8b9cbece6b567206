"""L-BFGS."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from keras import ops

from kopt._hyper import hyper
from kopt.optimizers import linesearch
from kopt.optimizers._base import LearningRate
from kopt.optimizers._math import Tensor
from kopt.optimizers._slots import Slot
from kopt.optimizers.bgd import FullBatch
from kopt.optimizers.linesearch import Search

FLATNESS = {"strong_wolfe": 0.9, "armijo": float("inf")}
"""c₂ of the line searches."""


class LBFGS(FullBatch):
    r"""L-BFGS: the quasi-Newton method that keeps the last steps and gradient differences, for full batches.

        d = -H g,  H = γ I - γ Y R⁻¹ Sᵀ - S R⁻ᵀ (γ Yᵀ - (D + γ YᵀY) R⁻¹ Sᵀ),  γ = sᵀy / yᵀy of the last pair
        w ← x + a d

    with the steps S and the gradient differences Y of the last accepted points, R the upper triangle of SᵀY and D
    its diagonal. Only inner products pass between the weights: what follows is done on their sums.

    Each update is one evaluation. It looks at the trial point x + a d, and either accepts it as the new x, or refines
    the step length a. At the end of `fit` the weights are put back to the last accepted point; until then they are at a
    trial point. It needs the loss of the same examples each time: use all of them (`examples` and `batch_size`).

    Slots: S and Y, x and its gradient (8 history + 8 bytes/parameter).  Not row-wise.

    Args:
        learning_rate: η, first trial of a in each search, or a itself; 1 is right for all but noisy gradients.
        history: ≥ 1, number of pairs.
        line_search: "strong_wolfe" finds where f has decreased enough and is flat enough; "armijo" asks for the first
            alone; "fixed" accepts every finite point.
        pairs: "curved" leaves out pairs of hardly any curvature, sᵀy < 0.01 |sᵀg|, which no strong Wolfe search makes;
            "damped" pulls y towards s/γ until sᵀy ≥ 0.2 sᵀs/γ; "cautious" asks for sᵀy > 0.1 ‖s‖ ‖y‖. The last two
            are for mini-batches, where losses of different examples cannot be compared: there line_search="fixed" with
            "cautious" goes on when searches stall.

    Differs from `torch.optim.LBFGS`, which evaluates a function several times in one step.
    Reference: Liu and Nocedal, 1989, doi:10.1007/BF01589116; this form of H: Byrd, Nocedal and Schnabel, 1994,
    doi:10.1007/BF01582063; on sums: Chen et al., 2014, NIPS; cautious: Li and Fukushima, 2001,
    doi:10.1137/S1052623499354242; damped: Powell, 1978, doi:10.1007/BFb0067703.
    """

    learning_rate: LearningRate = hyper(1.0)
    history: int = hyper(10, 1)
    line_search: str = hyper("strong_wolfe", choices=("strong_wolfe", "armijo", "fixed"))
    pairs: str = hyper("curved", choices=("curved", "damped", "cautious"))
    needs_loss = True

    @property
    def slots(self) -> Mapping[str, Slot]:
        """The history S and Y, oldest first, the last accepted point and its gradient."""
        history = Slot(shape=lambda weight: (self.history, *weight), exact=True)
        return {"S": history, "Y": history, "x": Slot("weight", exact=True), "g": Slot(exact=True)}

    @property
    def shared(self) -> Mapping[str, Any]:
        """Inner products of the history, the direction as coefficients of g, S and Y, and the state of the search."""
        column, square = np.zeros(self.history), np.zeros((self.history, self.history))
        flags = {"searching": 0.0, "accepted": 0.0, "paired": 0.0, "stalls": 0.0, "kept": 1.0, "added": 0.0}
        memory = {"gamma": 0.0, "sy": square, "yy": square, "sg": column, "yg": column}
        direction = {"by_s": column, "by_y": column}
        search = Search(0.0, 0.0, np.zeros(3), np.zeros(3), 0.0, 0.0)._asdict()
        return {**flags, **memory, **direction, **search}

    def contribute(self, g: Tensor, w: Tensor, s: Any, t: Tensor) -> dict[str, Tensor]:
        """Inner products of the step and the gradient at the trial with each other and with the history."""
        g, w, old, x, steps, changes = (ops.cast(v, "float64") for v in (g, w, s.g, s.x, s.S, s.Y))
        g, scale = g + s.weight_decay * w, s.multiplier
        inverse = 1 / scale if scale else 0.0  # a weight whose multiplier is 0 does not move
        step, y, each = w - x, g - old, tuple(range(1, len(w.shape) + 1))
        return {
            "penalty": s.weight_decay / 2 * ops.sum(w * w),
            "moved": ops.sum(ops.square(g * w)),
            "gg": scale * ops.sum(g * g),
            "last_ss": inverse * ops.sum(step * step),
            "last_sy": ops.sum(step * y),
            "last_yy": scale * ops.sum(y * y),
            "last_sg": ops.sum(step * g),
            "last_yg": scale * ops.sum(y * g),
            "ss": inverse * ops.sum(steps * step, each),
            "ys": ops.sum(changes * step, each),
            "sg": ops.sum(steps * g, each),
            "yg": scale * ops.sum(changes * g, each),
        }

    def settle(self, sums: dict[str, Tensor], s: Any, t: Tensor) -> dict[str, Tensor]:
        """Judges the trial, and finds the next one: of the same search, or along a new direction."""
        search = Search(**{k: getattr(s, k) for k in Search._fields})
        value, searching, moved = s.loss + sums["penalty"], s.searching > 0, sums["last_ss"] > 0
        finite = ops.logical_and(ops.isfinite(value), ops.isfinite(sums["gg"]))
        if self.line_search == "fixed":
            accepted, lost = finite, ops.logical_not(finite)
        else:
            slope = sums["last_sg"] / ops.where(s.step > 0, s.step, 1.0)
            noise = self._rounding_error(s.value, sums["moved"])
            accepted, lost, search = linesearch.refine(search, value, slope, noise, FLATNESS[self.line_search])
        accepted = ops.where(searching, ops.logical_and(accepted, moved), finite)
        failed = ops.logical_and(searching, ops.logical_or(lost, ops.logical_not(moved)))
        memory = self._remember(sums, s, ops.logical_and(accepted, searching))
        direction, slope = self._direction(memory, sums["gg"])
        arrived = {**memory, **direction, **linesearch.begin(value, slope, s.learning_rate)._asdict()}
        new = {**{k: getattr(s, k) for k in self.shared}, **search._asdict()}
        new = {k: ops.where(accepted, x, new[k]) for k, x in arrived.items()}
        for k in ("sy", "yy"):  # a failed search forgets the history and looks at its first point again
            new[k] = ops.where(failed, 0.0, new[k])
        stalls = s.stalls + ops.cast(failed, t.dtype)
        new["stalls"] = ops.where(ops.logical_and(accepted, searching), 0.0, stalls)
        new["accepted"] = ops.cast(accepted, t.dtype)
        new["searching"] = ops.where(failed, 0.0, ops.where(accepted, 1.0, s.searching))
        return new

    def _remember(self, sums: dict[str, Tensor], s: Any, arrived: Tensor) -> dict[str, Tensor]:
        """Returns the inner products of the history with the new pair, if it is one, and with the new gradient."""
        ss, sy, gamma = sums["last_ss"], sums["last_sy"], ops.where(s.gamma > 0, s.gamma, 1.0)
        kept, added = ops.ones_like(ss), ops.zeros_like(ss)  # y <- kept y + added s
        if self.pairs == "damped":
            low = sy < 0.2 * ss / gamma
            kept = ops.where(low, 0.8 * ss / ops.where(low, ss - sy * gamma, 1.0), 1.0)
            added, least = (1 - kept) / gamma, 0.0
        elif self.pairs == "cautious":
            least = 0.1 * ops.sqrt(ss * sums["last_yy"])
        else:
            least = 0.01 * (sy - sums["last_sg"])
        paired = ops.logical_and(arrived, kept * sy + added * ss > least)
        last_yy = kept * kept * sums["last_yy"] + 2 * kept * added * sy + added * added * ss
        last_sy, last_yg = kept * sy + added * ss, kept * sums["last_yg"] + added * sums["last_sg"]
        column_sy = kept * (sums["sg"] - s.sg) + added * sums["ss"]
        column_yy = kept * (sums["yg"] - s.yg) + added * sums["ys"]
        row = ops.zeros_like(column_sy[1:])  # of old differences with the new step: nothing needs it
        first = 1 / ops.sqrt(ops.where(sums["gg"] > 0, sums["gg"], 1.0))  # a step of length η to begin with
        gamma = ops.where(s.gamma > 0, s.gamma, first)
        return {
            "paired": ops.cast(paired, ss.dtype),
            "kept": kept,
            "added": added,
            "gamma": ops.where(paired, last_sy / ops.where(paired, last_yy, 1.0), gamma),
            "sy": ops.where(paired, _bordered(s.sy, column_sy[1:], row, last_sy), s.sy),
            "yy": ops.where(paired, _bordered(s.yy, column_yy[1:], column_yy[1:], last_yy), s.yy),
            "sg": ops.where(paired, ops.append(sums["sg"][1:], sums["last_sg"]), sums["sg"]),
            "yg": ops.where(paired, ops.append(sums["yg"][1:], last_yg), sums["yg"]),
        }

    def _direction(self, m: dict[str, Tensor], gg: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Returns d as coefficients of S and Y, and its slope."""
        diagonal = ops.diagonal(m["sy"])
        filled = diagonal > 0
        both = ops.logical_and(filled[:, None], filled[None, :])
        sg, yg = ops.where(filled, m["sg"], 0.0), ops.where(filled, m["yg"], 0.0)
        triangle = ops.triu(ops.where(both, m["sy"], 0.0)) + ops.diag(ops.where(filled, 0.0, ops.ones_like(diagonal)))
        alpha = _solve(triangle, sg, lower=False)
        change = m["gamma"] * (yg - ops.matmul(ops.where(both, m["yy"], 0.0), alpha))
        by_s = _solve(ops.transpose(triangle), change - diagonal * alpha, lower=True)
        by_y = m["gamma"] * alpha
        slope = ops.sum(by_s * sg) + ops.sum(by_y * yg) - m["gamma"] * gg
        down = slope < 0  # else the history has lost its digits
        direction = {"by_s": ops.where(down, by_s, 0.0), "by_y": ops.where(down, by_y, 0.0)}
        return direction, ops.where(down, slope, -m["gamma"] * gg)

    def advance(self, g: Tensor, w: Tensor, s: Any, t: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Moves history and point on, if the trial was accepted, and goes to the next trial."""
        g, scale = g + s.weight_decay * w, s.multiplier
        step = w - s.x
        y = s.kept * (g - s.g) + (s.added / scale if scale else 0.0) * step
        accepted, paired = s.accepted > 0, ops.logical_and(s.accepted > 0, s.paired > 0)
        x, g = ops.where(accepted, w, s.x), ops.where(accepted, g, s.g)
        steps = ops.where(paired, ops.concatenate([s.S[1:], step[None]]), s.S)
        changes = ops.where(paired, ops.concatenate([s.Y[1:], y[None]]), s.Y)
        d = ops.tensordot(s.by_s, steps, 1) + scale * (ops.tensordot(s.by_y, changes, 1) - s.gamma * g)
        return ops.where(s.searching > 0, x + s.step * d, x), {"S": steps, "Y": changes, "x": x, "g": g}


def _bordered(old: Tensor, column: Tensor, row: Tensor, corner: Tensor) -> Tensor:
    """Returns a matrix without its first row and column and with new ones at the end."""
    upper = ops.concatenate([old[1:, 1:], column[:, None]], axis=1)
    return ops.concatenate([upper, ops.append(row, corner)[None]])


def _solve(triangle: Tensor, b: Tensor, lower: bool) -> Tensor:
    return ops.linalg.solve_triangular(triangle, b[:, None], lower=lower)[:, 0]
