"""LayerNorm tuning."""

from typing import Any

import keras
from typing_extensions import override

from kopt.peft.adapter import Adapter
from kopt.peft.layers import Site


class LayerNormTuning(Adapter):
    """LayerNorm tuning: trains the scales and shifts of layer normalizations and nothing else.

    Weights: copies of gamma and beta. Those of the base stay as they are.

    Args:
        target_modules: the normalizations to train; None is every `LayerNormalization` and `RMSNormalization`.

    Reference: Zhao et al., 2023, arXiv:2312.11420.
    """

    peft_type = "LN_TUNING"
    in_peft = True

    @override
    def can_host(self, layer: Any, site: Site | None) -> bool:
        """Returns whether the layer is a normalization."""
        kinds = (keras.layers.LayerNormalization, keras.layers.RMSNormalization)
        return isinstance(layer, kinds) or type(layer).__name__.endswith(("LayerNorm", "RMSNorm", "Normalization"))

    @override
    def trains(self, name: str, targeted: bool) -> bool:
        return targeted
