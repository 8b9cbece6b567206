"""RoAd."""

from typing import Any, Literal

import numpy as np
from keras import ops
from typing_extensions import override

from kopt.declare import Count
from kopt.peft.adapter import Adapter, Base, Weight, normal, ones, zeros
from kopt.peft.layers import Site, Tensor


class RoAd(Adapter):
    r"""RoAd: the outputs are turned and stretched in pairs.

        y = x W + b,    y'ᵢ = α cos θ yᵢ - α sin θ yⱼ,    y'ⱼ = α sin θ yᵢ + α cos θ yⱼ

    In each group of g outputs, those of the first half have partners in the second.

    Weights: θ and α, each [out / 2]. "road_2" has one pair (α, θ) for each row of the turns, [out], "road_4" one for
    each of their elements, [2 out]. At the start θ = 0 and α = 1, so that y' = y.

    Args:
        variant: "road_1", "road_2" or "road_4".
        group_size: g, an even number that divides the outputs.
        init_weights: False draws θ and α, which is not the identity.

    Reference: Liao and Monz, 2024, arXiv:2409.00119.
    """

    peft_type = "ROAD"
    in_peft = True
    ordered = True
    batched = False
    selects = (*Adapter.selects, "init_weights")
    kinds = ("einsum",)
    default_targets = ("query", "value")
    takes = "dense layers whose outputs are their last axes"

    variant: Literal["road_1", "road_2", "road_4"] = "road_1"
    group_size: Count = 64
    init_weights: bool = True

    def __post_init__(self) -> None:
        if self.group_size % 2:
            raise ValueError(f"RoAd: group_size must be even. Received: group_size={self.group_size}")

    @override
    def can_host(self, layer: Any, site: Site | None) -> bool:
        return super().can_host(layer, site) and site is not None and site.maps_last_axes

    @override
    def check_fit(self, site: Site) -> None:
        if site.fan_out % self.group_size:
            raise ValueError(
                f"RoAd: group_size must divide the number of outputs. Received: group_size={self.group_size} for a "
                f"kernel [{site.fan_in}, {site.fan_out}]"
            )

    @override
    def weights(self, site: Site) -> dict[str, Weight]:
        size = site.fan_out * {"road_1": 1, "road_2": 2, "road_4": 4}[self.variant] // 2
        angle, factor = (zeros, ones) if self.init_weights else (normal(0.5), normal(0.5))
        return {"road_theta": Weight((size,), angle), "road_alpha": Weight((size,), factor)}

    def _turned(self, y: Tensor, p: Any) -> Tensor:
        """Returns y' for y, [..., out]."""
        half, out = self.group_size // 2, y.shape[-1]
        groups = np.arange(out).reshape(-1, 2, half)
        own = other = np.arange(out)  # places of the factors of yᵢ and of yⱼ
        if self.variant == "road_1":
            own = other = np.repeat(np.arange(out // 2).reshape(-1, 1, half), 2, axis=1).ravel()
        elif self.variant == "road_4":
            own, other = np.arange(2 * out).reshape(-1, 2, self.group_size).transpose(1, 0, 2).reshape(2, out)
        cosine = ops.take(p.road_alpha, own) * ops.cos(ops.take(p.road_theta, own))
        sine = ops.take(p.road_alpha, other) * ops.sin(ops.take(p.road_theta, other))
        signs = np.tile(np.repeat([-1.0, 1.0], half), out // self.group_size)
        first, second = 1 + p.gate * (cosine - 1), p.gate * signs * sine
        partners = ops.take(y, groups[:, ::-1].ravel(), axis=-1)
        return y * ops.cast(first, y.dtype) + partners * ops.cast(second, y.dtype)

    @override
    def effective(self, w: Tensor, p: Any) -> Tensor:
        """Returns the kernel, whose rows are turned as the outputs are."""
        return self._turned(w, p)

    @property
    @override
    def changes_bias(self) -> bool:
        """Whether `effective_bias` gives another bias: always."""
        return True

    @override
    def effective_bias(self, b: Tensor, p: Any) -> Tensor:
        """Returns the bias, turned as the outputs are."""
        return self._turned(b, p)

    @override
    def forward(self, x: Tensor, base: Base, p: Any) -> Tensor:
        """Returns y'."""
        y = base(x)
        turned = self._turned(ops.reshape(y, (-1, base.site.fan_out)), p)
        return ops.reshape(turned, ops.shape(y))
