"""How tensors of several adapters become one: the arithmetic of `add_weighted_adapter`."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

Array = np.ndarray[Any, Any]
Kind = Literal["linear", "magnitude_prune", "ties", "dare_linear", "dare_ties"]


def combine(
    kind: Kind,
    tensors: Sequence[Array],
    weights: Sequence[float],
    density: float,
    majority: Literal["total", "frequency"],
    rng: np.random.Generator,
) -> Array:
    """Returns one tensor from several of one shape.

    Args:
        kind: "linear" is the weighted sum, "magnitude_prune" that of the largest elements of each tensor; "ties" is the
            weighted mean of the largest elements that have the sign of the majority; "dare" leaves random elements out
            and divides the others by the density instead.
        tensors: of one shape.
        weights: one for each.
        density: in (0, 1], share of the elements that are kept.
        majority: whether the sign is that of the sum of values ("total") or of signs ("frequency").
        rng: source of what "dare" leaves out.
    """
    if kind.startswith("dare"):
        kept = [np.where(rng.random(t.shape) < density, t, 0) / density for t in tensors]
    elif kind == "linear":
        kept = list(tensors)
    else:
        kept = [_largest(t, density) for t in tensors]
    stack = np.stack(kept)
    weighted = stack * np.reshape(np.asarray(weights, stack.dtype), (-1, *(1,) * tensors[0].ndim))
    if not kind.endswith("ties"):
        total: Array = weighted.sum(axis=0)
        return total
    signs = np.sign(stack)
    sign = np.where((stack if majority == "total" else signs).sum(axis=0) >= 0, 1, -1)
    agree = signs == sign
    mean: Array = np.where(agree, weighted, 0).sum(axis=0) / np.maximum(agree.sum(axis=0), 1)
    return mean


def _largest(tensor: Array, density: float) -> Array:
    """Returns a tensor with its largest elements only."""
    if density >= 1:
        return tensor
    order = np.argsort(-np.abs(tensor), axis=None, kind="stable")
    kept = np.zeros(tensor.size, bool)
    kept[order[: int(density * tensor.size)]] = True
    return np.where(kept.reshape(tensor.shape), tensor, 0)


def decompose(change: Array, rank: int | None, energy: float | None) -> tuple[Array, Array, float]:
    """Returns A [in, r] and B [r, out] of the nearest product to a change, and the share of its energy that it has.

    Args:
        change: [*batch, in, out].
        rank: r, at most that of the change; None takes the least with the energy.
        energy: share of the sum of squares that A B must have, for the worst of a batch.
    """
    u, s, v = np.linalg.svd(change.astype(np.float64), full_matrices=False)
    squares = s**2
    total = np.maximum(squares.sum(axis=-1), np.finfo(float).tiny)
    shares = np.cumsum(squares, axis=-1) / total[..., None]
    shares = shares.reshape(-1, shares.shape[-1]).min(axis=0)
    if rank is None:
        assert energy is not None
        rank = int(np.searchsorted(shares, energy - 1e-12) + 1)
    rank = min(rank, s.shape[-1])
    a, b = u[..., :rank], s[..., :rank, None] * v[..., :rank, :]
    return a, b, float(shares[rank - 1]) if squares.any() else 1.0
