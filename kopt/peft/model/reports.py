"""How many parameters a model with adapters has, and in which state its adapters are."""

import dataclasses
from typing import Any

import numpy as np

from kopt.peft.host import AdapterLayer
from kopt.peft.layers import flatten_layers, original_class
from kopt.peft.model.adapters import require_adapters


def get_nb_trainable_parameters(model: Any) -> tuple[int, int]:
    """Returns the number of trainable parameters, and that of all parameters with those of adapters."""
    gates = {id(g) for layer in adapter_layers(model) for g in layer.gates.values()}
    everything = sum(int(np.prod(v.shape)) for v in model.weights if id(v) not in gates)
    return sum(int(np.prod(v.shape)) for v in model.trainable_variables), everything


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
