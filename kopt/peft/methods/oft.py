"""OFT."""

import math
from typing import Annotated, Any, Literal

import numpy as np
from keras import ops
from typing_extensions import override

from kopt.declare import Count, Range
from kopt.peft.adapter import Adapter, Base, Weight, normal, zeros
from kopt.peft.layers import Site, Tensor

Size = Annotated[int, Range(0, 2**16, closed=True)]


class OFT(Adapter):
    r"""OFT: the inputs are rotated, block by block, before the kernel.

        W' = R W          R = diag(R₁, R₂, ...),          Rᵢ = (I + Qᵢ) (I - Qᵢ)⁻¹ ≈ I + 2 Qᵢ + 2 Qᵢ² + ... + Qᵢᵏ

    Q is skew-symmetric: Qᵀ = -Q. At an embedding the outputs are rotated: W' = W R.

    Weights: the upper triangle of each Q: b (b - 1) / 2 for each of n / b blocks of n inputs. At the start Q = 0.

    Args:
        r: number of blocks; 0 if `oft_block_size` says it. One of the two is given, the nearest that divides is taken.
        oft_block_size: b, the size of blocks; 0 if `r` says it. Its default stands where r is 0.
        block_share: whether all blocks have the same Q.
        use_cayley_neumann: whether R is the sum, which costs products only; else the quotient, exactly orthogonal, with
            Q of the opposite sign, as in peft.
        num_cayley_neumann_terms: k + 1, terms of the sum.
        init_weights: False draws Q, which is not the identity.
        bias: "none"; peft trains biases too, which kopt does with LoRA and BitFit.

    Differs from Hugging Face peft: no `coft` and `module_dropout`. Convolutions are no hosts: what peft computes there
    is not what it merges.
    Reference: Qiu et al., 2023, arXiv:2306.07280; Qiu et al., 2025, arXiv:2506.19847.
    """

    peft_type = "OFT"
    in_peft = True
    ordered = True
    batched = False
    selects = (*Adapter.selects, "init_weights")
    kinds = ("einsum", "embedding")
    default_targets = ("query", "value")

    r: Size = 0
    oft_block_size: Size = 32
    block_share: bool = False
    use_cayley_neumann: bool = True
    num_cayley_neumann_terms: Count = 5
    init_weights: bool = True
    bias: Literal["none"] = "none"

    def __post_init__(self) -> None:
        if (self.r == 0) == (self.oft_block_size == 0):
            raise ValueError(
                "OFT: one of r and oft_block_size must be 0, for one says what the other is: write OFT(r=8, "
                f"oft_block_size=0). Received: r={self.r}, oft_block_size={self.oft_block_size}"
            )

    @override
    def weights(self, site: Site) -> dict[str, Weight]:
        name, width = ("oft_embedding_R", site.fan_out) if site.kind == "embedding" else ("oft_R", site.fan_in)
        size = width // _nearest(width, self.r) if self.r else _nearest(width, self.oft_block_size)
        count = 1 if self.block_share else width // size
        return {name: Weight((size * (size - 1) // 2, count), zeros if self.init_weights else normal(0.1))}

    @override
    def check_fit(self, site: Site) -> None:
        if 0 in next(iter(self.weights(site).values())).shape(site):
            width = site.fan_out if site.kind == "embedding" else site.fan_in
            raise ValueError(
                f"OFT: blocks of 1 of {width} numbers leave nothing to rotate. Take an oft_block_size near a larger "
                f"divisor, or leave the layer out. Received: r={self.r}, oft_block_size={self.oft_block_size}"
            )

    @override
    def spell(self, name: str, site: Site) -> str:
        return f"{name}.weight"

    def rotations(self, upper: Tensor, width: int) -> Tensor:
        """Returns R₁, R₂, ..., [blocks, b, b], from the upper triangles of Q, [blocks or 1, b (b - 1) / 2]."""
        count = upper.shape[1]
        size = (1 + math.isqrt(1 + 8 * count)) // 2
        place = np.zeros((size, size), "int32")  # 0 for the diagonal, then the upper triangle, then the lower
        place[np.triu_indices(size, 1)] = 1 + np.arange(count)
        place += np.where(place.T > 0, place.T + count, 0)
        q = ops.take(ops.concatenate([ops.zeros_like(upper[:, :1]), upper, -upper], axis=1), place, axis=1)
        eye = ops.broadcast_to(ops.eye(size), (width // size, size, size))
        if not self.use_cayley_neumann:
            return ops.solve(eye + q, eye - q)
        terms, power, total = self.num_cayley_neumann_terms, q, eye
        if terms > 1:
            total = total + 2 * q
        if terms > 2:
            for _ in range(max(1, terms - 3)):  # peft's sum, which has the same terms for 3 and 4
                power = ops.matmul(power, q)
                total = total + 2 * power
            total = total + ops.matmul(power, q)
        return total

    @staticmethod
    def _rotated(x: Tensor, rotations: Tensor) -> Tensor:
        """Returns x R for x [..., width], whose width may be several axes."""
        blocks = ops.reshape(x, (-1, *rotations.shape[:2]))
        return ops.reshape(ops.einsum("nbi,bij->nbj", blocks, ops.cast(rotations, x.dtype)), ops.shape(x))

    @override
    def effective(self, w: Tensor, p: Any) -> Tensor:
        """Returns R W, or W R at an embedding."""
        if hasattr(p, "oft_embedding_R"):
            return self._rotated(w, self.rotations(p.gate * ops.transpose(p.oft_embedding_R), w.shape[-1]))
        rotations = self.rotations(p.gate * ops.transpose(p.oft_R), w.shape[-2])
        blocks = ops.reshape(w, (*rotations.shape[:2], -1))
        return ops.reshape(ops.matmul(rotations, blocks), w.shape)

    @override
    def forward(self, x: Tensor, base: Base, p: Any) -> Tensor:
        """Rotates the input, or the output of an embedding, where its width is in its last axes."""
        if base.site.kind == "embedding":
            return self._rotated(base(x), self.rotations(p.gate * ops.transpose(p.oft_embedding_R), base.site.fan_out))
        if not base.site.maps_last_axes:
            return super().forward(x, base, p)
        return base(self._rotated(x, self.rotations(p.gate * ops.transpose(p.oft_R), base.site.fan_in)))


def _nearest(width: int, wanted: int) -> int:
    """Returns the divisor of a width that is nearest to a number, the smaller of two."""
    return min((d for d in range(1, width + 1) if width % d == 0), key=lambda d: (abs(d - wanted), d))
