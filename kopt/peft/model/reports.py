"""What adapters a model has: in numbers, layer by layer as data, and as a table."""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any

from kopt.peft.host import AdapterLayer
from kopt.peft.layers import flatten_layers, named_layers, original_class, quantized_kernel
from kopt.peft.model.adapters import adapters_of, require_adapters
from kopt.peft.requirements import require_model

_SHOWN = 20
"""Layers that a table shows unless all are asked for."""


def get_nb_trainable_parameters(model: Any) -> tuple[int, int]:
    """Returns the number of trainable parameters, and that of all parameters with those of adapters.

    A quantized kernel counts as the float kernel that it stands for.
    """
    require_model(model)
    left_out = {id(g) for layer in adapter_layers(model) for g in layer.gates.values()}
    everything = 0
    for layer in flatten_layers(model):
        if (kernel := quantized_kernel(layer)) is not None:
            everything += math.prod(kernel.shape)
            left_out |= {id(part) for part in kernel.parts.values()}
    return _count(model.trainable_variables), everything + _count(v for v in model.weights if id(v) not in left_out)


def _count(variables: Iterable[Any]) -> int:
    """Returns the number of parameters in variables; those that only take note of gradients have none."""
    return sum(math.prod(v.shape) for v in variables if not v.overwrite_with_gradient)


def print_trainable_parameters(model: Any) -> None:
    """Prints the number of trainable parameters and their share of all."""
    trainable, everything = get_nb_trainable_parameters(model)
    share = 100 * trainable / max(everything, 1)
    print(f"trainable params: {trainable:,} || all params: {everything:,} || trainable%: {share:.4f}")


@dataclasses.dataclass(frozen=True)
class ModelStatus:
    """Which adapters a model has, and which of them are active or merged."""

    base_model_type: str
    peft_types: dict[str, str]
    """Method by adapter."""
    available_adapters: list[str]
    active_adapters: list[str]
    merged_adapters: list[str]
    enabled: bool
    num_adapter_layers: int
    trainable_params: int
    total_params: int


def get_model_status(model: Any) -> ModelStatus:
    """Returns which adapters a model has, and which of them are active or merged."""
    current = require_adapters(model)
    trainable, everything = get_nb_trainable_parameters(model)
    return ModelStatus(
        base_model_type=original_class(model).__name__,
        peft_types={name: adapter.peft_type for name, adapter in current.adapters.items()},
        available_adapters=list(current.adapters),
        active_adapters=list(current.active),
        merged_adapters=current.merged,
        enabled=current.enabled,
        num_adapter_layers=len(current.hosts),
        trainable_params=trainable,
        total_params=everything,
    )


def adapter_layers(model: Any) -> list[AdapterLayer]:
    """Returns the layers that hold the adapters of a model and of the models in it, one for each host."""
    return [layer for layer in flatten_layers(model) if isinstance(layer, AdapterLayer)]


@dataclasses.dataclass(frozen=True)
class LayerStatus:
    """The adapters of one layer; each table is by the name of the adapter."""

    name: str
    """Path of the layer in the model."""
    module_type: str
    """Class of the layer."""
    enabled: bool
    """Whether adapters are on; `disable_adapter` turns all off."""
    active_adapters: list[str]
    merged_adapters: list[str]
    available_adapters: list[str]
    methods: dict[str, str]
    """Class of the method, with rank and α if it has these."""
    weights: dict[str, dict[str, tuple[int, ...]]]
    """Shapes of the weights and of trained copies by name; other kernels' weights are "attribute.name"."""
    trainable_params: dict[str, int]
    """How many numbers are trained now: none of an adapter that is not active; shared ones count in the first layer."""


def layer_status(model: Any) -> list[LayerStatus]:
    """Returns the adapters of each layer that has some, in the order of the model; none if the model has no adapters.

    Args:
        model: a model, with adapters or without.
    """
    current = adapters_of(model)
    if current is None:
        return []
    hosts = [current.hosts[path] for path, _ in named_layers(model) if path in current.hosts]
    counted = set[int]()
    return [_status(layer, current.enabled, counted) for layer in hosts]


def _status(layer: AdapterLayer, enabled: bool, counted: set[int]) -> LayerStatus:
    variables = {name: layer.weights_of[name] | layer.copies[name] for name in layer.adapters}
    trained = {
        name: _count(v for v in own.values() if v.trainable and id(v) not in counted) for name, own in variables.items()
    }
    counted |= {id(v) for own in variables.values() for v in own.values()}
    return LayerStatus(
        name=layer.host_path,
        module_type=original_class(layer.host()).__name__,
        enabled=enabled,
        active_adapters=list(layer.active),
        merged_adapters=list(layer.merged),
        available_adapters=list(layer.adapters),
        methods={name: _method(adapter) for name, adapter in layer.adapters.items()},
        weights={
            name: {k.removeprefix("_"): tuple(v.shape) for k, v in own.items() if not v.overwrite_with_gradient}
            for name, own in variables.items()
        },
        trainable_params=trained,
    )


def _method(adapter: Any) -> str:
    rank, alpha = getattr(adapter, "r", None), getattr(adapter, "lora_alpha", None)
    return type(adapter).__name__ + ("" if rank is None else f" r={rank} α={alpha:g}")


def summary(model: Any, all: bool = False) -> None:
    """Prints the adapters of a model as a table, a row for each adapter of each layer.

    The columns are the layer, its class, the adapter, its method, its weights, the numbers that are trained, and its
    state: "on"; "off" if it is not active or all are disabled; "merged".

    Args:
        model: a model, with adapters or without.
        all: whether a table of more than 20 rows is printed whole; else its middle is left out.
    """
    found = layer_status(model)
    if not found:
        print(f"The model {model.name!r} has no adapters. Add one with get_peft_model(model, adapter).")
        return
    rows = [row for status in found for row in _rows(status)]
    shown: list[Sequence[str]] = list(rows)
    if len(rows) > _SHOWN and not all:
        shown = [*rows[: _SHOWN - 4], (f"... {len(rows) - _SHOWN + 1} more rows: all=True",), *rows[-3:]]
    head = ("layer", "class", "adapter", "method", "weights", "trained", "state")
    widths = [max(len(row[i]) for row in [head, *shown] if len(row) == len(head)) for i in range(len(head))]
    for row in [head, ["-" * width for width in widths], *shown]:
        cells = [
            cell.rjust(w) if i == 5 else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=False))
        ]
        print("  ".join(cells).rstrip())
    total = sum(sum(status.trainable_params.values()) for status in found)
    print(f"{total:,} trained in {len(found)} layers")


def _rows(status: LayerStatus) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for name in status.available_adapters:
        on = status.enabled and name in status.active_adapters
        state = "merged" if name in status.merged_adapters else "on" if on else "off"
        weights = ", ".join(f"{key} {'×'.join(map(str, shape))}" for key, shape in status.weights[name].items())
        trained = f"{status.trainable_params[name]:,}"
        rows.append((status.name, status.module_type, name, status.methods[name], weights, trained, state))
    return rows
