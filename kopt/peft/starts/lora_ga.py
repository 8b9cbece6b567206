"""LoRA-GA: the singular vectors of the gradient."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from kopt.declare import Positive, checked
from kopt.peft.model import Plan
from kopt.peft.starts.batches import lora_of, mean_gradients


@checked
def lora_ga(model: Any, plans: Mapping[str, Plan], batches: Any, gamma: Positive = 16.0) -> dict[str, dict[str, Any]]:
    """Returns factors by path, from the gradient G of the loss for the kernel, [in, out].

        G = U S Vᵀ,   A = c U[:, :r],   B = c V[:, r:2r]ᵀ,   c = ∜out / √γ

    so that the first step of LoRA goes along the first step of full fine-tuning, and the output keeps its scale.
    """
    starts = {}
    for path, gradient in mean_gradients(model, plans, batches).items():
        rank = lora_of(plans[path]).r
        u, _, v = np.linalg.svd(gradient, full_matrices=False)
        scale = gradient.shape[-1] ** 0.25 / np.sqrt(gamma)
        starts[path] = {"lora_A": scale * u[..., :rank], "lora_B": scale * v[..., rank : 2 * rank, :]}
    return starts
