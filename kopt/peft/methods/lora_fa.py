"""LoRA-FA."""

import dataclasses

from typing_extensions import override

from kopt.peft.adapter import Weight
from kopt.peft.layers import Site
from kopt.peft.methods.lora import LoRA


class LoRAFA(LoRA):
    r"""LoRA-FA: LoRA whose first factor stays as it was drawn, so that its gradient needs no copy of the inputs.

        W' = W + s A B          A is frozen

    Weights: A [in, r], frozen, B [r, out]: r out parameters. The arguments are those of `LoRA`, whose files these are:
    A is in them, and what is read from them is a `LoRA`, both of whose factors are trained. Embeddings are no hosts:
    their A starts at 0.

    Differs from Hugging Face peft: there it is an optimizer for LoRA, `create_lorafa_optimizer`, which freezes A and
    multiplies the gradient of B by (Aᵀ A)⁻¹ / s². Here it is a frozen weight, as in the paper, for any optimizer.
    Reference: Zhang et al., 2023, arXiv:2308.03303.
    """

    kinds = ("einsum", "convolution", "opaque")

    @override
    def weights(self, site: Site) -> dict[str, Weight]:
        factors = super().weights(site)
        return factors | {"lora_A": dataclasses.replace(factors["lora_A"], trainable=False, in_files=True)}
