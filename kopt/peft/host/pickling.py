"""Copies of a host alone, as pickle and `copy.deepcopy` make them."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from kopt.peft.adapter import Adapter, Array
from kopt.peft.host.saving import write_weights
from kopt.peft.layers import original_class, set_class


def reduced(layer: Any) -> tuple[Any, ...]:
    """Returns what pickle makes a copy of the host of an `AdapterLayer` from, with its adapters."""
    layer.refuse_if_merged()
    host, values = layer.host(), dict[str, Any]()
    tables = {name: layer.weights_of[name] | layer.copies[name] for name in layer.adapters}  # also what hosts share
    write_weights({f"{name}.{key}": v for name, table in tables.items() for key, v in table.items()}, values)
    cls = type(host)
    set_class(host, original_class(host))
    try:
        plain = host.__reduce__()
    finally:
        set_class(host, cls)
    scales = {name: float(gate.numpy()) for name, gate in layer.gates.items()}
    state = (list(layer.active), list(layer.trained), scales)
    given = {name: (layer.adapters[name], *layer.given[name]) for name in layer.adapters}
    return restored_host, (type(layer), plain, layer.host_path, given, values, state)


def restored_host(
    cls: Any,
    plain: tuple[Any, ...],
    path: str,
    given: Mapping[str, tuple[Adapter, bool, bool, tuple[str, ...]]],
    values: Mapping[str, Array],
    state: tuple[Any, ...],
) -> Any:
    """Returns a copy of a host from what `reduced` gives."""
    make, arguments = plain
    layer = make(*arguments)
    child, rng = cls(layer, path), np.random.default_rng(0)  # whose values are replaced
    for name, (adapter, targeted, whole, parameters) in given.items():
        child.add(name, adapter, targeted, whole, rng, parameters)
    child.load_own_variables(values)
    active, trained, scales = state
    child.settle(active, trained, on=active, merged={})
    for name, gate in child.gates.items():
        gate.assign(scales[name])
    return layer
