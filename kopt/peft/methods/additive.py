"""The base of methods that add to the kernel."""

from typing import Any

from typing_extensions import override

from kopt.peft.adapter import Adapter, Base
from kopt.peft.layers import Tensor


class Additive(Adapter):
    """W' = W + Δ: what the methods share that add a change Δ to the kernel."""

    selects = (*Adapter.selects, "init_weights")
    default_targets = ("query", "value")

    init_weights: bool | str = True

    def change(self, w: Tensor, p: Any) -> Tensor:
        """Returns Δ, [*batch, in, out], at the kernel w."""
        raise NotImplementedError(f"{type(self).__name__} defines no change")

    @override
    def effective(self, w: Tensor, p: Any) -> Tensor:
        """Returns W + Δ."""
        return w + p.gate * self.change(w, p)

    @override
    def forward(self, x: Tensor, base: Base, p: Any) -> Tensor:
        """Returns x (W + Δ); with dropout x W and, of the x that is left, x Δ."""
        dropped = x if base.site.kind == "embedding" else p.dropout(x)
        if dropped is x:
            return super().forward(x, base, p)
        return base(x) + base.linear(dropped, p.gate * self.change(base.kernel(), p))
