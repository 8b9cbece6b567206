"""LayerNorm tuning."""

import re
from typing import Any

import keras
from typing_extensions import override

from kopt.peft.adapter import Adapter
from kopt.peft.layers import Site, original_class

_OTHERS = ("RoformerNorm", "Qwen3_5RMSNormGated", "RmsNorm2d")
"""Layers of KerasHub that divide by the root mean square, under other names."""


class LayerNormTuning(Adapter):
    """LayerNorm tuning: trains the scales and shifts of layer normalizations and nothing else.

    Weights: copies of gamma and beta. Those of the base stay as they are.

    Args:
        target_modules: the normalizations to train; None is every `LayerNormalization` and `RMSNormalization`.

    Reference: Zhao et al., 2023, arXiv:2312.11420.
    """

    peft_type = "LN_TUNING"
    in_peft = True
    takes = (
        "LayerNormalization, RMSNormalization and KerasHub's forms of these: other normalizations keep statistics of "
        "batches or are part of another method; to train one whole, name it in modules_to_save"
    )

    @override
    def can_host(self, layer: Any, site: Site | None) -> bool:
        """Returns whether the layer is a layer normalization, whatever library it is from."""
        kinds = (keras.layers.LayerNormalization, keras.layers.RMSNormalization)
        name = original_class(layer).__name__
        return (
            isinstance(layer, kinds) or re.search(r"(Layer|RMS)Norm(alization)?$", name) is not None or name in _OTHERS
        )

    @override
    def trains(self, name: str, targeted: bool) -> bool:
        return targeted
