"""LoKr."""

import math
from typing import Annotated, Any, Literal

from keras import ops
from typing_extensions import override

from kopt.declare import Convert, Range
from kopt.peft import targets
from kopt.peft.adapter import Length, Scale, Weight, uniform, zeros
from kopt.peft.layers import Site, Tensor
from kopt.peft.methods.additive import Additive


class LoKr(Additive):
    r"""LoKr: the Kronecker product of a small matrix and a larger one, each of which may be a low-rank product.

        W' = W + α/r C ⊗ D          C [m, l], D [n, k] with in = m n, out = l k; of a convolution D has its window

    Weights: C, or its factors of rank r with `decompose_both`; D, or its factors where r < max(k, n) / 2. At the start
    C or its factor is 0, so that W' = W.

    Args:
        r: 1 to 65,536, rank of the factors.
        alpha: α, 1e-6 to 1e6.
        decompose_both: whether C, too, is a product of factors where r is small for it.
        decompose_factor: m and l, where they divide in and out; -1 takes divisors near the square roots.
        rank_pattern: r by regular expression of the end of a path.
        alpha_pattern: α likewise.
        init_weights: "lycoris" draws C and starts D at 0 instead. False draws both, which is not the identity.

    Differs from Hugging Face peft: no `rank_dropout` and `module_dropout`, and no `use_effective_conv2d`.
    Reference: Yeh et al., 2023, arXiv:2309.14859.
    """

    peft_type = "LOKR"
    in_peft = True
    additive = ordered = True
    batched = False
    patterned = {"rank_pattern": "r", "alpha_pattern": "alpha"}
    selects = (*Additive.selects, *patterned)
    kinds = ("einsum", "convolution")

    r: Length = 8
    alpha: Scale = 8.0
    decompose_both: bool = False
    decompose_factor: Annotated[int, Range(-1, 2**16)] = -1
    rank_pattern: Annotated[Any, Convert(targets.parse_numbers(Length))] = {}
    alpha_pattern: Annotated[Any, Convert(targets.parse_numbers(Scale))] = {}
    init_weights: bool | Literal["lycoris"] = True

    @override
    def weights(self, site: Site) -> dict[str, Weight]:
        (m, n), (l, k) = (_divided(size, self.decompose_factor) for size in (site.channels, site.fan_out))  # noqa: E741
        r, area = self.r, site.size("window") * n
        c = zeros if self.init_weights is True else None
        d = zeros if self.init_weights == "lycoris" else None
        weights: dict[str, Weight] = {}
        if self.decompose_both and r < max(l, m) / 2:
            weights["lokr_w1_a"] = Weight((r, l), c or uniform(1 / math.sqrt(r)))
            weights["lokr_w1_b"] = Weight((m, r), uniform(1 / math.sqrt(m)))
        else:
            weights["lokr_w1"] = Weight((m, l), c or uniform(1 / math.sqrt(m)))
        if r < max(k, n) / 2:
            weights["lokr_w2_a"] = Weight((r, k), uniform(1 / math.sqrt(r)), flat=True)
            weights["lokr_w2_b"] = Weight(("window", n, r), d or uniform(1 / math.sqrt(area)), flat=True)
        else:
            weights["lokr_w2"] = Weight(("window", n, k), d or uniform(1 / math.sqrt(area)))
        return weights

    @override
    def change(self, w: Tensor, p: Any) -> Tensor:
        """Returns α/r C ⊗ D."""
        c = p.lokr_w1 if hasattr(p, "lokr_w1") else ops.matmul(p.lokr_w1_b, p.lokr_w1_a)
        d = p.lokr_w2 if hasattr(p, "lokr_w2") else ops.matmul(p.lokr_w2_b, p.lokr_w2_a)
        return self.alpha / self.r * ops.reshape(ops.einsum("ml,wnk->wmnlk", c, d), w.shape)


def _divided(size: int, factor: int) -> tuple[int, int]:
    """Returns divisors (m, n) of a size, m ≤ n: m is `factor` if that divides it, else the next one below."""
    if factor > 0 and size % factor == 0:
        return factor, size // factor
    limit = size if factor == -1 else factor
    m = max(d for d in range(1, math.isqrt(size) + 1) if size % d == 0 and (d <= limit or d == 1))
    return m, size // m
