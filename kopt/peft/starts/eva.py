"""EVA: the directions in which the inputs of layers vary most."""

from collections import Counter
from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np

from kopt.declare import Range, checked
from kopt.peft.adapter import Array
from kopt.peft.model import Plan
from kopt.peft.starts.batches import lora_of, watch_inputs


class _Moments:
    """Mean and covariance of vectors."""

    def __init__(self, width: int) -> None:
        self.count, self.total, self.products = 0, np.zeros(width), np.zeros((width, width))

    def add(self, rows: Array) -> None:
        """Takes [n, width]."""
        rows = rows.astype(np.float64)
        self.count += len(rows)
        self.total += rows.sum(axis=0)
        self.products += rows.T @ rows

    def components(self, most: int) -> tuple[Array, Array, Array]:
        """Returns principal components as [components, width], their singular values and shares of the variance."""
        squares, vectors = np.linalg.eigh(self.products - np.outer(self.total, self.total) / self.count)
        squares = np.maximum(squares[::-1], 0)
        largest = vectors.T[::-1][:most]
        signs = np.sign(np.take_along_axis(largest, np.abs(largest).argmax(axis=1)[:, None], axis=1))
        return largest * signs, np.sqrt(squares[:most]), squares[:most] / max(squares.sum(), np.finfo(float).tiny)


@checked
def eva(
    model: Any, plans: Mapping[str, Plan], batches: Any, rho: Annotated[float, Range(1)] = 2.0, whiten: bool = False
) -> dict[str, dict[str, Any]]:
    """Returns rank, α and factors by path: A are the first principal components of the inputs, B = 0.

    All layers together have as many ranks as before; those components have them that explain most of the variance of
    their inputs, at most `rho` times the rank of a layer. α changes with the rank, so that the factor s stays.
    """
    ranks = {path: lora_of(step).r for path, step in plans.items()}
    seen: dict[str, _Moments] = {}

    def see(path: str, rows: Array) -> None:
        seen.setdefault(path, _Moments(rows.shape[-1])).add(rows)

    watch_inputs(model, plans, batches, see)
    found = {path: seen[path].components(round(ranks[path] * rho)) for path in plans}
    shares = [(-share, path) for path, (_, _, own) in found.items() for share in own]
    counts = Counter(path for _, path in sorted(shares, key=lambda entry: entry[0])[: sum(ranks.values())])
    starts = {}
    for path, rank in counts.items():
        (vectors, values, _), adapter = found[path], lora_of(plans[path])
        if values[rank - 1] <= 1e-6 * values[0]:
            raise ValueError(
                f"The inputs of {path} vary in fewer than {rank} directions. Take more batches, or less r."
            )
        a = vectors[:rank] / np.sqrt(values[:rank])[:, None] if whiten else vectors[:rank]
        alpha = adapter.scaling * (np.sqrt(rank) if adapter.use_rslora else rank)
        starts[path] = {"r": rank, "lora_alpha": float(alpha), "lora_A": a.T}
    return starts
