"""C3A."""

import math
from typing import Annotated, Any, Literal

import numpy as np
from keras import ops
from typing_extensions import override

from kopt.declare import Convert
from kopt.peft import targets
from kopt.peft.adapter import Initializer, Length, Weight, normal, uniform, zeros
from kopt.peft.layers import Site, Tensor
from kopt.peft.methods.additive import Additive


class C3A(Additive):
    r"""C3A: the change is made of circulant blocks, each of which turns one vector of numbers round.

        W' = W + Δ / in,   Δ[i of part n, o of part m] = c[m, n, (i - o) mod b]

    Weights: c [out / b, in / b, b]: a b-th part of the kernel, with a change of up to full rank. At the start c = 0, so
    that W' = W.

    Args:
        block_size: b, 1 to 65,536, which divides inputs and outputs.
        block_size_pattern: b by regular expression of the end of a path.
        init_weights: True is zeros; False and "xavier_uniform", "kaiming_uniform" and "gaussian" draw c, which is not
            the identity.
        bias: "none"; peft trains biases too, which kopt does with LoRA and BitFit.

    Differs from Hugging Face peft: starts from zeros by default, peft from "xavier_uniform".
    Reference: Chen et al., 2024, arXiv:2407.19342.
    """

    peft_type = "C3A"
    in_peft = True
    additive = ordered = True
    batched = False
    patterned = {"block_size_pattern": "block_size"}
    selects = (*Additive.selects, *patterned)
    kinds = ("einsum",)

    block_size: Length = 256
    block_size_pattern: Annotated[Any, Convert(targets.parse_numbers(Length))] = {}
    init_weights: bool | Literal["gaussian", "kaiming_uniform", "xavier_uniform"] = True
    bias: Literal["none"] = "none"

    @override
    def check_fit(self, site: Site) -> None:
        if site.fan_in % self.block_size or site.fan_out % self.block_size:
            raise ValueError(
                "C3A: block_size must divide the numbers of inputs and outputs. Received: "
                f"block_size={self.block_size} for a kernel [{site.fan_in}, {site.fan_out}]"
            )

    @override
    def weights(self, site: Site) -> dict[str, Weight]:
        starts: dict[Any, Initializer] = {
            True: zeros,
            "gaussian": normal(1.0),
            "kaiming_uniform": uniform(1 / math.sqrt(site.fan_in)),
        }
        start = starts.get(self.init_weights, uniform(math.sqrt(6 / (site.fan_in + site.fan_out))))
        size = self.block_size
        return {"c3a_kernel": Weight((site.fan_out // size, site.fan_in // size, size), start, as_it_is=True)}

    @override
    def change(self, w: Tensor, p: Any) -> Tensor:
        """Returns Δ / in."""
        places = np.arange(self.block_size)
        blocks = ops.take(p.c3a_kernel, (places[:, None] - places) % self.block_size, axis=-1)  # [m, n, i, o]
        return ops.reshape(ops.transpose(blocks, (1, 2, 0, 3)), w.shape) / w.shape[-2]
