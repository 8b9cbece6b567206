"""RandLoRA."""

import math
from typing import Any, Literal

import numpy as np
from keras import ops
from typing_extensions import override

from kopt.declare import Fraction
from kopt.peft.adapter import Array, Initializer, Length, Scale, Weight, constant, normal, zeros
from kopt.peft.layers import Site, Tensor
from kopt.peft.methods.projections import Projected


class RandLoRA(Projected):
    r"""RandLoRA: a sum of random low-rank matrices that all layers share, each scaled on both sides, of full rank.

        W' = W + α/r Σₖ B[:, k] diag(λₖ) A diag(γₖ)          transposed where in < out; k = 1 ... ⌈min(in, out) / r⌉

    Weights: λ [k, r], γ [k, min(in, out)]; A and B once for all layers and never trained. At the start λ = 0, so that
    W' = W.

    Args:
        r: 1 to 65,536, rank of each term; the smaller, the more terms and parameters.
        projection_prng_key: seed of A and B.
        save_projection: True: files hold A and B, for torch draws others on other machines.
        sparse: whether two thirds of A and B are 0 and the rest of one size.
        very_sparse: whether all but a share of 1/√min(in, out) are 0.
        randlora_dropout: in [0, 1), share of the inputs that the change does not see while training.
        randlora_alpha: α, 1e-6 to 1e6.
        init_weights: False draws λ, which is not the identity.
        bias: "none"; peft trains biases too, which kopt does with LoRA and BitFit.

    Reference: Albert et al., 2025, arXiv:2502.00987.
    """

    peft_type = "RANDLORA"
    in_peft = True

    r: Length = 32
    save_projection: Literal[True] = True
    sparse: bool = False
    very_sparse: bool = False
    randlora_dropout: Fraction = 0.0
    randlora_alpha: Scale = 640.0

    @override
    def weights(self, site: Site) -> dict[str, Weight]:
        (small, large), (widest, longest) = sorted((site.fan_in, site.fan_out)), sorted(self.extent(site))
        terms = -(-small // self.r)
        scale, start = 1 / max(terms, small), zeros if self.init_weights else normal(1.0)
        common: dict[str, Any] = {"trainable": False, "in_files": True, "shared": True}
        return {
            "randlora_lambda": Weight((terms, self.r), start),
            "randlora_gamma": Weight((small, terms), constant(scale if self.init_weights else 1 / large)),
            "randlora_A": Weight((widest, 1, self.r), self._base(widest), **common),
            "randlora_B": Weight((self.r, -(-widest // self.r), longest), self._base(widest), **common),
        }

    def _base(self, smallest: int) -> Initializer:
        """Returns an initializer of one standard deviation, of sparse numbers if that is asked for."""

        def initializer(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
            own = np.random.default_rng((self.projection_prng_key, len(shape), *shape))
            values = own.uniform(-1, 1, shape)
            if self.sparse or self.very_sparse:
                limit = 1 - 1 / (math.sqrt(smallest) if self.very_sparse else 3)
                values = np.sign(values) * (np.abs(values) > limit)
            return np.asarray(values / max(values.std(ddof=1), 1e-6))

        return initializer

    @override
    def change(self, w: Tensor, p: Any) -> Tensor:
        """Returns α/r times the sum."""
        terms, small, large = p.randlora_lambda.shape[0], min(w.shape), max(w.shape)
        a = ops.transpose(p.randlora_A[:small]) * ops.expand_dims(ops.transpose(p.randlora_lambda), -1)  # [r, 1, small]
        scaled = ops.reshape(a * ops.transpose(p.randlora_gamma), (-1, small))
        b = ops.reshape(ops.transpose(p.randlora_B[:, :terms, :large]), (large, -1))
        product = ops.matmul(b, scaled) * (self.randlora_alpha / self.r)  # [large, small]
        return ops.transpose(product) if w.shape[0] == small else product
