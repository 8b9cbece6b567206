"""DeLoRA."""

import math
from collections.abc import Callable
from typing import Annotated, Any, Literal

import numpy as np
from keras import ops
from typing_extensions import override

from kopt.declare import Convert, Fraction
from kopt.peft import targets
from kopt.peft.adapter import Array, Base, Length, Scale, Weight, constant, uniform, zeros
from kopt.peft.layers import Site, Tensor
from kopt.peft.methods.additive import Additive

SMALLEST = 1e-4
"""Norms below it count as this."""


class DeLoRA(Additive):
    r"""DeLoRA: LoRA whose terms have the norm 1, so that a number that is learned bounds how far the kernel moves.

        W' = W + λ/r diag(n) Σₖ aₖ bₖᵀ / (‖aₖ‖ ‖bₖ‖)          nᵢ = ‖row i of W‖ at the start

    Weights: A [in, r], B [r, out] with the columns aₖ and rows bₖ; λ [1]; n [in], which is not trained. At the start
    B = 0, so that W' = W.

    Args:
        r: 1 to 65,536, rank of the change.
        delora_lambda: λ at the start, 1e-6 to 1e6. A change has the size λ/r ‖W‖ for each term as soon as B has moved,
            whatever the learning rate: a small model may need less than this default of peft.
        module_dropout: in [0, 1), share of the inputs that the change does not see while training.
        rank_pattern: r by regular expression of the end of a path.
        lambda_pattern: `delora_lambda` by regular expression of the end of a path.
        init_weights: False draws B, too, which is not the identity.
        bias: "none"; peft trains biases too, which kopt does with LoRA and BitFit.

    Reference: Bini et al., 2025, arXiv:2503.18225.
    """

    peft_type = "DELORA"
    in_peft = True
    additive = True
    patterned = {"rank_pattern": "r", "lambda_pattern": "delora_lambda"}
    selects = (*Additive.selects, *patterned)
    kinds = ("einsum",)

    r: Length = 8
    delora_lambda: Scale = 15.0
    module_dropout: Fraction = 0.0
    rank_pattern: Annotated[Any, Convert(targets.parse_numbers(Length))] = {}
    lambda_pattern: Annotated[Any, Convert(targets.parse_numbers(Scale))] = {}
    bias: Literal["none"] = "none"

    @property
    def dropout(self) -> float:
        """`module_dropout`, under the name that hosts look for."""
        return self.module_dropout

    @override
    def weights(self, site: Site) -> dict[str, Weight]:
        last = zeros if self.init_weights else uniform(1 / math.sqrt(self.r))
        return {
            "delora_A": Weight(("in", self.r), uniform(1 / math.sqrt(site.fan_in))),
            "delora_B": Weight((self.r, "out"), last),
            "delora_lambda": Weight((1,), constant(self.delora_lambda)),
            "delora_w_norm": Weight(("in",), trainable=False, in_files=True),
        }

    @override
    def start(self, values: dict[str, Array], kernel: Callable[[], Array], rng: np.random.Generator) -> None:
        """Notes the norms of the kernel's rows."""
        values["delora_w_norm"] = np.linalg.norm(kernel(), axis=-1)

    def _factors(self, p: Any) -> tuple[Tensor, Tensor]:
        """Returns two factors, [*batch, in, r] and [*batch, r, out], whose product is the change."""

        def norms(x: Tensor, axis: int) -> Tensor:
            return ops.sqrt(ops.maximum(ops.sum(ops.square(x), axis=axis), SMALLEST**2))

        scale = p.delora_lambda / (self.r * norms(p.delora_A, -2) * norms(p.delora_B, -1))
        return p.delora_w_norm[..., None] * p.delora_A * scale[..., None, :], p.delora_B

    @override
    def change(self, w: Tensor, p: Any) -> Tensor:
        """Returns the change of the kernel."""
        return ops.matmul(*self._factors(p))

    @override
    def forward(self, x: Tensor, base: Base, p: Any) -> Tensor:
        """Returns x W, and the change by two thin products."""
        return base(x) + base.site.low_rank(p.dropout(x), *self._factors(p), p.gate)
