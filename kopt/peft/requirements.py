"""What adapters and models must be, and errors that say what to write instead."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from kopt.peft.adapter import Adapter

BASE = "__base__"
"""The name that stands for no adapter, where rows have different ones."""


def check_adapter_name(name: Any) -> None:
    """Raises ValueError if no adapter can have that name: it stands in names of files and variables."""
    if not isinstance(name, str) or not re.fullmatch(r"\w[\w-]{0,99}", name):
        raise ValueError(f"The name of an adapter has up to 100 letters, digits, _ and - only. Received: {name!r}")
    if name == BASE:
        raise ValueError(f"The name {BASE!r} stands for no adapter. Choose another one.")


def check_names(adapter: Adapter, declared: Iterable[str], copied: Iterable[str], path: str) -> None:
    """Raises ValueError if a weight that a method declares at a layer has a name that cannot be told from another.

    Args:
        adapter: the method.
        declared: names of its weights there.
        copied: attributes of the layer's own variables that are trained there as copies.
        path: of the layer.
    """
    taken = {"gate", "dropout", *(attr.lstrip("_") for attr in copied)}
    for name in declared:
        if not name.isidentifier() or name.lstrip("_") in taken:
            raise ValueError(
                f"{type(adapter).__name__} cannot have a weight {name!r} at {path}. Its name must be a Python name, as "
                "'adapter_scale', and none of 'gate', 'dropout' and the layer's trained weights."
            )


def require_method(model: Any, adapter: Any) -> None:
    """Raises ValueError, which says what to write, if these are not a model and a method."""
    if isinstance(adapter, Adapter) and hasattr(model, "layers"):
        return
    name = next((c.__name__ for c in (model, adapter) if isinstance(c, type) and issubclass(c, Adapter)), "LoRA")
    text, received = f"Expected an adapter, as in get_peft_model(model, kopt.peft.{name}(r=8))", f"{adapter!r}"
    if isinstance(model, Adapter) or (isinstance(model, type) and issubclass(model, Adapter)):
        text, received = "Expected the model first: get_peft_model(model, adapter)", f"{model!r}, {adapter!r}"
    elif isinstance(adapter, Adapter):
        text, received = "Expected a Keras model", repr(model)
    elif isinstance(adapter, type) and issubclass(adapter, Adapter):
        text = f"Expected an adapter, not its class: write {name}() or {name}(argument=...)"
    elif isinstance(adapter, Mapping):
        text = "Expected an adapter, not its arguments: write kopt.peft.LoraConfig(**arguments)"
    elif hasattr(adapter, "peft_type"):
        text = f"Expected an adapter of kopt: write kopt.peft.{type(adapter).__name__}(...) with the same arguments"
    raise ValueError(f"{text}. Received: {received}")


def require_model(model: Any) -> None:
    """Raises ValueError if this is no model: the functions of kopt take it first."""
    if not hasattr(type(model), "layers"):
        raise ValueError(f"Expected a Keras model as the first argument. Received: {model!r}")
