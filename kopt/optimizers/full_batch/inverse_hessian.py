"""The matrix H of L-BFGS in its compact form, on inner products alone: sums over all weights. Pure.

    H = γ I - γ Y R⁻¹ Sᵀ - S R⁻ᵀ (γ Yᵀ - (D + γ YᵀY) R⁻¹ Sᵀ),  γ = sᵀy / yᵀy of the last pair

with the steps S and the gradient differences Y of the last accepted points, R the upper triangle of SᵀY and D its
diagonal.

References: Byrd, Nocedal and Schnabel, 1994, doi:10.1007/BF01582063; on sums: Chen et al., 2014, NIPS; cautious pairs:
Li and Fukushima, 2001, doi:10.1137/S1052623499354242; damped ones: Powell, 1978, doi:10.1007/BFb0067703.
"""

from typing import Any

import numpy as np
from keras import ops

from kopt.optimizers.engine.backends.backend import backend
from kopt.optimizers.engine.tensor_math import Tensor, beside, is_summed_in_blocks, sums_of_blocks


def memory(history: int) -> dict[str, Any]:
    """Returns the values to keep, before there is a pair: inner products, and the direction as coefficients.

    Pairs stand in S and Y in a ring, where the next one takes the place of the `oldest`; all else is in their order in
    time.
    """
    column, square = np.zeros(history), np.zeros((history, history))
    pair = {"paired": 0.0, "kept": 1.0, "added": 0.0, "oldest": 0.0}
    products = {"gamma": 0.0, "sy": square, "yy": square, "sg": column, "yg": column}
    return {**pair, **products, "by_s": column, "by_y": column}


def products(pairs: str, g: Tensor, w: Tensor, s: Any) -> dict[str, Tensor]:
    """Returns inner products of the step and the gradient at the trial with each other and with the history.

    Those of step and history are for "damped" pairs alone. All in float64; of large weights in float32 the products and
    the sums of up to 1024 of them are float32.
    """
    steps, changes, old, x = s.S, s.Y, s.g, s.x
    if not is_summed_in_blocks(w.shape):
        g, w, old, x, steps, changes = (ops.cast(v, backend.widest()) for v in (g, w, old, x, steps, changes))
    g, scale = g + s.weight_decay * w, s.multiplier
    inverse = 1 / scale if scale else 0.0  # a weight whose multiplier is 0 does not move
    step, y = w - x, g - old
    sums = {
        "penalty": s.weight_decay / 2 * _inner(w, w),
        "moved": _inner(g * w, g * w),
        "gg": scale * _inner(g, g),
        "last_ss": inverse * _inner(step, step),
        "last_sy": _inner(step, y),
        "last_yy": scale * _inner(y, y),
        "last_sg": _inner(step, g),
        "last_yg": scale * _inner(y, g),
        "sg": _with_each(steps, g),
        "yg": scale * _with_each(changes, g),
    }
    if pairs == "damped":
        sums |= {"ss": inverse * _with_each(steps, step), "ys": _with_each(changes, step)}
    return sums


def remember(pairs: str, sums: dict[str, Tensor], s: Any, stepped: Tensor) -> dict[str, Tensor]:
    """Returns the inner products of the history with the new pair, if it is one, and with the new gradient.

    Args:
        pairs: which pairs count: "curved", "damped" or "cautious".
        sums: what `products` gave, over all weights.
        s: the values of `memory`, as they were.
        stepped: whether there is a new pair at all.
    """
    sums = sums | {k: _in_time(sums[k], s.oldest) for k in ("sg", "yg", "ss", "ys") if k in sums}
    ss, sy, gamma = sums["last_ss"], sums["last_sy"], ops.where(s.gamma > 0, s.gamma, 1.0)
    kept, added = ops.ones_like(ss), ops.zeros_like(ss)  # y <- kept y + added s
    if pairs == "damped":
        low = sy < 0.2 * ss / gamma
        kept = ops.where(low, 0.8 * ss / ops.where(low, ss - sy * gamma, 1.0), 1.0)
        added, least = (1 - kept) / gamma, 0.0
    elif pairs == "cautious":
        least = 0.1 * ops.sqrt(ss * sums["last_yy"])
    else:
        least = 0.01 * (sy - sums["last_sg"])
    paired = ops.logical_and(stepped, kept * sy + added * ss > least)
    last_yy = kept * kept * sums["last_yy"] + 2 * kept * added * sy + added * added * ss
    last_sy, last_yg = kept * sy + added * ss, kept * sums["last_yg"] + added * sums["last_sg"]
    column_sy, column_yy = kept * (sums["sg"] - s.sg), kept * (sums["yg"] - s.yg)
    if pairs == "damped":
        column_sy, column_yy = column_sy + added * sums["ss"], column_yy + added * sums["ys"]
    row = ops.zeros_like(column_sy[1:])  # of old differences with the new step: nothing needs it
    first = 1 / ops.sqrt(ops.where(sums["gg"] > 0, sums["gg"], 1.0))  # a step of length η to begin with
    gamma = ops.where(s.gamma > 0, s.gamma, first)
    return {
        "paired": ops.cast(paired, ss.dtype),
        "kept": kept,
        "added": added,
        "oldest": ops.where(paired, (s.oldest + 1) % s.sg.shape[0], s.oldest),
        "gamma": ops.where(paired, last_sy / ops.where(paired, last_yy, 1.0), gamma),
        "sy": ops.where(paired, _bordered(s.sy, column_sy[1:], row, last_sy), s.sy),
        "yy": ops.where(paired, _bordered(s.yy, column_yy[1:], column_yy[1:], last_yy), s.yy),
        "sg": ops.where(paired, ops.append(sums["sg"][1:], sums["last_sg"]), sums["sg"]),
        "yg": ops.where(paired, ops.append(sums["yg"][1:], last_yg), sums["yg"]),
    }


def direction(m: dict[str, Tensor], gg: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Returns d = -H g as coefficients of S and Y, and its slope dᵀg; `gg` is the square of the gradient."""
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
    coefficients = {"by_s": ops.where(down, by_s, 0.0), "by_y": ops.where(down, by_y, 0.0)}
    return coefficients, ops.where(down, slope, -m["gamma"] * gg)


def _inner(a: Tensor, b: Tensor) -> Tensor:
    """Returns an inner product, float64."""
    product = a * b
    return ops.sum(ops.cast(sums_of_blocks(product) if is_summed_in_blocks(b.shape) else product, backend.widest()))


def _with_each(history: Tensor, x: Tensor) -> Tensor:
    """Returns the inner products of x with every row of a history, float64."""
    if is_summed_in_blocks(x.shape):
        return ops.stack([_inner(history[k], x) for k in range(history.shape[0])])
    return ops.sum(history * x, tuple(range(1, len(history.shape))))


def _in_time(ring: Tensor, oldest: Tensor) -> Tensor:
    """Returns the numbers of a ring, from that of the oldest pair on."""
    size = ring.shape[0]
    return ops.take(ring, (ops.arange(size) + ops.cast(oldest, "int32")) % size)


def in_ring(x: Tensor, oldest: Tensor) -> Tensor:
    """Returns the numbers of pairs in time as their pairs stand in the ring."""
    size = x.shape[0]
    return ops.take(x, (ops.arange(size) + size - ops.cast(oldest, "int32")) % size)


def with_newest(ring: Tensor, row: Tensor, paired: Tensor, oldest: Tensor) -> Tensor:
    """Returns a ring with the new row in the place before the oldest, if it belongs to a pair."""
    size = ring.shape[0]
    place = ops.equal(ops.arange(size), (ops.cast(oldest, "int32") + size - 1) % size)
    return ops.where(beside(ops.logical_and(place, paired), ring), row, ring)


def _bordered(old: Tensor, column: Tensor, row: Tensor, corner: Tensor) -> Tensor:
    """Returns a matrix without its first row and column and with new ones at the end."""
    upper = ops.concatenate([old[1:, 1:], column[:, None]], axis=1)
    return ops.concatenate([upper, ops.append(row, corner)[None]])


def _solve(triangle: Tensor, b: Tensor, lower: bool) -> Tensor:
    return ops.linalg.solve_triangular(triangle, b[:, None], lower=lower)[:, 0]
