"""Bottleneck adapters: Houlsby's, Pfeiffer's, and parallel ones."""

import math
from typing import Annotated, Any, ClassVar

import keras
from keras import ops
from typing_extensions import override

from kopt.declare import Convert, Range
from kopt.peft.adapter import Adapter, Base, Scale, Weight, uniform
from kopt.peft.layers import Site, Tensor


def _non_linearity(value: Any) -> str:
    known = isinstance(value, str)  # Keras would make an object of anything else that a file holds
    try:
        known = known and keras.activations.get(value) is not None
    except ValueError:
        known = False
    if not known:
        raise ValueError("the name of a Keras activation")
    return str(value)


class Bottleneck(Adapter):
    r"""A small two-layer network beside or behind a host.

        y = h + s f(z D + d) U + u        h the host's output before its activation
                                          z = h, or z = the host's input if `parallel`

    Weights: D [out, m], d [m], U [m, out], u [out], with m = width / `reduction_factor`: 2 out m + m + out parameters.
    At the start U = u = 0, so that y = h. It has no kernel of its own to be merged into.

    Args:
        reduction_factor: ≥ 1; m is the host's output width over it, rounded down, at least 1.
        non_linearity: f, the name of a Keras activation.
        scaling: s, 1e-6 to 1e6.
        parallel: whether it takes the host's input instead of its output.

    Reference: Houlsby et al., 2019, arXiv:1902.00751; He et al., 2022, arXiv:2110.04366.
    """

    peft_type = "BOTTLENECK"
    mergeable = False
    kinds = ("einsum",)
    default_targets: ClassVar[tuple[str, ...]] = ("attention_output", "feedforward_output_dense")

    reduction_factor: Annotated[float, Range(1)] = 16.0
    non_linearity: Annotated[Any, Convert(_non_linearity)] = "relu"
    scaling: Scale = 1.0
    parallel: bool = False

    @override
    def can_host(self, layer: Any, site: Site | None) -> bool:
        """Returns whether the layer maps the last axis, or the last axes, of its input."""
        return super().can_host(layer, site) and not site.batch and site.maps_last_axes  # type: ignore[union-attr]

    @override
    def weights(self, site: Site) -> dict[str, Weight]:
        width: int | str = "in" if self.parallel else "out"
        m = max(1, int(site.fan_out / self.reduction_factor))
        return {
            "adapter_down": Weight((width, m), uniform(1 / math.sqrt(site.size(width)))),
            "adapter_down_bias": Weight((m,)),
            "adapter_up": Weight((m, "out")),
            "adapter_up_bias": Weight(("out",)),
        }

    @override
    def forward(self, x: Tensor, base: Base, p: Any) -> Tensor:
        """Returns h + s f(z D + d) U + u."""
        y = base(x)
        z = x if self.parallel else y
        z = ops.reshape(z, (-1, p.adapter_down.shape[0]))
        inner = keras.activations.get(self.non_linearity)(
            ops.matmul(z, ops.cast(p.adapter_down, y.dtype)) + ops.cast(p.adapter_down_bias, y.dtype)
        )
        up, shift = p.gate * self.scaling * p.adapter_up, p.gate * p.adapter_up_bias
        change = ops.matmul(inner, ops.cast(up, y.dtype)) + ops.cast(shift, y.dtype)
        return y + ops.reshape(change, ops.shape(y))


class Houlsby(Bottleneck):
    """Bottleneck adapters behind the attention and behind the feed-forward block.

    Arguments and equations are those of `Bottleneck`.

    Reference: Houlsby et al., 2019, arXiv:1902.00751.
    """


class Pfeiffer(Bottleneck):
    """Bottleneck adapters behind the feed-forward block only.

    Arguments and equations are those of `Bottleneck`.

    Reference: Pfeiffer et al., 2020, arXiv:2005.00247.
    """

    default_targets = ("feedforward_output_dense",)


class ParallelAdapter(Bottleneck):
    """Bottleneck adapters beside the host instead of behind it.

    Arguments and equations are those of `Bottleneck`, with `parallel` on and `scaling` 4 as in the paper.

    Differs from the paper: it stands beside one layer, not beside a whole feed-forward block.
    Reference: He et al., 2022, arXiv:2110.04366.
    """

    scaling: Scale = 4.0
    parallel: bool = True
