"""HiRA."""

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from keras import ops
from typing_extensions import override

from kopt.declare import Convert, Fraction
from kopt.peft import targets
from kopt.peft.adapter import Array, Initializer, Length, Weight, normal, uniform, zeros
from kopt.peft.layers import Site, Tensor
from kopt.peft.methods.additive import Additive


class HiRA(Additive):
    r"""HiRA: a low-rank matrix times the kernel, element by element, which is a change of high rank.

        W' = W + W ⊙ (A B)

    Weights: A [in, r], B [r, out]: r (in + out) parameters. At the start B = 0 (embeddings: A = 0), so that W' = W.

    Args:
        r: 1 to 65,536, rank of the factors.
        hira_dropout: in [0, 1), share of the inputs that the change does not see while training; not on embeddings.
        rank_pattern: r by regular expression of the end of a path.
        init_weights: True is uniform for A, as in torch; "gaussian" draws A from N(0, 1/r²). False draws both factors
            from N(0, 1), which is not the identity.

    Differs from Hugging Face peft: 0.21.2 passes over its `rank_pattern`, and cannot read a file with ranks by one.
    Reference: Huang et al., 2025, "HiRA: Parameter-Efficient Hadamard High-Rank Adaptation for Large Language Models".
    """

    peft_type = "HIRA"
    in_peft = True
    patterned = {"rank_pattern": "r"}
    selects = (*Additive.selects, *patterned)
    kinds = ("einsum", "convolution", "embedding")

    r: Length = 32
    hira_dropout: Fraction = 0.0
    rank_pattern: Annotated[Any, Convert(targets.parse_numbers(Length))] = {}
    init_weights: bool | Literal["gaussian"] = True

    @property
    def dropout(self) -> float:
        """`hira_dropout`, under the name that hosts look for."""
        return self.hira_dropout

    @override
    def weights(self, site: Site) -> dict[str, Weight]:
        a: Initializer = uniform(1 / math.sqrt(site.fan_in))
        b: Initializer = zeros
        if self.init_weights is False:
            a = b = normal(1.0)
        elif site.kind == "embedding":
            a, b = zeros, normal(1.0)
        elif self.init_weights == "gaussian":
            a = normal(1 / self.r)
        return {"hira_A": Weight(("in", self.r), a), "hira_B": Weight((self.r, "out"), b, rest=0.0)}

    @classmethod
    @override
    def unfold(
        cls, config: Mapping[str, Any], tensors: Mapping[str, Array]
    ) -> tuple[Mapping[str, Any], Mapping[str, Array]]:
        """Leaves a `rank_pattern` out that peft has passed over."""
        ranks = {array.shape[0] for name, array in tensors.items() if name.endswith(("hira_A", "hira_embedding_A"))}
        return {**config, "rank_pattern": {}} if ranks == {config.get("r", cls.r)} else config, tensors

    @override
    def spell(self, name: str, site: Site) -> str:
        return name.replace("hira_", "hira_embedding_") if site.kind == "embedding" else name

    @override
    def change(self, w: Tensor, p: Any) -> Tensor:
        """Returns W ⊙ (A B)."""
        return w * ops.matmul(p.hira_A, p.hira_B)
