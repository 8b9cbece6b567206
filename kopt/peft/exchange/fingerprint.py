"""A few weights of the base that an adapter was trained on, kept in its file, so that another base is noticed."""

import json
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from kopt.peft import host
from kopt.peft.adapter import Array
from kopt.peft.exchange.name_map import Names
from kopt.peft.exchange.placement import Port
from kopt.peft.exchange.strict_json import parse_json
from kopt.peft.layers import ROUNDINGS, QuantizedKernel, child_of

_LAYERS, _PLACES = 12, 4
_SHARES = (0, *ROUNDINGS.values())


def base_value(port: Port) -> Array:
    """Returns a variable of the base, also while adapters are merged into it."""
    child = child_of(port.layer)
    return host.as_float32(port.variable) if child is None else host.base_value(child, port.attr)


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


def rounding(ports: Iterable[Port]) -> float:
    """Returns by how much quantized kernels among `ports` may be rounded, as a share of their largest magnitude."""
    return max((port.variable.rounding for port in ports if isinstance(port.variable, QuantizedKernel)), default=0.0)


def find_differences(names: Names, text: str, where: str, rounded: str) -> list[str]:
    """Returns the tensors of the base that differ from a fingerprint by more than rounding, to 16 bits at least.

    Args:
        names: the name map of the model.
        text: the fingerprint.
        where: where it stands, for errors.
        rounded: the `rounding` of the base that it was taken of, as JSON.

    Raises:
        ValueError: it is no fingerprint.
    """
    samples, share = parse_json(text, where), parse_json(rounded, where)
    if not isinstance(samples, list) or not all(map(_is_sample, samples)) or share not in _SHARES:
        raise ValueError(f"{where} is damaged. Save or download the file again.")
    values: dict[tuple[str, str, int], Array] = {}
    bounds: dict[tuple[str, str, int], float] = {}
    differ: dict[str, None] = {}
    for module, parameter, number, place, value in samples:
        key = (module, parameter, number)
        if key not in values:
            group = [p for p in names.by_module.get(module, ()) if p.parameter == parameter]
            own = group[number : number + 1]
            values[key] = base_value(own[0]).ravel() if own else np.zeros(0)
            bounds[key] = 1e-5 + (share + rounding(own)) * np.abs(values[key]).max(initial=0.0)
        if place >= values[key].size or not np.isclose(values[key][place], value, rtol=1e-2, atol=bounds[key]):
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
