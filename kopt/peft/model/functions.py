"""What users do with the adapters of a model: add, switch, merge, remove and count them."""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from kopt.peft.adapter import Adapter
from kopt.peft.host import AdapterLayer
from kopt.peft.layers import flatten_layers, original_class
from kopt.peft.model.adapters import ModelAdapters, adapters_of
from kopt.peft.model.model_class import add_adapter


def get_peft_model(model: Any, adapter: Adapter, adapter_name: str = "default") -> Any:
    """Adds an adapter to a model, in place, and makes it the active one.

    The base is frozen: only the adapter is trained. Layers keep their names and weights; `fit`, `predict`, `save` and
    functional calls work as before. A model may have several adapters of different methods.

    Args:
        model: a built Keras model of any kind.
        adapter: the method, as `LoRA(r=8)`.
        adapter_name: its name in this model: letters, digits, _ and -.

    Returns:
        `model`, the same object.

    Raises:
        ValueError: the model is not built, the name is taken, or the adapter matches no layer that can host it. The
            model is then as before.
    """
    add_adapter(model, adapter, adapter_name).switch([adapter_name])
    return model


def set_adapter(model: Any, adapter_names: str | Sequence[str]) -> None:
    """Makes one adapter, or several at once, the active ones: those that are used and trained.

    Several are applied in the order in which they were added to the model. If other weights are trainable than before,
    a compiled model gets a new optimizer of the same configuration.

    Raises:
        ValueError: the model has no such adapter.
    """
    _require_adapters(model).switch([adapter_names] if isinstance(adapter_names, str) else list(adapter_names))


@contextlib.contextmanager
def disable_adapter(model: Any) -> Iterator[Any]:
    """Turns all adapters off within a `with` block, also in models and functions compiled before."""
    current = _require_adapters(model)
    current.switch(current.active, enabled=False)
    try:
        yield model
    finally:
        current.switch(current.active, enabled=True)


def delete_adapter(model: Any, adapter_name: str) -> None:
    """Removes an adapter and its weights.

    Raises:
        ValueError: there is none of that name, or it is merged.
    """
    _require_adapters(model).remove(adapter_name)


def merge_adapter(model: Any, adapter_names: Sequence[str] | None = None) -> None:
    """Adds adapters, by default the active ones, to the weights of the base: they then cost no time.

    Raises:
        ValueError: a method cannot be merged, or is merged already.
    """
    current = _require_adapters(model)
    current.merge(list(current.active if adapter_names is None else adapter_names))


def unmerge_adapter(model: Any) -> None:
    """Undoes `merge_adapter`, bit for bit: the weights of the base were kept."""
    _require_adapters(model).unmerge()


def merge_and_unload(model: Any) -> Any:
    """Merges the active adapters and removes all: the result is a plain Keras model with the new weights."""
    current = _require_adapters(model)
    current.merge([name for name in current.active if name not in current.merged])
    current.remove_all()
    return model


def unload(model: Any) -> Any:
    """Removes all adapters: the model is as it was before, bit for bit."""
    current = _require_adapters(model)
    current.unmerge()
    current.remove_all()
    return model


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
    current = _require_adapters(model)
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


def _require_adapters(model: Any) -> ModelAdapters:
    found = adapters_of(model)
    if found is None:
        raise ValueError(f"The model {model.name!r} has no adapters. Add one with get_peft_model(model, adapter).")
    return found
