"""GraLoRA."""

import math
from typing import Annotated, Any, Literal

from keras import ops
from typing_extensions import override

from kopt.declare import Count, Fraction, Range
from kopt.peft.adapter import Base, Length, Scale, Weight, uniform, zeros
from kopt.peft.layers import Site, Tensor
from kopt.peft.methods.additive import Additive


class GraLoRA(Additive):
    r"""GraLoRA: inputs and outputs are cut into k parts, and each pair of parts has a low-rank change of its own.

        W' = W + α/(r + h) (Δ + C D),   Δ[part n of the inputs, part j of the outputs] = A[n, :, j] B[j, n]

    The parameters are those of LoRA at rank r, the rank is up to k times as high.

    Weights: A [k, in / k, r], whose r columns are r / k for each j; B [k, r, out / k], whose r rows are r / k for each
    n; where h > 0 C [in, h], D [h, out]. At the start B = D = 0, so that W' = W.

    Args:
        r: 1 to 65,536, rank of each part of the inputs; a multiple of k.
        hybrid_r: h ≥ 0, rank of a LoRA beside it.
        alpha: α, 1e-6 to 1e6.
        gralora_dropout: in [0, 1), share of the inputs that the change does not see while training.
        gralora_k: k ≥ 1, which divides inputs and outputs; the paper takes 2 up to rank 32 and 4 from 64.
        init_weights: False draws B and D, which is not the identity.
        bias: "none"; peft trains biases too, which kopt does with LoRA and BitFit.

    Reference: Jung et al., 2025, arXiv:2505.20355.
    """

    peft_type = "GRALORA"
    in_peft = True
    additive = ordered = True
    batched = False
    kinds = ("einsum",)

    r: Length = 32
    hybrid_r: Annotated[int, Range(0, 2**16, closed=True)] = 0
    alpha: Scale = 64.0
    gralora_dropout: Fraction = 0.0
    gralora_k: Count = 2
    bias: Literal["none"] = "none"

    def __post_init__(self) -> None:
        if self.r % self.gralora_k:
            raise ValueError(f"GraLoRA: r must be a multiple of gralora_k={self.gralora_k}. Received: r={self.r}")

    @property
    def dropout(self) -> float:
        """`gralora_dropout`, under the name that hosts look for."""
        return self.gralora_dropout

    @override
    def check_fit(self, site: Site) -> None:
        if site.fan_in % self.gralora_k or site.fan_out % self.gralora_k:
            raise ValueError(
                "GraLoRA: gralora_k must divide the numbers of inputs and outputs. Received: "
                f"gralora_k={self.gralora_k} for a kernel [{site.fan_in}, {site.fan_out}]"
            )

    @override
    def weights(self, site: Site) -> dict[str, Weight]:
        k, last = self.gralora_k, zeros if self.init_weights else uniform(1 / math.sqrt(self.r))
        found = {
            "gralora_A": Weight((k, site.fan_in // k, self.r), uniform(math.sqrt(k / site.fan_in)), as_it_is=True),
            "gralora_B": Weight((k, self.r, site.fan_out // k), last, as_it_is=True),
        }
        if self.hybrid_r:
            found["gralora_A_general"] = Weight(("in", self.hybrid_r), uniform(1 / math.sqrt(site.fan_in)))
            found["gralora_B_general"] = Weight((self.hybrid_r, "out"), last)
        return found

    @override
    def spell(self, name: str, site: Site) -> str:
        return f"{name}.weight" if name.endswith("_general") else name

    def _parts(self, p: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Returns A, [n, inputs, j, r / k], B, [j, n, r / k, outputs], and the scale with the gate."""
        k, each = self.gralora_k, self.r // self.gralora_k
        a = ops.reshape(p.gralora_A, (k, -1, k, each))
        return a, ops.reshape(p.gralora_B, (k, k, each, -1)), p.gate * self.alpha / (self.r + self.hybrid_r)

    @override
    def effective(self, w: Tensor, p: Any) -> Tensor:
        """Returns W + α/(r + h) (Δ + C D)."""
        a, b, scale = self._parts(p)
        w = w + scale * ops.reshape(ops.einsum("nijs,jnso->nijo", a, b), w.shape)
        return w + scale * ops.matmul(p.gralora_A_general, p.gralora_B_general) if self.hybrid_r else w

    @override
    def forward(self, x: Tensor, base: Base, p: Any) -> Tensor:
        """Returns x W, and the change by thin products where the width is in the last axes."""
        if not base.site.maps_last_axes:
            return super().forward(x, base, p)
        y, dropped = base(x), p.dropout(x)
        a, b, scale = (ops.cast(tensor, x.dtype) for tensor in self._parts(p))
        rows = ops.reshape(dropped, (-1, *a.shape[:2]))
        changes = ops.einsum("tjns,jnso->tjo", ops.einsum("tni,nijs->tjns", rows, a), b)
        y = y + scale * ops.reshape(changes, ops.shape(y))
        if self.hybrid_r:
            y = y + base.site.low_rank(dropped, p.gralora_A_general, p.gralora_B_general, scale)
        return y
