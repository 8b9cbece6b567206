"""DoRA."""

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
from keras import ops
from typing_extensions import override

from kopt.peft.adapter import Array, Base, Weight
from kopt.peft.layers import Site, Tensor
from kopt.peft.methods.lora import LoRA


class DoRA(LoRA):
    r"""DoRA: LoRA on the direction of each output's weights, and their length learned apart.

        W' = m (W + s A B) / ‖W + s A B‖          ‖·‖ over the inputs of each output

    Weights: A [in, r], B [r, out], m [out]. At the start m = ‖W + s A B‖. The norm passes no gradient.
    The arguments are those of `LoRA`.

    Reference: Liu et al., 2024, arXiv:2402.09353.
    """

    fixed: ClassVar[dict[str, Any]] = {"use_dora": True}
    additive = False

    @override
    def weights(self, site: Site) -> dict[str, Weight]:
        return super().weights(site) | {"lora_magnitude_vector": Weight(("out",))}

    @override
    def start(self, values: dict[str, Array], kernel: Callable[[], Array], rng: np.random.Generator) -> None:
        """Sets m to the norms."""
        super().start(values, kernel, rng)
        w = kernel().astype(np.float32)
        change = values["lora_A"] @ values["lora_B"]
        if self._starts_elsewhere:
            change = change - values["start_A"] @ values["start_B"]
        values["lora_magnitude_vector"] = np.linalg.norm(w + self.scaling * change, axis=-2)

    def _scale(self, w: Tensor, p: Any) -> Tensor:
        """Returns m / ‖W + s A B‖, [*batch, out]; 1 while the adapter is off."""
        squares = ops.square(ops.stop_gradient(w + self.change(p)))
        norm = ops.sqrt(ops.sum(squares, axis=len(squares.shape) - 2))  # LiteRT's converter errs where it is below 0
        return 1 + p.gate * (p.lora_magnitude_vector / norm - 1)

    @override
    def effective(self, w: Tensor, p: Any) -> Tensor:
        """Returns m (W + s A B) / ‖W + s A B‖."""
        return ops.expand_dims(self._scale(w, p), -2) * (w + self.change(p))

    @override
    def added(self, x: Tensor, base: Base, p: Any) -> Tensor:
        """Returns x W' - x W."""
        return self.forward(x, base, p) - base(x)

    @override
    def forward(self, x: Tensor, base: Base, p: Any) -> Tensor:
        """Returns x W' as g (x W + s (x A) B) with g = m / ‖W + s A B‖; the bias is not scaled."""
        y, site = base(x), base.site
        bias = base.bias()
        g = site.along_output(self._scale(base.kernel(), p), y)
        dropped = self.dropped(x, site, p)
        plain = y if dropped is x else base(dropped)
        plain = plain if bias is None else plain - site.along_output(bias, y)
        return y + (g - 1) * plain + g * self.low_rank(dropped, site, p)
