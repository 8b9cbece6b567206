"""BitFit."""

from typing import Any

from typing_extensions import override

from kopt.peft.adapter import Adapter, is_bias
from kopt.peft.layers import Site


class BitFit(Adapter):
    """BitFit: trains the biases, and the shifts of normalizations, and nothing else.

    Weights: a copy of each bias. The biases of the base stay as they are.

    Args:
        target_modules: the layers whose biases are trained; None is all.

    Reference: Ben Zaken et al., 2021, arXiv:2106.10199.
    """

    peft_type = "BITFIT"

    @override
    def can_host(self, layer: Any, site: Site | None) -> bool:
        """Returns True: a layer without a bias has nothing to train, but may be a target."""
        return True

    @override
    def trains(self, name: str, targeted: bool) -> bool:
        """Returns whether the variable is the bias of a target."""
        return targeted and is_bias(name)
