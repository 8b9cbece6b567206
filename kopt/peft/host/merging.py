"""What the own variables of a host are with adapters in them."""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from keras import ops

from kopt.peft.adapter import Array
from kopt.peft.host.host_tensors import as_float32, between, bits_of, put_bits, value_of_bits


def merge_host(layer: Any, scales: Mapping[str, float], keep: bool = True) -> None:
    """Writes what adapters make of the own variables of the host of an `AdapterLayer` into them.

    Args:
        layer: the `AdapterLayer`.
        scales: the adapters, each with its scale; those that are not there are left out.
        keep: whether what is replaced is kept for `unmerge_host`.
    """
    scales = {name: scale for name, scale in scales.items() if name in layer.adapters}
    new = merged_values(layer, scales)
    if keep:
        layer.replaced.update({attr: bits_of(layer.stored(attr)) for attr in new})
    layer.merged.update(scales)
    for attr, value in new.items():
        layer.stored(attr).assign(value)


def unmerge_host(layer: Any) -> None:
    """Undoes all merging into the host of an `AdapterLayer`, bit for bit."""
    for attr, bits in layer.replaced.items():
        put_bits(layer.stored(attr), bits)
    layer.replaced.clear()
    layer.merged.clear()


def base_value(layer: Any, attr: str) -> Array:
    """Returns the host's own value of a variable, also while adapters are merged into it, as float32."""
    stored = layer.stored(attr)
    return value_of_bits(stored, layer.replaced[attr]) if attr in layer.replaced else as_float32(stored)


def merged_values(layer: Any, scales: Mapping[str, float]) -> dict[str, Any]:
    """Returns the own variables of the host of an `AdapterLayer` that adapters change, by attribute and in float32.

    Args:
        layer: the `AdapterLayer`.
        scales: adapters that are there, each with its scale.
    """
    new = dict[str, Any]()
    for name in scales:
        for attr, copy in layer.copies[name].items():
            own = new.get(attr, as_float32(layer.owned[attr]))
            there, scale = ops.convert_to_tensor(as_float32(copy)), ops.convert_to_tensor(scales[name], "float32")
            new[attr] = ops.convert_to_numpy(between(ops.convert_to_tensor(own), there, scale))
    for site in layer.sites.values():
        bias = layer.owned.get("bias") if site is layer.site else None
        for name in [n for n in layer.chain(site) if n in scales]:
            adapter, scale = layer.adapters[name], ops.convert_to_tensor(scales[name], "float32")
            p = layer.parameters(name, site, scale)
            kernel: Any = new[site.attr] if site.attr in new else ops.cast(site.variable.value, "float32")
            changed = ops.stop_gradient(adapter.effective(site.matrix(ops.convert_to_tensor(kernel)), p))
            if adapter.changes_bias:
                own = np.zeros(site.fan_out, "float32") if bias is None else new.get("bias", as_float32(bias))
                flat = ops.convert_to_tensor(own) if bias is None else site.vector(ops.convert_to_tensor(own))
                wide = ops.convert_to_numpy(adapter.effective_bias(flat, p))
                if bias is not None:
                    new["bias"] = site.bias(wide, bias.shape)
                elif wide.any():
                    raise ValueError(
                        f"{layer.host_path} has no bias, so that of the adapter {name!r} cannot be merged. Keep the "
                        "adapter, or call unload(model)."
                    )
            new[site.attr] = site.kernel(changed)
    return new


def changes_order(layer: Any, merged: Collection[str], live: Collection[str]) -> bool:
    """Returns whether `live` adapters on top of `merged` ones are not what all of them are in their order."""
    for name in merged:
        for other in live:
            if name not in layer.adapters or other not in layer.adapters:
                continue
            if layer.copies[other].keys() & changed_by(layer, name):
                return True
            chains = [[n for n in layer.chain(site) if n in (name, other)] for site in layer.sites.values()]
            if [other, name] in chains and not (layer.adapters[name].additive and layer.adapters[other].additive):
                return True
    return False


def changed_by(layer: Any, name: str) -> set[str]:
    """Returns the attributes of the own variables of the host that merging an adapter may change."""
    kernels = {site.attr for site in layer.sites.values() if layer.weights_at(name, site)}
    return kernels | ({"bias"} if kernels else set()) | layer.copies[name].keys()


def refuse_shared(layer: Any, names: Collection[str], holders: Mapping[int, list[Any]]) -> None:
    """Raises ValueError if merging would change a weight that another layer computes with, too.

    Args:
        layer: the `AdapterLayer`.
        names: the adapters to merge.
        holders: the layers of the model that have a variable, by its identity.
    """
    for attr in sorted(attr for name in names if name in layer.adapters for attr in changed_by(layer, name)):
        others = [h.name for h in holders.get(id(layer.owned.get(attr)), []) if h is not layer.host()]
        if others:
            raise ValueError(
                f"{layer.host_path}.{attr.lstrip('_')} is a weight of {', '.join(others)} too, which would change. "
                "Keep the adapter, or call unload(model)."
            )
