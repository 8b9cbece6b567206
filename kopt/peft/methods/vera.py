"""VeRA."""

import math
from typing import Any

from keras import ops
from typing_extensions import override

from kopt.declare import Fraction
from kopt.peft.adapter import Base, Length, Weight, constant, normal, zeros
from kopt.peft.layers import Site, Tensor
from kopt.peft.methods.projections import Projected, drawn


class VeRA(Projected):
    r"""VeRA: LoRA with random factors that all layers share, and two learned vectors.

        W' = W + A diag(d) B diag(b)          of A and B each layer takes the first rows and columns that it needs

    Weights: d [r], b [out]: r + out parameters; A [largest in, r], B [r, largest out], once for all layers and never
    trained. At the start b = 0, so that W' = W.

    Args:
        r: 1 to 65,536, rank of the change.
        projection_prng_key: seed of A and B, which are those that torch draws from it.
        save_projection: whether files hold A and B, as peft has it by default. Without, they are drawn again.
        vera_dropout: in [0, 1), share of the inputs that the change does not see while training.
        d_initial: where d starts.
        init_weights: False draws d from N(0, 1) and starts b at 1, which is not the identity.
        bias: "none"; peft trains biases too, which kopt does with LoRA and BitFit.

    Reference: Kopiczko, Blankevoort and Asano, 2023, arXiv:2310.11454.
    """

    peft_type = "VERA"
    in_peft = True

    r: Length = 256
    save_projection: bool = True
    vera_dropout: Fraction = 0.0
    d_initial: float = 0.1

    @override
    def weights(self, site: Site) -> dict[str, Weight]:
        fan_in, fan_out = self.extent(site)
        shapes = ((self.r, fan_in), (fan_out, self.r))
        bounds = [math.sqrt(6 / shape[1]) for shape in shapes]  # He's, as torch has it
        common: dict[str, Any] = {"trainable": False, "in_files": self.save_projection, "shared": True}
        d, b = (constant(self.d_initial), zeros) if self.init_weights else (normal(1.0), constant(1.0))
        return {
            "vera_A": Weight((fan_in, self.r), drawn(self.projection_prng_key, shapes, bounds, 0), **common),
            "vera_B": Weight((self.r, fan_out), drawn(self.projection_prng_key, shapes, bounds, 1), **common),
            "vera_lambda_d": Weight((self.r,), d),
            "vera_lambda_b": Weight(("out",), b),
        }

    @staticmethod
    def _factors(p: Any, fan_in: int, fan_out: int) -> tuple[Tensor, Tensor]:
        return p.vera_A[:fan_in] * p.vera_lambda_d, p.vera_B[:, :fan_out] * p.vera_lambda_b

    @override
    def change(self, w: Tensor, p: Any) -> Tensor:
        """Returns A diag(d) B diag(b)."""
        return ops.matmul(*self._factors(p, w.shape[-2], w.shape[-1]))

    @override
    def forward(self, x: Tensor, base: Base, p: Any) -> Tensor:
        """Returns x W + ((x A diag(d)) B) diag(b)."""
        return base(x) + self.added(x, base, p)

    @override
    def added(self, x: Tensor, base: Base, p: Any) -> Tensor:
        a, b = self._factors(p, base.site.fan_in, base.site.fan_out)
        return base.site.low_rank(p.dropout(x), a, b, p.gate)
