"""The weights of an adapter as arrays, and how much it counts."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from kopt.peft.adapter import Array
from kopt.peft.model.adapters import require_adapters
from kopt.peft.targets import nearest

LARGEST = 1e6
"""The largest scale, as that of `lora_alpha`: float32 holds what it makes."""


def get_adapter_state(model: Any, adapter_name: str = "default") -> dict[str, Array]:
    """Returns copies of the weights of an adapter: by the path of the layer and the name of the weight, "query.lora_A".

    Raises:
        ValueError: there is no such adapter.
    """
    return {key: np.array(variable.numpy()) for key, variable in _variables(model, adapter_name).items()}


def set_adapter_state(model: Any, adapter_name: str, state: Mapping[str, Any]) -> None:
    """Gives an adapter the weights that `get_adapter_state` returned, of this model or of one like it.

    Nothing is traced anew. If the adapter is merged, it is merged anew. What an optimizer remembers stays, as with
    `set_weights`.

    Raises:
        ValueError: there is no such adapter; a weight is missing, unknown, of another shape, or not finite. Nothing is
            changed then.
    """
    variables = _variables(model, adapter_name)
    for key in state:
        if key not in variables:
            near = nearest([key], list(variables))
            raise ValueError(f"The adapter {adapter_name!r} has no weight {key!r}. Closest names: {near}.")
    if missing := [key for key in variables if key not in state]:
        raise ValueError(f"The state lacks {len(missing)} weight(s) of {adapter_name!r}: {', '.join(missing[:5])}.")
    values = {}
    for key, variable in variables.items():
        values[key] = np.asarray(state[key], "float32")
        if values[key].shape != tuple(variable.shape):
            raise ValueError(f"{key} has the shape {values[key].shape}, but the model takes {tuple(variable.shape)}.")
        if not np.isfinite(values[key]).all():
            raise ValueError(f"{key} has NaN or infinite values.")
    for key, value in values.items():
        variables[key].assign(value)
    require_adapters(model).values_changed()


def set_scale(model: Any, adapter_name: str, scale: float) -> None:
    """Sets how much an adapter counts: 0 gives the base, 1 the adapter as it was trained.

    Of a LoRA 0.5 is half of its change, of (IA)³ factors half way from 1, of a bottleneck half of what it adds, of
    trained copies half of the way from the base. DoRA has half of its low-rank change then, and lengths half way to
    those that were learned. Nothing is traced anew; a merged adapter is merged anew. `.keras` files and pickles keep
    the scale; `save_pretrained` writes the adapter as it was trained.

    Args:
        model: a model with adapters.
        adapter_name: which one.
        scale: in [-1e6, 1e6]; below 0 the change is subtracted.

    Raises:
        ValueError: there is no such adapter, the number is out of range, or the method has no scale, as prompts.
    """
    if isinstance(scale, bool) or not isinstance(scale, (int, float, np.number)) or not abs(scale) <= LARGEST:
        raise ValueError(f"scale must be a finite number from -{LARGEST:g} to {LARGEST:g}. Received: {scale!r}")
    require_adapters(model).set_scale(adapter_name, float(scale))


def _variables(model: Any, name: str) -> dict[str, Any]:
    current = require_adapters(model)
    current.require(name)
    return {
        f"{path}.{key.lstrip('_')}": variable
        for path, layer in current.hosts.items()
        if name in layer.adapters
        for key, variable in layer.saved_of(name).items()
    }
