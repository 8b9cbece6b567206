"""(IA)³."""

from typing import Annotated, Any, Self

from keras import ops
from typing_extensions import override

from kopt.declare import Convert
from kopt.peft import targets
from kopt.peft.adapter import Adapter, Base, Weight, ones
from kopt.peft.layers import Site, Tensor


class IA3(Adapter):
    r"""(IA)³: learned factors on activations.

        y = l ⊙ (x W + b)        or, for a feed-forward module,        y = (l ⊙ x) W + b

    Weights: l [1, out] or [channels of the input, 1]: as many parameters as activations. At the start l = 1.

    Args:
        feedforward_modules: which of the targets scale their input, as `target_modules`. When no target is named, it is
            the last layer of each feed-forward block, whose input is the block's inner activation.

    Reference: Liu et al., 2022, arXiv:2205.05638.
    """

    peft_type = "IA3"
    in_peft = True
    selects = (*Adapter.selects, "feedforward_modules")
    kinds = ("einsum", "convolution", "embedding")
    default_targets = ("key", "value", "feedforward_output_dense")

    feedforward_modules: Annotated[Any, Convert(targets.parse_names)] = None

    scales_input = False
    """Whether this is the method at a feed-forward module."""

    @override
    def at(self, path: str) -> Self:
        named = self.feedforward_modules is not None or self.target_modules is not None
        spec = self.feedforward_modules if named else ["feedforward_output_dense"]
        local = type(self)(**self.get_config())
        local.scales_input = targets.matches(spec, path)
        return local

    @override
    def can_host(self, layer: Any, site: Site | None) -> bool:
        """Returns whether the layer's input, or its output, has channels to scale."""
        channels = site is not None and (site.kind == "einsum" or getattr(layer, "groups", 0) == 1)
        return super().can_host(layer, site) and (channels or not self.scales_input)

    @override
    def weights(self, site: Site) -> dict[str, Weight]:
        return {"ia3_l": Weight(("channel", 1) if self.scales_input else (1, "out"), ones, rest=1.0)}

    def _factors(self, p: Any) -> Tensor:
        return 1 + p.gate * (p.ia3_l - 1)

    @override
    def effective(self, w: Tensor, p: Any) -> Tensor:
        """Returns W with scaled rows or columns."""
        factors = self._factors(p)
        if self.scales_input:  # the kernel of a convolution has the channels once for each position
            factors = ops.concatenate([factors] * (w.shape[-2] // factors.shape[-2]), axis=-2)
        return w * factors

    @property
    @override
    def changes_bias(self) -> bool:
        """Whether the output is scaled."""
        return not self.scales_input

    @override
    def effective_bias(self, b: Tensor, p: Any) -> Tensor:
        """Returns the bias, scaled as the output is."""
        return b * ops.squeeze(self._factors(p), -2)

    @override
    def forward(self, x: Tensor, base: Base, p: Any) -> Tensor:
        """Scales the input or the output."""
        factors = self._factors(p)
        if self.scales_input:
            return base(x * base.site.along_input(ops.squeeze(factors, -1), x))
        y = base(x)
        return y * base.site.along_output(ops.squeeze(factors, -2), y)
