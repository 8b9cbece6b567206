"""The layers of a model by path, as adapters and their files name them."""

import re
from typing import Any

import keras

from kopt.peft.layers.keras_internals import Functional, attributes_of, child_layers, to_snake_case


def named_layers(model: Any) -> list[tuple[str, Any]]:
    """Returns (path, layer) for every layer below `model`, a shared one once.

    A path does not change when the same model is built again. Below a Functional or Sequential model it has the layer's
    name. Elsewhere it has the layer's name too, unless Keras made it up ("dense_36" depends on what was built before):
    then it has the attribute that holds the layer, as in "blocks.0".
    """
    found: list[tuple[str, Any]] = []
    seen: set[int] = set()

    def visit(owner: Any, prefix: str) -> None:
        attributes: dict[int, str] | None = None
        used = set[str]()
        for child in children(owner):
            if id(child) in seen:
                continue
            seen.add(id(child))
            name = child.name
            if not _is_graph(owner) and _is_made_up(child):
                attributes = _attribute_names(owner) if attributes is None else attributes
                name = attributes.get(id(child), name)
            while name in used:
                name += "_"
            used.add(name)
            path = f"{prefix}.{name}" if prefix else name
            found.append((path, child))
            visit(child, path)

    visit(model, "")
    return found


def children(layer: Any) -> list[Any]:
    """Returns the layers directly below, those of a graph first and in its order."""
    graph = list(layer.layers) if _is_graph(layer) else []
    return graph + [c for c in child_layers(layer) if not any(c is other for other in graph)]


def _is_graph(layer: Any) -> bool:
    return isinstance(layer, (Functional, keras.Sequential))


def _is_made_up(layer: Any) -> bool:
    return re.fullmatch(re.escape(to_snake_case(type(layer).__name__)) + r"(_\d+)?", layer.name) is not None


def _attribute_names(owner: Any) -> dict[int, str]:
    """Returns the attribute that holds each layer, by the layer's identity: "head", "blocks.0", "table.key"."""
    names: dict[int, str] = {}

    def visit(value: Any, name: str) -> None:
        if isinstance(value, keras.layers.Layer):
            names.setdefault(id(value), name)
        elif isinstance(value, dict):
            for key, item in value.items():
                visit(item, f"{name}.{key}")
        elif isinstance(value, (list, tuple)):
            for i, item in enumerate(value):
                visit(item, f"{name}.{i}")

    for name, value in attributes_of(owner).items():
        visit(value, name)
    return names
