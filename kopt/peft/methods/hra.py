"""HRA."""

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
from keras import ops
from typing_extensions import override

from kopt.peft.adapter import Adapter, Array, Base, Length, Weight, uniform
from kopt.peft.layers import Site, Tensor


class HRA(Adapter):
    r"""HRA: the inputs are reflected r times before the kernel, which is an orthogonal change of it.

        W' = Hᵣ ... H₂ H₁ W          Hₖ = I - 2 uₖ uₖᵀ / ‖uₖ‖²

    The product is I - V Tᵀ Vᵀ for the columns uₖ / ‖uₖ‖ of V and T = 2 (I + 2 S)⁻¹, where S has the part of Vᵀ V above
    its diagonal (Schreiber and Van Loan, 1989): two thin products, of which the input alone is kept.

    Weights: U [in, r], with the columns uₖ. At the start these are equal in pairs, so that W' = W.

    Args:
        r: 1 to 65,536, number of reflections: even, or `init_weights=False`, for an odd one cannot start at W.
        init_weights: False draws all uₖ, which is not the identity.
        bias: "none"; peft trains biases too, which kopt does with LoRA and BitFit.

    Differs from Hugging Face peft: no `apply_GS`, which divides by zero where the uₖ are equal in pairs.
    Reference: Yuan et al., 2024, arXiv:2405.17484.
    """

    peft_type = "HRA"
    in_peft = True
    batched = False
    selects = (*Adapter.selects, "init_weights")
    kinds = ("einsum", "convolution")
    default_targets = ("query", "value")

    r: Length = 8
    init_weights: bool = True
    bias: Literal["none"] = "none"

    @override
    def weights(self, site: Site) -> dict[str, Weight]:
        return {"hra_u": Weight(("in", self.r), uniform(1 / math.sqrt(site.fan_in)), as_it_is=True, flat=True)}

    @override
    def check_fit(self, site: Site) -> None:
        if self.r % 2 and self.init_weights:
            raise ValueError(f"HRA: r must be even, so that reflections undo each other. Received: r={self.r}")

    @classmethod
    @override
    def unfold(
        cls, config: Mapping[str, Any], tensors: Mapping[str, Array]
    ) -> tuple[Mapping[str, Any], Mapping[str, Array]]:
        """Takes an odd r, too, for the values in files have replaced the start."""
        odd = any(array.ndim == 2 and array.shape[1] % 2 for array in tensors.values())
        return {**config, "init_weights": False} if odd else config, tensors

    @override
    def start(self, values: dict[str, Array], kernel: Callable[[], Array], rng: np.random.Generator) -> None:
        """Makes the reflections equal in pairs."""
        if self.init_weights:
            values["hra_u"] = np.repeat(values["hra_u"][:, ::2], 2, axis=1)

    @staticmethod
    def _factors(p: Any) -> tuple[Tensor, Tensor]:
        """Returns V and Tᵀ Vᵀ, [in, r] and [r, in]; the second is 0 while the adapter is off."""
        v = p.hra_u / ops.sqrt(ops.sum(ops.square(p.hra_u), axis=0))
        below = ops.tril(ops.matmul(ops.transpose(v), v), k=-1)
        return v, ops.solve_triangular(
            ops.eye(v.shape[1]) + 2 * p.gate * below, 2 * p.gate * ops.transpose(v), lower=True
        )

    @override
    def effective(self, w: Tensor, p: Any) -> Tensor:
        """Returns Hᵣ ... H₁ W."""
        v, rest = self._factors(p)
        return w - ops.matmul(v, ops.matmul(rest, w))

    @override
    def forward(self, x: Tensor, base: Base, p: Any) -> Tensor:
        """Reflects the input where its width is in its last axes."""
        if not base.site.maps_last_axes:
            return super().forward(x, base, p)
        v, rest = (ops.cast(factor, x.dtype) for factor in self._factors(p))
        rows = ops.reshape(x, (-1, base.site.fan_in))
        return base(ops.reshape(rows - ops.matmul(ops.matmul(rows, v), rest), ops.shape(x)))
