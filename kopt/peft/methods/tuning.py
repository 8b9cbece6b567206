"""Methods that train own variables of the model, as copies: BitFit and LayerNorm tuning."""

from typing import Any

import keras

from kopt.peft.adapter import Adapter, is_bias
from kopt.peft.layers.site import Site


class BitFit(Adapter):
    """BitFit: trains the biases, and the shifts of normalizations, and nothing else.

    Weights: a copy of each bias. The biases of the base stay as they are.

    Args:
        target_modules: the layers whose biases are trained; None is all.

    Reference: Ben Zaken et al., 2021, arXiv:2106.10199.
    """

    peft_type = "BITFIT"

    def can_host(self, layer: Any, site: Site | None) -> bool:
        """Returns True: a layer without a bias has nothing to train, and that is no error."""
        return True

    def trains(self, name: str, targeted: bool) -> bool:
        """Returns whether it is the bias of a target."""
        return targeted and is_bias(name)


class LayerNormTuning(Adapter):
    """LayerNorm tuning: trains the scales and shifts of layer normalizations and nothing else.

    Weights: copies of gamma and beta. Those of the base stay as they are.

    Args:
        target_modules: the normalizations to train; None is every `LayerNormalization` and `RMSNormalization`.

    Reference: Zhao et al., 2023, arXiv:2312.11420.
    """

    peft_type = "LN_TUNING"

    def can_host(self, layer: Any, site: Site | None) -> bool:
        """Returns whether the layer is a normalization."""
        kinds = (keras.layers.LayerNormalization, keras.layers.RMSNormalization)
        return isinstance(layer, kinds) or type(layer).__name__.endswith(("LayerNorm", "RMSNorm", "Normalization"))

    def trains(self, name: str, targeted: bool) -> bool:
        """Returns whether it belongs to a target."""
        return targeted
