"""AdaLoRA."""

import functools
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self

import numpy as np
from keras import ops
from typing_extensions import override

from kopt.declare import Count, Fraction, NonNegative, OpenFraction, Range
from kopt.peft.adapter import Adapter, Array, Base, Length, Scale, Weight, is_bias, normal, zeros
from kopt.peft.layers import Site, Tensor

FACTORS = ("lora_A", "lora_E", "lora_B")
Steps = Annotated[int, Range(0)]


class AdaLoRA(Adapter):
    r"""AdaLoRA: a change in the form of singular values, of which training keeps those that matter.

        W' = W + s A diag(e) B          s = α / (init_r + 10⁻⁵)

        loss + γ mean (‖Aᵀ A - I‖ + ‖B Bᵀ - I‖) / 2          over all kernels

    Weights: A [in, init_r], e [init_r], B [init_r, out]: init_r (in + out + 1) parameters. At the start e = 0, so that
    W' = W. Beside each of them stands its last gradient, which no file has.

    `fit` takes the callback `AllocateRanks`, which sets those e to 0 that matter least, until `target_r` are left for
    a kernel on average. Without it all are kept.

    Args:
        target_r: 1 to 65,536, mean rank at the end.
        init_r: 1 to 65,536, rank of each kernel at the start.
        tinit: ≥ 0, steps before the first e is set to 0.
        tfinal: ≥ 0, steps at the end in which those that are left stay the same.
        deltaT: ≥ 1, steps from one choice to the next in between.
        beta1: in (0, 1), how slowly the importance of a weight follows that in one step.
        beta2: in (0, 1), the same for its uncertainty.
        orth_reg_weight: γ ≥ 0.
        total_step: ≥ 1, steps that training will make.
        lora_alpha: α, 1e-6 to 1e6.
        lora_dropout: in [0, 1), share of the inputs that A does not see while training.
        bias: which biases are trained too: see `LoRA`.
        init_lora_weights: False draws e, too, which is not the identity.

    Reference: Zhang et al., 2023, arXiv:2303.10512.
    """

    peft_type = "ADALORA"
    in_peft = True
    additive = True
    kinds = ("einsum", "convolution", "opaque")
    only_in_files = ("r", "rank_pattern")
    selects = (*Adapter.selects, "bias", "init_lora_weights")
    default_targets = ("query", "value")

    target_r: Length = 8
    init_r: Length = 12
    tinit: Steps = 0
    tfinal: Steps = 0
    deltaT: Count = 1  # noqa: N815 - as in peft
    beta1: OpenFraction = 0.85
    beta2: OpenFraction = 0.85
    orth_reg_weight: NonNegative = 0.5
    total_step: Count = 1000
    lora_alpha: Scale = 8.0
    lora_dropout: Fraction = 0.0
    bias: Literal["none", "all", "lora_only"] = "none"
    init_lora_weights: bool = True

    kernels = 1
    """How many kernels have the adapter."""

    def __post_init__(self) -> None:
        if self.target_r > self.init_r or self.tinit >= self.total_step - self.tfinal:
            raise ValueError(
                "AdaLoRA takes target_r ≤ init_r, and tinit + tfinal < total_step. Received: "
                f"target_r={self.target_r}, init_r={self.init_r}, tinit={self.tinit}, tfinal={self.tfinal}, "
                f"total_step={self.total_step}"
            )

    @property
    def scaling(self) -> float:
        """The factor s."""
        return self.lora_alpha / (self.init_r + 1e-5)

    @property
    def dropout(self) -> float:
        """`lora_dropout`, under the name that hosts look for."""
        return self.lora_dropout

    @override
    def among(self, sites: Sequence[Site]) -> Self:
        local = type(self)(**self.get_config())
        local.kernels = max(len(sites), 1)
        return local

    @override
    def weights(self, site: Site) -> dict[str, Weight]:
        spread = normal(0.02 if self.init_lora_weights else 1.0)
        along, across = (functools.partial(_distance, self._share, turned) for turned in (True, False))
        factors = {
            "lora_A": Weight(("in", self.init_r), spread, flat=True, penalty=along),
            "lora_E": Weight((1, self.init_r), zeros if self.init_lora_weights else spread),
            "lora_B": Weight((self.init_r, "out"), spread, flat=True, penalty=across),
        }
        return factors | {f"{k}_gradient": Weight(v.axes, overwritten=True) for k, v in factors.items()}

    @property
    def _share(self) -> float:
        return self.orth_reg_weight / (2 * self.kernels)

    def pull(self, factor: str, w: Array) -> Array | float:
        """Returns the gradient of what the loss has of a factor alone, which its noted gradient lacks."""
        if factor == "lora_E":
            return 0.0
        off = (w.mT @ w if factor == "lora_A" else w @ w.mT) - np.eye(self.init_r, dtype=w.dtype)
        length = np.maximum(np.linalg.norm(off, axis=(-2, -1), keepdims=True), 1e-12)
        pull: Array = 2 * self._share * (w @ off if factor == "lora_A" else off @ w) / length
        return pull

    @staticmethod
    def _factors(p: Any) -> tuple[Tensor, Tensor]:
        a, e, b = (_noted(getattr(p, name), getattr(p, f"{name}_gradient")) for name in FACTORS)
        return a * e, b

    @override
    def effective(self, w: Tensor, p: Any) -> Tensor:
        """Returns W + s A diag(e) B."""
        return w + p.gate * self.scaling * ops.matmul(*self._factors(p))

    @override
    def added(self, x: Tensor, base: Base, p: Any) -> Tensor:
        return base.site.low_rank(p.dropout(x), *self._factors(p), p.gate * self.scaling)

    @override
    def forward(self, x: Tensor, base: Base, p: Any) -> Tensor:
        """Returns x W + s (x A diag(e)) B."""
        return base(x) + self.added(x, base, p)

    @override
    def trains(self, name: str, targeted: bool) -> bool:
        return is_bias(name) and (self.bias == "all" or (self.bias == "lora_only" and targeted))

    @classmethod
    @override
    def unfold(
        cls, config: Mapping[str, Any], tensors: Mapping[str, Array]
    ) -> tuple[Mapping[str, Any], Mapping[str, Array]]:
        """Gives the factors of peft's files, which leave out what is not kept, `init_r` ranks again."""
        whole = dict(tensors)
        for name, kept in (config.get("rank_pattern") or {}).items():
            size = config.get("init_r", cls.fields["init_r"].default)
            for factor in FACTORS:
                key, axis = f"base_model.model.{name.removesuffix('.lora_E')}.{factor}", int(factor == "lora_B")
                if not isinstance(kept, list) or len(kept) != size or not all(type(flag) is bool for flag in kept):
                    raise ValueError(f"rank_pattern must say of {size} ranks whether they are kept. Received: {name}")
                if key not in tensors or tensors[key].ndim != 2 or tensors[key].shape[axis] != sum(kept):
                    raise ValueError(
                        f"rank_pattern keeps {sum(kept)} ranks of {name}, but {key} is another or missing."
                    )
                rows = np.moveaxis(tensors[key], axis, 0)
                full = np.zeros((size, *rows.shape[1:]), rows.dtype)
                full[np.flatnonzero(kept)] = rows
                whole[key] = np.ascontiguousarray(np.moveaxis(full, 0, axis))
        return {key: value for key, value in config.items() if key not in cls.only_in_files}, whole


@ops.custom_gradient
def _noted(weight: Tensor, note: Tensor) -> Any:
    """Returns a weight; the gradient that it gets, its note gets too."""

    def gradient(*args: Tensor, upstream: Tensor | None = None) -> tuple[Tensor, Tensor]:
        g = args[0] if upstream is None else upstream
        return g, g

    return weight * 1.0, gradient


def _distance(share: float, turned: bool, weight: Any) -> Tensor:
    """Returns `share` times the distance of Wᵀ W, where it is turned, or W Wᵀ from the unit matrix."""
    w = ops.convert_to_tensor(weight)
    gram = ops.matmul(ops.swapaxes(w, -1, -2), w) if turned else ops.matmul(w, ops.swapaxes(w, -1, -2))
    squares = ops.sum(ops.square(gram - ops.eye(gram.shape[-1], dtype=w.dtype)), axis=(-2, -1))
    return share * ops.sum(ops.sqrt(ops.maximum(squares, 1e-24)))
