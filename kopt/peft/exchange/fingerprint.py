"""A few weights of the base that an adapter was trained on, kept in its file, so that another base is noticed."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from kopt.peft.adapter import Array
from kopt.peft.exchange.name_map import Names
from kopt.peft.exchange.placement import Port
from kopt.peft.exchange.strict_json import parse_json
from kopt.peft.host import as_float32
from kopt.peft.layers import child_of

_LAYERS, _PLACES = 12, 4


def base_value(port: Port) -> Array:
    """Returns a variable of the base, also while adapters are merged into it."""
    child = child_of(port.layer)
    if child is not None and port.attr in child.replaced:
        return np.asarray(child.replaced[port.attr], "float32")
    return as_float32(port.variable)


def fingerprint(names: Names, ports: Sequence[Port]) -> str:
    """Returns some elements of `ports` as JSON: [module, parameter, number of the layer there, place, value]."""
    kernels = [p for p in ports if len(p.variable.shape) > 1] or list(ports)
    samples: list[list[Any]] = []
    for port in kernels[:: max(1, len(kernels) // _LAYERS)][:_LAYERS]:
        flat = base_value(port).ravel()
        number = [(p.path, p.attr) for p in names.group(port)].index((port.path, port.attr))
        for place in np.linspace(0, flat.size - 1, _PLACES).round().astype(int).tolist():
            samples.append([port.module, port.parameter, number, place, float(flat[place])])
    return json.dumps(samples)


def find_differences(names: Names, text: str, where: str) -> list[str]:
    """Returns the tensors of the base that differ from a fingerprint by more than the rounding of bfloat16.

    Args:
        names: the name map of the model.
        text: the fingerprint.
        where: where it stands, for errors.

    Raises:
        ValueError: it is no fingerprint.
    """
    samples = parse_json(text, where)
    if not isinstance(samples, list) or not all(map(_is_sample, samples)):
        raise ValueError(f"{where} is damaged. Save or download the file again.")
    values: dict[tuple[str, str, int], Array] = {}
    differ: dict[str, None] = {}
    for module, parameter, number, place, value in samples:
        key = (module, parameter, number)
        if key not in values:
            group = [p for p in names.by_module.get(module, ()) if p.parameter == parameter]
            values[key] = base_value(group[number]).ravel() if number < len(group) else np.zeros(0)
        if place >= values[key].size or not np.isclose(values[key][place], value, rtol=1e-2, atol=1e-5):
            differ[f"{module}.{parameter}"] = None
    return list(differ)


def _is_sample(sample: Any) -> bool:
    """Returns whether it is [module, parameter, number, place, value]."""
    return (
        isinstance(sample, list)
        and [type(x) for x in sample[:4]] == [str, str, int, int]
        and len(sample) == 5
        and isinstance(sample[4], float | int)
        and min(sample[2:4]) >= 0
    )
