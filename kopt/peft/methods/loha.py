"""LoHa."""

import math
from typing import Annotated, Any

from keras import ops
from typing_extensions import override

from kopt.declare import Convert
from kopt.peft import targets
from kopt.peft.adapter import Length, Scale, Weight, uniform, zeros
from kopt.peft.layers import Site, Tensor
from kopt.peft.methods.additive import Additive


class LoHa(Additive):
    r"""LoHa: the element-wise product of two low-rank changes, whose rank is up to r².

        W' = W + α/r (B₁ A₁) ⊙ (B₂ A₂)

    Weights: B₁, B₂ [in, r], A₁, A₂ [r, out]: 2 r (in + out) parameters. At the start B₂ = 0, so that W' = W.

    Args:
        r: 1 to 65,536, rank of each factor.
        alpha: α, 1e-6 to 1e6.
        rank_pattern: r by regular expression of the end of a path.
        alpha_pattern: α likewise.
        init_weights: False draws B₂ too, which is not the identity.

    Differs from Hugging Face peft: no `rank_dropout` and `module_dropout`, and no `use_effective_conv2d`.
    Reference: Hyeon-Woo, Ye-Bin and Oh, 2021, arXiv:2108.06098; Yeh et al., 2023, arXiv:2309.14859.
    """

    peft_type = "LOHA"
    in_peft = True
    additive = True
    patterned = {"rank_pattern": "r", "alpha_pattern": "alpha"}
    selects = (*Additive.selects, *patterned)
    kinds = ("einsum", "convolution")

    r: Length = 8
    alpha: Scale = 8.0
    rank_pattern: Annotated[Any, Convert(targets.parse_numbers(Length))] = {}
    alpha_pattern: Annotated[Any, Convert(targets.parse_numbers(Scale))] = {}

    @override
    def weights(self, site: Site) -> dict[str, Weight]:
        inner, outer = uniform(1 / math.sqrt(site.fan_in)), uniform(1 / math.sqrt(self.r))
        last = zeros if self.init_weights else inner
        return {
            "hada_w1_a": Weight((self.r, "out"), outer, flat=True, rest=0.0),
            "hada_w1_b": Weight(("in", self.r), inner, flat=True),
            "hada_w2_a": Weight((self.r, "out"), outer, flat=True, rest=0.0),
            "hada_w2_b": Weight(("in", self.r), last, flat=True),
        }

    @override
    def change(self, w: Tensor, p: Any) -> Tensor:
        """Returns α/r (B₁ A₁) ⊙ (B₂ A₂)."""
        product = ops.matmul(p.hada_w1_b, p.hada_w1_a) * ops.matmul(p.hada_w2_b, p.hada_w2_a)
        return self.alpha / self.r * product
