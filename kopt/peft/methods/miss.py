"""MiSS."""

import math
from typing import Any, Literal

import numpy as np
from keras import ops
from typing_extensions import override

from kopt.declare import Count, Fraction
from kopt.peft.adapter import Adapter, Base, Length, Weight, uniform, zeros
from kopt.peft.layers import Site, Tensor
from kopt.peft.methods.additive import Additive


class MiSS(Additive):
    r"""MiSS: one block of rows, repeated over the inputs: inputs with the same number modulo r share a change.

        W' = W + Δ,   Δᵢⱼ = D[i mod r, j]          "mini":  Δᵢⱼ = D[i mod r, j mod m]
        "bat":  each block of r inputs and r outputs of Wᵀ changes by Wᵀ D + D, with one D for each r outputs

    Weights: D [out, r]; [m, r] with "mini"; [r, r, out / r] with "bat". At the start D = 0, so that W' = W.

    Args:
        r: 1 to 65,536, at most the number of inputs.
        miss_dropout: in [0, 1), share of the inputs that the change does not see while training.
        mini_r: m, with "mini", which divides the number of outputs.
        init_weights: which form, "mini" or "bat", whose r divides inputs and outputs; True is the first. False is the
            first too, and draws D, which is not the identity.
        bias: "none"; peft trains biases too, which kopt does with LoRA and BitFit.

    Reference: Kang and Yin, 2024, arXiv:2409.15371.
    """

    peft_type = "MISS"
    in_peft = True
    ordered = True
    batched = False
    selects = Adapter.selects
    kinds = ("einsum",)

    r: Length = 64
    miss_dropout: Fraction = 0.0
    mini_r: Count = 1
    init_weights: bool | Literal["bat", "mini"] = True
    bias: Literal["none"] = "none"

    @property
    def dropout(self) -> float:
        """`miss_dropout`, under the name that hosts look for; "bat" has none."""
        return 0.0 if self.init_weights == "bat" else self.miss_dropout

    @override
    def weights(self, site: Site) -> dict[str, Weight]:
        init = zeros if self.init_weights else uniform(1 / math.sqrt(site.fan_out))
        axes: dict[Any, tuple[int | str, ...]] = {
            "bat": (self.r, self.r, site.fan_out // self.r),
            "mini": (self.mini_r, self.r),
        }
        return {"miss_block": Weight(axes.get(self.init_weights, ("out", self.r)), init)}

    @override
    def check_fit(self, site: Site) -> None:
        inner, outer = site.fan_in, site.fan_out
        divides = {"bat": inner % self.r == 0 and outer % self.r == 0, "mini": outer % self.mini_r == 0}
        if self.r > inner or not divides.get(str(self.init_weights), True):
            raise ValueError(
                "MiSS: r must be at most the number of inputs; with 'bat' it divides inputs and outputs, with 'mini' "
                f"mini_r divides outputs. Received: r={self.r}, mini_r={self.mini_r} for a kernel [{inner}, {outer}]"
            )

    def _rows(self, p: Any, fan_out: int) -> Tensor:
        """Returns D, [r, out]."""
        return ops.tile(ops.transpose(p.miss_block), (1, fan_out // p.miss_block.shape[0]))

    @override
    def change(self, w: Tensor, p: Any) -> Tensor:
        """Returns Δ."""
        inner, outer = w.shape
        if self.init_weights != "bat":
            return ops.take(self._rows(p, outer), np.arange(inner) % self.r, axis=0)
        d, r = ops.transpose(p.miss_block), self.r  # [out / r, r, r]
        blocks = ops.transpose(ops.reshape(w, (inner // r, r, outer // r, r)), (0, 2, 3, 1))
        return ops.reshape(ops.transpose(ops.matmul(blocks, d) + d, (0, 3, 1, 2)), w.shape)

    @override
    def forward(self, x: Tensor, base: Base, p: Any) -> Tensor:
        """Returns x W + (sums of x over inputs with the same number modulo r) D."""
        if self.init_weights == "bat":
            return super().forward(x, base, p)
        sums = np.eye(self.r, dtype="float32")[np.arange(base.site.fan_in) % self.r]
        return base(x) + base.site.low_rank(p.dropout(x), sums, self._rows(p, base.site.fan_out), p.gate)
