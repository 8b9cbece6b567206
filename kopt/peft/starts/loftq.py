"""LoftQ: what rounding takes from the kernels, as far as a low rank holds it."""

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from kopt.declare import Count, checked
from kopt.peft.adapter import Array
from kopt.peft.layers import find_site
from kopt.peft.methods import LoRA
from kopt.peft.model import Plan, dequantize, quantize
from kopt.peft.starts.batches import kernel_of, lora_of


@checked
def loftq(
    model: Any, plans: Mapping[str, Plan], batches: Any, mode: Literal["int8", "int4"] = "int4", iterations: Count = 1
) -> dict[str, dict[str, Any]]:
    """Quantizes the layers, and returns factors by path.

    Q ← quantized(W - s A B),   s A B ← the nearest of rank r to W - Q          in turns, from A B = 0
    """
    if batches is not None:
        raise ValueError("init_lora_weights='loftq' looks at the kernels alone: leave out batches.")
    kernels = {path: kernel_of(step.layer) for path, step in plans.items()}
    starts: dict[str, dict[str, Any]] = {}
    for turn in range(iterations):
        if turn:
            dequantize(model)
        for path, start in starts.items():
            site = find_site(plans[path].layer)
            change = lora_of(plans[path]).scaling * start["lora_A"] @ start["lora_B"]
            assert site is not None
            site.variable.assign(site.kernel(kernels[path] - change))
        quantize(model, mode, sorted(plans))
        starts = {path: _nearest(kernels[path] - kernel_of(step.layer), lora_of(step)) for path, step in plans.items()}
    return starts


def _nearest(rest: Array, adapter: LoRA) -> dict[str, Array]:
    u, s, v = np.linalg.svd(rest.astype(np.float64), full_matrices=False)
    root = np.sqrt(s[..., : adapter.r] / adapter.scaling)
    return {"lora_A": u[..., : adapter.r] * root[..., None, :], "lora_B": root[..., :, None] * v[..., : adapter.r, :]}
