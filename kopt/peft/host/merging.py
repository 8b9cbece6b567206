"""What the own variables of a host are with adapters in them."""

from collections.abc import Collection, Mapping
from typing import Any

import keras
import numpy as np
from keras import ops

from kopt.peft.adapter import Adapter, Array
from kopt.peft.layers import Tensor


def merged_values(layer: Any, scales: Mapping[str, float]) -> dict[str, Array]:
    """Returns the own variables of the host of an `AdapterLayer` that adapters change, by attribute.

    Args:
        layer: the `AdapterLayer`.
        scales: adapters that are there, each with its scale.
    """
    new = dict[str, Array]()
    for name in scales:
        for attr, copy in layer.copies[name].items():
            own = new.get(attr, as_float32(layer.owned[attr]))
            new[attr] = np.asarray(between(own, as_float32(copy), np.float32(scales[name])))
    site, bias = layer.site, layer.owned.get("bias")
    for name in [n for n in layer.chain() if n in scales]:
        assert site is not None
        adapter, p = layer.adapters[name], layer.parameters(name, ops.convert_to_tensor(scales[name], "float32"))
        beneath = ops.convert_to_tensor(site.matrix(new.get(site.attr, as_float32(site.variable))))
        changed = ops.convert_to_numpy(adapter.effective(beneath, p))
        if bias is not None and type(adapter).effective_bias is not Adapter.effective_bias:
            flat = site.vector(ops.convert_to_tensor(new.get("bias", as_float32(bias))))
            new["bias"] = site.bias(ops.convert_to_numpy(adapter.effective_bias(flat, p)), bias.shape)
        new[site.attr] = site.kernel(changed)
    return new


def changes_order(layer: Any, merged: Collection[str], live: Collection[str]) -> bool:
    """Returns whether `live` adapters on top of `merged` ones are not what all of them are in their order."""
    for name in merged:
        for other in live:
            if name not in layer.adapters or other not in layer.adapters:
                continue
            if layer.copies[other].keys() & _changed_by(layer, name):
                return True
            chain = [n for n in layer.chain() if n in (name, other)]
            if chain == [other, name] and not (layer.adapters[name].additive and layer.adapters[other].additive):
                return True
    return False


def _changed_by(layer: Any, name: str) -> set[str]:
    kernel = {layer.site.attr, "bias"} if layer.site is not None and layer.weights_of[name] else set[str]()
    return kernel | layer.copies[name].keys()


def between(own: Any, copy: Any, scale: Any) -> Tensor:
    """Returns own + scale (copy - own), exact at the scales 0 and 1."""
    change = ops.cast(scale, keras.backend.standardize_dtype(own.dtype)) * (copy - own)
    return ops.where(scale == 1, copy, ops.where(scale == 0, own, own + change))


def as_float32(variable: keras.Variable) -> Array:
    """Returns the value of a variable as float32."""
    return np.asarray(ops.convert_to_numpy(ops.cast(variable.value, "float32")))
