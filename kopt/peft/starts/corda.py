"""CorDA: the parts of the kernels that matter most, or least, to the data."""

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from kopt.declare import checked
from kopt.peft.adapter import Array
from kopt.peft.model import Plan
from kopt.peft.starts.batches import kernel_of, lora_of, watch_inputs


@checked
def corda(
    model: Any, plans: Mapping[str, Plan], batches: Any, corda_method: Literal["ipm", "kpm"] = "ipm"
) -> dict[str, dict[str, Any]]:
    """Returns factors by path, from the singular values of Wᵀ C, where C are the products of the inputs.

        Wᵀ C = U S Vᵀ,   A = C⁻¹ V √(S/s),   B = √(S/s) Uᵀ

    with the r largest singular values ("ipm") or the r smallest ("kpm"). C = mean over calls of xᵀ x / (max x)², and a
    hundredth of its mean diagonal on the diagonal.
    """
    products: dict[str, Array] = {}
    calls = dict.fromkeys(plans, 0)

    def see(path: str, rows: Array) -> None:
        rows = rows.astype(np.float64) / (np.abs(rows.max()) or 1.0)
        products[path] = products.get(path, 0.0) + rows.T @ rows
        calls[path] += 1

    watch_inputs(model, plans, batches, see)
    starts = {}
    for path, step in plans.items():
        adapter = lora_of(step)
        c = products[path] / calls[path]
        if not c.any():
            raise ValueError(f"The inputs of {path} are 0 in all batches.")
        c += 0.01 * np.mean(np.diag(c)) * np.eye(len(c))
        u, s, v = np.linalg.svd(kernel_of(step.layer).T @ c, full_matrices=False)
        taken = slice(None, adapter.r) if corda_method == "ipm" else slice(-adapter.r, None)
        root = np.sqrt(s[taken] / adapter.scaling)
        starts[path] = {"lora_A": np.linalg.solve(c, v[taken].T) * root, "lora_B": root[:, None] * u[:, taken].T}
    return starts
